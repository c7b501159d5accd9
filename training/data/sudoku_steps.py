"""4x4 sudoku solutions row by row, with the exact process reward.

They come with mistakes to learn from, or are the tiny model's own answers. A row is
right while some solved grid keeps the puzzle's clues and all rows so far; after the
first wrong row none is right.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from llada_plugins.models.folder import SHIPPED
from llada_plugins.models.loading import load_model
from llada_plugins.models.tokenizer import load_tokenizer
from llada_plugins.sampling.config import SamplerConfig
from llada_plugins.sampling.generate import generate
from llada_plugins.sampling.step import Step
from llada_plugins.tasks import sudoku
from llada_plugins.tasks.splits import Split

from .steps import StepRow

RIGHT_SHARE = 0.75  # of rows drawn without a mistake: two thirds of all labels are then True
DECODED_TOGETHER = 100  # puzzles


class Answer(NamedTuple):
    """An answer of the tiny model, labelled by the rule.

    confidence: the model's mean probability of each row's digits.
    """

    row: StepRow
    confidence: list[float]


def completions(puzzle: str) -> list[str]:
    """The solved grids that keep the puzzle's clues."""
    kept = -1  # a bit for each solved grid, all set
    for cell, clue in enumerate(puzzle[:16]):
        if clue != ".":
            kept &= _grids_with(cell, clue)
    return [grid for number, grid in enumerate(sudoku.solutions()) if kept >> number & 1]


def labels(puzzle: str, rows: Sequence[str]) -> list[bool]:
    """Whether clues and rows so far extend to a solved grid, after each row."""
    left, found = completions(puzzle), []
    for number, row in enumerate(rows):
        left = _with_row(left, number, row)
        found.append(bool(left))
    return found


def solutions_in_steps(split: Split, num: int, seed: int = 0) -> list[StepRow]:
    """`num` labelled solutions of puzzles drawn from the split, most with mistakes.

    A longer list starts with the shorter one.
    """
    stream = random.Random(f"sudoku4 steps {split} {seed}")
    found = []
    for problem in sudoku.problems(split, num, seed):
        rows = _rows(problem.puzzle, stream)
        found.append(StepRow(problem.puzzle, rows, labels(problem.puzzle, rows)))
    return found


def answers(puzzles: Sequence[str], temperature: float, model: str = "sudoku4") -> list[Answer]:
    """A shipped model's answers, row by row in one forward each.

    The mistakes are those of decoding four digits at once.
    """
    backbone, tokenizer = load_model(SHIPPED[model], device="cpu"), load_tokenizer(SHIPPED[model])
    sampler = SamplerConfig(gen_length=16, block_length=4, steps=4, temperature=temperature)
    found: list[Answer] = []
    for first in range(0, len(puzzles), DECODED_TOGETHER):
        batch = puzzles[first : first + DECODED_TOGETHER]
        record = _Confidence(len(batch))
        prompts = [tokenizer.encode(puzzle) for puzzle in batch]
        samples = generate(backbone, prompts, sampler, on_step=record)
        for puzzle, sample, values in zip(batch, samples, record.found):
            ids = [sample.answer[start : start + 4] for start in range(0, 16, 4)]
            rows = [str(tokenizer.decode(row)) for row in ids]
            found.append(Answer(StepRow(puzzle, rows, labels(puzzle, rows)), values))
    return found


class _Confidence:
    """Keeps the mean probability of the tokens that each step unmasks, by row of the batch."""

    def __init__(self, num_rows: int) -> None:
        self.found: list[list[float]] = [[] for _ in range(num_rows)]

    def __call__(self, step: Step) -> None:
        means = step.score.masked_fill(~step.kept, torch.nan).nanmean(-1)
        for row, value in zip(step.rows.tolist(), means.tolist()):
            self.found[row].append(value)


@functools.cache
def _grids_with(cell: int, digit: str) -> int:
    """A bit for each solved grid."""
    return sum(1 << number for number, grid in enumerate(sudoku.solutions()) if grid[cell] == digit)


def _row_of(grid: str, number: int) -> str:
    return grid[4 * number : 4 * number + 4]


def _with_row(grids: list[str], number: int, row: str) -> list[str]:
    """The grids that have this row there; none has an empty one."""
    return [grid for grid in grids if row and _row_of(grid, number) == row]


def _rows(puzzle: str, stream: random.Random) -> list[str]:
    left = completions(puzzle)
    rows: list[str] = []
    for number in range(4):
        candidates = [_row_of(grid, number) for grid in left]
        row = stream.choice(candidates)
        if stream.random() >= RIGHT_SHARE:
            row = stream.choice(MISTAKES)(row, candidates, stream)
        rows.append(row)
        # after a mistake, rows go on as if it had not been made
        left = _with_row(left, number, row) or left
    return rows


# --- mistakes: made of a right row, all right rows and a stream; by chance one may be right


def _apart(row: str, candidates: list[str], stream: random.Random) -> str:
    """Each digit from a right row of its own.

    A model does so that fills the row at once from the digits' own probabilities.
    """
    return "".join(stream.choice(candidates)[cell] for cell in range(4))


def _digits(row: str, candidates: list[str], stream: random.Random) -> str:
    """Any digits."""
    return "".join(stream.choice("1234") for _ in range(4))


MISTAKES: tuple[Callable[[str, list[str], random.Random], str], ...] = (
    _apart,
    _digits,
    _digits,
    _digits,
)
