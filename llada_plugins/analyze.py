"""What sampling methods answer, what they cost, and where the model looks: texts,
forwards, seconds, agreement; attention by layer.

    python -m llada_plugins.analyze --output outputs/analyze                                          the tiny model on 4x4 sudoku; seconds
    python -m llada_plugins.analyze --pretrained DIR --data FILE.jsonl --gen_length 256 --output DIR --compare "steps=256; threshold=0.9"

--compare has sampler options as --gen_kwargs has them, settings with semicolons between; an empty one is the model's own. Every option of
the model is a flag of the same name. Writes analyze.json, table.md, agreement.png and
attention.png, all or none.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llada_plugins.engine.flags import read_flags
from llada_plugins.files.atomic import check_empty, whole_folder
from llada_plugins.reports.compare_samplers import AnalyzeConfig, analyze, draw, table
from llada_plugins.reports.render import pyplot

USAGE = "python -m llada_plugins.analyze --output DIR [--prompt TEXT | --data FILE.jsonl] [--compare SETTINGS] [--OPTION VALUE ...]"


# --- sampling methods -----------------------------------------------------------------


# --- attention ------------------------------------------------------------------------


# --- the report -----------------------------------------------------------------------


def run(config: AnalyzeConfig, options: Mapping[str, Any]) -> str:
    """Analyse, and write the report into config.output; returns its table."""
    pyplot()  # what is missing is said before the work
    check_empty(Path(config.output))
    report = analyze(config, options)
    with whole_folder(Path(config.output)) as partial:
        (partial / "analyze.json").write_text(
            json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        (partial / "table.md").write_text(table(report) + "\n", encoding="utf-8")
        draw(report, partial)
    return table(report)


def main(argv: Sequence[str] | None = None) -> int:
    """The user's mistakes end it with one line and status 1."""
    try:
        print(run(*read_flags(AnalyzeConfig, argv, usage=USAGE, description=__doc__)))
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
