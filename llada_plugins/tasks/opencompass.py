"""The package's tasks as OpenCompass data sets and evaluators, which need no data files.

A config names the classes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from datasets import Dataset, DatasetDict
from opencompass.datasets.base import BaseDataset
from opencompass.openicl.icl_evaluator import BaseEvaluator

from . import local_files, nim, spans, sudoku

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
    """The share of predictions, in percent, that a task's rule accepts."""

    name = "accuracy"
    question: str | None = None  # the column that is shown beside a prediction

    @staticmethod
    def accepts(row: dict[str, Any], prediction: str) -> bool:
        """The task's rule, for a row of the test set."""
        raise NotImplementedError

    def score(
        self, predictions: Sequence[str], references: Sequence[str], test_set: Dataset
    ) -> dict[str, Any]:
        """The score, and every prediction with its judgement.

        references: one right answer each, to look at.
        """
        details = [
            {
                **({} if self.question is None else {self.question: row[self.question]}),
                "pred": prediction,
                "answer": reference,
                "correct": self.accepts(row, prediction),
            }
            for row, prediction, reference in zip(test_set, predictions, references, strict=True)
        ]
        return {
            self.name: 100 * sum(detail["correct"] for detail in details) / len(details),
            "details": details,
        }


class Sudoku4Evaluator(RuleEvaluator):
    """Any valid completion of the puzzle counts."""

    question = "puzzle"

    @staticmethod
    def accepts(row: dict[str, Any], prediction: str) -> bool:
        """Is the prediction a completion of the puzzle?"""
        return sudoku.is_valid(row["puzzle"], prediction)


class NimEvaluator(RuleEvaluator):
    """Any winning move counts, and '##' where there is none."""

    question = "position"

    @staticmethod
    def accepts(row: dict[str, Any], prediction: str) -> bool:
        """Does the prediction end in a winning move?"""
        return nim.is_winning(row["position"], prediction)


class Sudoku4InfillingDataset(BaseDataset):
    """Columns: text (a solved puzzle with its second row marked), puzzle, solution."""

    @staticmethod
    def load(num: int = sudoku.DEFAULT_NUM_TEST) -> DatasetDict:
        """num: problems of the test split."""
        return _test_alone(spans.sudoku_rows(num))


class HumanEvalInfillingDataset(BaseDataset):
    """Columns: those of a released file of HumanEval-infilling, and text, with a marked span."""

    @staticmethod
    def load(data_file: str, data_dir: str | None = None, lengths: Any = None) -> DatasetDict:
        """data_file: within data_dir, else $LLADA_PLUGINS_DATA. lengths: of the span, to try."""
        (path,) = local_files.find(data_dir, data_file)
        return _test_alone(spans.read_humaneval(path, spans.lengths_of(lengths)))


class Sudoku4InfillingEvaluator(RuleEvaluator):
    """Any row that completes the puzzle counts."""

    @staticmethod
    def accepts(row: dict[str, Any], prediction: str) -> bool:
        """See RuleEvaluator."""
        return spans.completes(row["puzzle"], row["solution"], prediction)


class HumanEvalInfillingEvaluator(RuleEvaluator):
    """pass@1: prompt, prediction and suffix pass the problem's tests. EXECUTES the model's code.

    It does so where the environment says HF_ALLOW_CODE_EVAL=1, as Hugging Face's metric.
    """

    name = "pass@1"

    def score(
        self, predictions: Sequence[str], references: Sequence[str], test_set: Dataset
    ) -> dict[str, Any]:
        """As OpenCompass asks for it."""
        if os.environ.get("HF_ALLOW_CODE_EVAL") != "1":
            raise ValueError(
                "grading HumanEval-infilling executes code that the model wrote: set "
                "HF_ALLOW_CODE_EVAL=1 to permit it, in a sandbox"
            )
        return super().score(predictions, references, test_set)

    @staticmethod
    def accepts(row: dict[str, Any], prediction: str) -> bool:
        """See RuleEvaluator."""
        return spans.passes(row, prediction)


def _test_alone(rows: Sequence[dict[str, str]]) -> DatasetDict:
    """The rows as both splits, of which OpenCompass asks for train too."""
    data = Dataset.from_list(list(rows))
    return DatasetDict({"train": data, "test": data})


def _rows(train: Sequence[Any], test: Sequence[Any]) -> DatasetDict:
    return DatasetDict(
        {
            split: Dataset.from_list([problem._asdict() for problem in found])
            for split, found in (("train", train), ("test", test))
        }
    )
