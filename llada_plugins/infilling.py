"""Fill in spans of a text; what is around them stays as it is.

    python -m llada_plugins.infilling --text "41..2...1....4..=4132<|infill:4|>12433421"
    python -m llada_plugins.infilling --pretrained DIR --file code.py --gen_length 64

The first is the tiny model in the package. A span is marked <|infill|> (as many tokens as
gen_length says), <|infill:8|> or <|infill:4,8,16|>, of which the best is taken. Standard
output has the text with its spans filled in, and nothing else. Every option of the model is
a flag of the same name: --model NAME --help lists them. See docs/decoding.md.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from llada_plugins.engine.filling import InfillConfig, run
from llada_plugins.engine.flags import read_flags, run_program

USAGE = "python -m llada_plugins.infilling --text TEXT [--model NAME] [--OPTION VALUE ...]"


def main(argv: Sequence[str] | None = None) -> int:
    """The user's mistakes end it with one line and status 1."""
    return run_program(
        lambda: run(*read_flags(InfillConfig, argv, usage=USAGE, description=__doc__))
    )


if __name__ == "__main__":
    sys.exit(main())
