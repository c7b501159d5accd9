"""Data and scoring of sudoku4.yaml; the rules are the package's."""

from __future__ import annotations

from typing import Any

import datasets

from llada_plugins.tasks import sudoku


def load(num: int = sudoku.DEFAULT_NUM_TEST, **_: Any) -> dict[str, datasets.Dataset]:
    """The test problems; --metadata '{"num": 100}' takes the first 100. lm-eval passes
    all other metadata along too.
    """
    return {
        "test": datasets.Dataset.from_list(
            [problem._asdict() for problem in sudoku.problems("test", num)]
        )
    }


def score(doc: dict[str, str], results: list[str]) -> dict[str, float]:
    """1 for any valid completion of the puzzle."""
    return {"acc": float(sudoku.is_valid(doc["puzzle"], results[0]))}
