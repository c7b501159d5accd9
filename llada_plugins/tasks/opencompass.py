"""The package's tasks as OpenCompass data sets and evaluators, which need no data files.

A config names the classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from datasets import Dataset, DatasetDict
from opencompass.datasets.base import BaseDataset
from opencompass.openicl.icl_evaluator import BaseEvaluator

from . import nim, sudoku

NUM_TRAIN = 64  # rows from which a retriever may draw in-context examples


class Sudoku4Dataset(BaseDataset):
    """Columns: puzzle (the prompt, ends in '='), solution (one of its completions)."""

    @staticmethod
    def load(num: int = sudoku.DEFAULT_NUM_TEST, seed: int = 0) -> DatasetDict:
        """num: problems of the test split."""
        return _rows(sudoku.problems("train", NUM_TRAIN, seed), sudoku.problems("test", num, seed))


class NimDataset(BaseDataset):
    """Columns: position (the prompt, ends in '='), answer (running xors, a winning move)."""

    @staticmethod
    def load(num: int = nim.DEFAULT_NUM_TEST, seed: int = 0, split: str = "test") -> DatasetDict:
        """num: positions of the split that is evaluated: test, ood_heaps or ood_sizes."""
        return _rows(nim.problems("train", NUM_TRAIN, seed), nim.problems(split, num, seed))


class RuleEvaluator(BaseEvaluator):
    """The share of answers, in percent, that a task's rule accepts."""

    question: str  # the column that the rule judges answers by

    @staticmethod
    def accepts(question: str, answer: str) -> bool:
        """The task's rule."""
        raise NotImplementedError

    def score(
        self, predictions: Sequence[str], references: Sequence[str], test_set: Dataset
    ) -> dict[str, Any]:
        """The accuracy, and every answer with its judgement.

        references: one right answer each, to look at; the questions come from the test
        set's own column.
        """
        details = [
            {
                self.question: question,
                "pred": prediction,
                "answer": reference,
                "correct": self.accepts(question, prediction),
            }
            for question, prediction, reference in zip(
                test_set[self.question], predictions, references, strict=True
            )
        ]
        return {
            "accuracy": 100 * sum(detail["correct"] for detail in details) / len(details),
            "details": details,
        }


class Sudoku4Evaluator(RuleEvaluator):
    """Any valid completion of the puzzle counts."""

    question = "puzzle"

    @staticmethod
    def accepts(question: str, answer: str) -> bool:
        """Is the answer a completion of the puzzle?"""
        return sudoku.is_valid(question, answer)


class NimEvaluator(RuleEvaluator):
    """Any winning move counts, and '##' where there is none."""

    question = "position"

    @staticmethod
    def accepts(question: str, answer: str) -> bool:
        """Does the answer end in a winning move?"""
        return nim.is_winning(question, answer)


def _rows(train: Sequence[Any], test: Sequence[Any]) -> DatasetDict:
    return DatasetDict(
        {
            split: Dataset.from_list([problem._asdict() for problem in found])
            for split, found in (("train", train), ("test", test))
        }
    )
