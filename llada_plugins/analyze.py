"""What sampling methods answer, what they cost, and where the model looks.

    python -m llada_plugins.analyze --output outputs/analyze
    python -m llada_plugins.analyze --pretrained DIR --data FILE.jsonl --gen_length 256 \\
        --output DIR --compare "steps=256; threshold=0.9"

The first takes the tiny model on 4x4 sudoku, and seconds. --compare has sampler options as
--gen_kwargs has them, settings with semicolons between; an empty one is the model's own.
Every option of the model is a flag of the same name. Writes analyze.json, table.md,
agreement.png and attention.png, all or none.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from llada_plugins.engine.flags import read_flags
from llada_plugins.reports.compare_samplers import AnalyzeConfig, run

USAGE = (
    "python -m llada_plugins.analyze --output DIR [--prompt TEXT | --data FILE.jsonl] "
    "[--compare SETTINGS] [--OPTION VALUE ...]"
)


def main(argv: Sequence[str] | None = None) -> int:
    """The user's mistakes end it with one line and status 1."""
    try:
        print(run(*read_flags(AnalyzeConfig, argv, usage=USAGE, description=__doc__)))
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
