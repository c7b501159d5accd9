"""What may be asked of the models that come with the package."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from llada_plugins.models.folder import SHIPPED
from llada_plugins.tasks import nim, spans, sudoku

INFILL = "infill"  # the mode in which marked spans are filled in


def _sudoku(mode: str) -> str:
    if mode == INFILL:
        return spans.sudoku_rows(1)[0]["text"]
    return sudoku.problems("test", 1)[0].puzzle


def _nim(mode: str) -> str:
    (problem,) = nim.problems("test", 1)
    if mode == INFILL:  # the move alone
        return spans.framed(problem.position + problem.answer[: nim.PLACES], "", [2])
    return problem.position


# by the folder of the model, what a button says and the text for a mode
EXAMPLES: dict[Path, tuple[str, Callable[[str], str]]] = {
    SHIPPED["sudoku4"]: ("Example: a sudoku of 4 by 4", _sudoku),
    SHIPPED["nim"]: ("Example: a position of Nim", _nim),
}
