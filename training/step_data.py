"""Step-labelled sudoku solutions for process reward models, in TRL's JSONL format.

    python -m training.step_data --num 1000 --output steps.jsonl

The exact rule labels them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from llada_plugins.files.jsonl import write_rows
from llada_plugins.options.command_line import FlagParser
from llada_plugins.tasks.splits import Split
from llada_plugins.tasks.sudoku import DEFAULT_NUM_TEST
from training.data.sudoku_steps import solutions_in_steps


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = FlagParser(
        prog="python -m training.step_data",
        description="Step-labelled sudoku solutions as TRL's JSONL.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--num",
        type=int,
        default=DEFAULT_NUM_TEST,
        help="number of solutions (default: %(default)s)",
    )
    parser.add_argument(
        "--split",
        choices=get_args(Split),
        default="train",
        help="split of the puzzles (default: %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="another seed draws other puzzles and mistakes (default: %(default)s)",
    )
    parser.add_argument(
        "--output", required=True, type=Path, help="JSONL file to write; must not exist"
    )
    try:
        options = parser.parse_args(argv)
        if options.num < 1:
            raise ValueError(f"--num must be at least 1, got {options.num}")
        if options.output.exists():
            raise ValueError(f"--output {options.output} exists: give another name")
        write_rows(solutions_in_steps(options.split, options.num, options.seed), options.output)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
