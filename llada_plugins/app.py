"""Try a model in the browser: its answer after every step, two settings side by side.

    python -m llada_plugins.app
    python -m llada_plugins.app --pretrained DIR --gen_length 256 --block_length 32

The first is the tiny model in the package. The page is at http://127.0.0.1:7860, which only
this machine reaches. Every option of the model is a flag of the same name, and what the page
begins with: --model NAME --help lists them. Needs the extra app. See docs/view.md.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from llada_plugins.engine.flags import read_flags, run_program
from llada_plugins.playground.serving import AppConfig, run

USAGE = "python -m llada_plugins.app [--port N] [--model NAME] [--OPTION VALUE ...]"


def main(argv: Sequence[str] | None = None) -> int:
    """The user's mistakes end it with one line and status 1."""
    return run_program(lambda: run(*read_flags(AppConfig, argv, usage=USAGE, description=__doc__)))


if __name__ == "__main__":
    sys.exit(main())
