"""Data and scoring of sudoku4_infilling.yaml and the humaneval_infilling_*.yaml; the rules are
the package's.
"""

from __future__ import annotations

from typing import Any

import datasets

from llada_plugins.tasks import local_files, spans, sudoku


def load_sudoku(num: int = sudoku.DEFAULT_NUM_TEST, **_: Any) -> dict[str, datasets.Dataset]:
    """The test problems; --metadata '{"num": 100}' takes the first 100."""
    return {"test": datasets.Dataset.from_list(spans.sudoku_rows(num))}


def score_sudoku(doc: dict[str, str], results: list[str]) -> dict[str, float]:
    """1 for any row that completes the puzzle."""
    return {"acc": float(spans.completes(doc["puzzle"], doc["solution"], results[0]))}


def load_humaneval(
    data_file: str, data_dir: str | None = None, lengths: Any = None, **_: Any
) -> dict[str, datasets.Dataset]:
    """A released file; --metadata '{"lengths": "16,32,64"}' lets the best length be chosen."""
    (path,) = local_files.find(data_dir, data_file)
    rows = spans.read_humaneval(path, spans.lengths_of(lengths))
    return {"test": datasets.Dataset.from_list(rows)}


def score_humaneval(doc: dict[str, str], results: list[str]) -> dict[str, float]:
    """1 if prompt + what was filled in + suffix passes the problem's own tests."""
    return {"pass@1": float(spans.passes(doc, results[0]))}
