"""Tasks whose prompts ship in the package, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from . import nim, sudoku


class TaskPrompts(NamedTuple):
    """Prompts of a task that ships with the package."""

    prompts: Callable[[int, int], list[str]]  # number, seed
    answer_length: int


TASKS = {
    "sudoku4": TaskPrompts(
        lambda num, seed: [problem.puzzle for problem in sudoku.problems("test", num, seed)], 16
    ),
    "nim": TaskPrompts(
        lambda num, seed: [problem.position for problem in nim.problems("test", num, seed)],
        nim.ANSWER_LENGTH,
    ),
}
