"""4x4 sudoku: the puzzles on which the tiny model is trained and measured.

A puzzle shows 2 to 8 clues of a solved grid and often has several completions: every
one that keeps the clues counts. Train and test puzzles never meet, whatever their
number or seed: a hash of the puzzle decides to which split it belongs. So do the
puzzles of "validation", on which settings are chosen. (Puzzles, not grids: all 288
solved grids occur in each.) The random streams come from `random.Random`, so they are
the same on every platform.
"""

from __future__ import annotations

import functools
import itertools
import random
from typing import NamedTuple

from .splits import Split, check_split, split_of

DEFAULT_NUM_TEST = 500
ANSWER_LENGTH = 16
MIN_CLUES, MAX_CLUES = 2, 8


class SudokuProblem(NamedTuple):
    """A puzzle and one completion."""

    puzzle: str  # as the model's prompt, e.g. "..1.4...........=": row by row, '.' unknown
    solution: str  # 16 digits


@functools.cache
def solutions() -> tuple[str, ...]:
    """All 288 solved grids, each 16 digits row by row, sorted."""
    rows = ["".join(row) for row in itertools.permutations("1234")]
    halves = [
        upper + lower
        for upper, lower in itertools.product(rows, repeat=2)
        if set(upper[:2]) == set(lower[2:])  # else a digit is in one of their two boxes twice
    ]
    grids = (top + bottom for top, bottom in itertools.product(halves, repeat=2))
    return tuple(grid for grid in grids if _solved(grid))


def problems(split: Split, num: int, seed: int = 0) -> list[SudokuProblem]:
    """`num` problems drawn independently: a random solved grid, 2-8 clues at random places.

    A longer list starts with the shorter one.
    """
    check_split(split)
    stream = random.Random(f"sudoku4 {split} {seed}")
    drawn: list[SudokuProblem] = []
    while len(drawn) < num:
        grid = stream.choice(solutions())
        clues = set(stream.sample(range(16), stream.randint(MIN_CLUES, MAX_CLUES)))
        puzzle = "".join(digit if cell in clues else "." for cell, digit in enumerate(grid)) + "="
        if split_of(puzzle) == split:
            drawn.append(SudokuProblem(puzzle, grid))
    return drawn


def is_valid(puzzle: str, completion: str) -> bool:
    """Whether `completion`, stripped, is 16 digits that solve the grid and keep the clues."""
    answer = completion.strip()
    return (
        len(answer) == ANSWER_LENGTH
        and _solved(answer)
        and all(clue in (".", digit) for clue, digit in zip(puzzle, answer))
    )


def _solved(grid: str) -> bool:
    rows = [grid[4 * row : 4 * row + 4] for row in range(4)]
    columns = [grid[column::4] for column in range(4)]
    boxes = [grid[corner : corner + 2] + grid[corner + 4 : corner + 6] for corner in (0, 2, 8, 10)]
    return all(sorted(unit) == ["1", "2", "3", "4"] for unit in rows + columns + boxes)
