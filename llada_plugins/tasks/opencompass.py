"""4x4 sudoku as an OpenCompass data set and its evaluator, by class reference in a config; needs no data files."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from datasets import Dataset, DatasetDict
from opencompass.datasets.base import BaseDataset
from opencompass.openicl.icl_evaluator import BaseEvaluator

from . import sudoku

NUM_TRAIN = 64        # rows from which a retriever may draw in-context examples


class Sudoku4Dataset(BaseDataset):
    """Columns: puzzle (the prompt, ends in '='), solution (one of its completions)."""

    @staticmethod
    def load(num: int = sudoku.DEFAULT_NUM_TEST, seed: int = 0) -> DatasetDict:
        """num: problems of the test split."""
        return DatasetDict({split: Dataset.from_list([problem._asdict() for problem in sudoku.problems(split, count, seed)])
                            for split, count in (("train", NUM_TRAIN), ("test", num))})


class Sudoku4Evaluator(BaseEvaluator):
    """The share of answers, in percent, that complete their puzzle; any valid completion counts."""

    def score(self, predictions: Sequence[str], references: Sequence[str], test_set: Dataset) -> dict[str, Any]:
        """references: one solution of each puzzle, to look at; the puzzles come from the test set's own column."""
        details = [{"puzzle": puzzle, "pred": prediction, "answer": reference, "correct": sudoku.is_valid(puzzle, prediction)}
                   for puzzle, prediction, reference in zip(test_set["puzzle"], predictions, references, strict=True)]
        return {"accuracy": 100 * sum(detail["correct"] for detail in details) / len(details), "details": details}
