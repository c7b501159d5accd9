"""Talk to a model in the terminal and watch its answers come out of the masks.

    python -m llada_plugins.chat --prompt "..1.4...........=" --chat false --gen_length 16
    python -m llada_plugins.chat --pretrained DIR --gen_length 256 --block_length 32

The first is the tiny model in the package. A line is a turn; /reset begins a new
conversation, /infill TEXT<|infill:8|>TEXT fills in a span of 8 tokens, /exit, Ctrl-D or
Ctrl-C at the prompt leave, Ctrl-C during an answer drops that turn. Every option of the
model is a flag of the same name: --model NAME --help lists them. Standard output has the
answers and nothing else.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from llada_plugins.engine.flags import read_flags, run_program
from llada_plugins.engine.talking import ChatConfig, run
from llada_plugins.engine.watching import MASK, picture

__all__ = ["MASK", "ChatConfig", "main", "picture"]

USAGE = "python -m llada_plugins.chat [--prompt TEXT] [--model NAME] [--OPTION VALUE ...]"


def main(argv: Sequence[str] | None = None) -> int:
    """The user's mistakes end it with one line and status 1."""
    return run_program(lambda: run(*read_flags(ChatConfig, argv, usage=USAGE, description=__doc__)))


if __name__ == "__main__":
    sys.exit(main())
