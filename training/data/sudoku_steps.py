"""4x4 sudoku solutions row by row: the exact process reward, mistakes to learn from,
and the tiny model's own answers to be judged on.

A row is right while some solved grid keeps the puzzle's clues and all rows so far;
after the first wrong row none is right.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch

from llada_plugins.models.folder import SHIPPED
from llada_plugins.models.loading import load_model
from llada_plugins.models.text import load_tokenizer
from llada_plugins.sampling.config import SamplerConfig
from llada_plugins.sampling.generate import generate
from llada_plugins.sampling.sampler import Step
from llada_plugins.tasks import sudoku

from .steps import StepRow

RIGHT_SHARE = 0.75  # of rows drawn without a mistake: two thirds of all labels are then True
DECODED_TOGETHER = 100  # puzzles


class Answer(NamedTuple):
    """An answer of the tiny model, labelled by the rule, with the model's mean
    probability of each row's digits.
    """

    row: StepRow
    confidence: list[float]


def completions(puzzle: str) -> list[str]:
    """The solved grids that keep the puzzle's clues."""
    kept = functools.reduce(
        int.__and__,
        (_grids_with(cell, clue) for cell, clue in enumerate(puzzle[:16]) if clue != "."),
        -1,
    )
    return [grid for number, grid in enumerate(sudoku.solutions()) if kept >> number & 1]


def labels(puzzle: str, rows: Sequence[str]) -> list[bool]:
    """Whether clues and rows so far extend to a solved grid, after each row."""
    left, found = completions(puzzle), []
    for number, row in enumerate(rows):
        left = _with_row(left, number, row)
        found.append(bool(left))
    return found


def solutions_in_steps(split: Literal["train", "test"], num: int, seed: int = 0) -> list[StepRow]:
    """`num` labelled solutions of puzzles drawn from the split, most with mistakes. A
    longer list starts with the shorter one.
    """
    stream = random.Random(f"sudoku4 steps {split} {seed}")
    return [
        StepRow(puzzle, rows := _rows(puzzle, stream), labels(puzzle, rows))
        for puzzle, _ in sudoku.problems(split, num, seed)
    ]


def answers(puzzles: Sequence[str], temperature: float, model: str = "sudoku4") -> list[Answer]:
    """A shipped model's answers, row by row in one forward each: the mistakes are those
    of decoding four digits at once.
    """
    backbone, tokenizer = load_model(SHIPPED[model], device="cpu"), load_tokenizer(SHIPPED[model])
    sampler = SamplerConfig(gen_length=16, block_length=4, steps=4, temperature=temperature)
    found: list[Answer] = []
    for first in range(0, len(puzzles), DECODED_TOGETHER):
        batch = puzzles[first : first + DECODED_TOGETHER]
        confidence: list[list[float]] = [[] for _ in batch]

        def record(step: Step) -> None:
            for row, value in zip(
                step.rows.tolist(),
                step.score.masked_fill(~step.kept, torch.nan).nanmean(-1).tolist(),
            ):
                confidence[row].append(value)

        samples = generate(
            backbone, [tokenizer.encode(puzzle) for puzzle in batch], sampler, on_step=record
        )
        for puzzle, sample, values in zip(batch, samples, confidence):
            rows = [tokenizer.decode(sample.answer[start : start + 4]) for start in range(0, 16, 4)]
            found.append(Answer(StepRow(puzzle, rows, labels(puzzle, rows)), values))
    return found


@functools.cache
def _grids_with(cell: int, digit: str) -> int:
    """A bit for each solved grid."""
    return sum(1 << number for number, grid in enumerate(sudoku.solutions()) if grid[cell] == digit)


def _with_row(grids: list[str], number: int, row: str) -> list[str]:
    return [grid for grid in grids if grid[4 * number : 4 * number + 4] == row != ""]


def _rows(puzzle: str, stream: random.Random) -> list[str]:
    left, rows = completions(puzzle), []
    for number in range(4):
        candidates = [grid[4 * number : 4 * number + 4] for grid in left]
        draw = stream.choice(candidates)
        rows.append(
            draw
            if stream.random() < RIGHT_SHARE
            else stream.choice(MISTAKES)(draw, candidates, stream)
        )
        # behind a mistake, rows go on as if it had not been made
        left = _with_row(left, number, rows[-1]) or left
    return rows


# --- mistakes: from a right row, all right rows and a stream; the result may by chance be right


def _apart(row: str, candidates: list[str], stream: random.Random) -> str:
    """Each digit from a right row of its own: what a model does that fills the row at
    once from the digits' own probabilities.
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
