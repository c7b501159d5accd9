"""The tasks with exact rules, by name; the package ships a model of the same name for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from . import few_shot, nim, sudoku


class ExactTask(NamedTuple):
    """Problems without end, and a rule that judges every answer to them."""

    name: str  # of the task, and of the model that ships for it
    # split and number -> pairs of a prompt and one right answer; a third argument is the seed
    problems: Callable[..., Sequence[tuple[str, str]]]
    accepts: Callable[[str, str], bool]  # prompt, answer
    answer_length: int  # tokens

    def prompts(self, num: int, seed: int = 0) -> list[str]:
        """Of the first test problems."""
        return [prompt for prompt, _ in self.problems("test", num, seed)]


SUDOKU4 = ExactTask("sudoku4", sudoku.problems, sudoku.is_valid, sudoku.ANSWER_LENGTH)
NIM = ExactTask("nim", nim.problems, nim.is_winning, nim.ANSWER_LENGTH)
# no model ships for it: training.sft --preset few_shot makes one
FEW_SHOT = ExactTask("few_shot", few_shot.problems, few_shot.is_right, few_shot.ANSWER_LENGTH)
TASKS = {task.name: task for task in (SUDOKU4, NIM)}
