"""Questions with mathematical answers, and the one rule that judges them: math-verify's.

math-verify bounds its work by an alarm signal: grade in the main thread.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from llada_plugins.files.jsonl import each_row

# the wording of Qwen and OpenCompass
INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."
QUESTION_COLUMNS = ("question", "problem")


class Question(NamedTuple):
    """A row of a data set."""

    question: str
    answer: str  # LaTeX, bare or in \boxed{}; X of a solution ending in "#### X" (GSM8K)


class Grade(NamedTuple):
    """The judgement of one response."""

    correct: bool
    answer: str  # as extracted from the response, "" where it has none


def read(path: Path) -> list[Question]:
    """The questions of a .csv, .jsonl or .json file.

    It has the columns question (or problem) and answer; others are ignored.
    """
    try:
        questions = list(_questions(path))
    except (csv.Error, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: {error}") from None
    if not questions:
        raise ValueError(f"{path} holds no questions")
    return questions


def asked(question: str, instruction: str = INSTRUCTION) -> str:
    """What the model is told, before any chat template."""
    return f"{question}\n{instruction}" if instruction else question


def check_grader() -> None:
    """Raise ImportError with the install line where math-verify is absent."""
    try:
        import math_verify  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "grading mathematics needs math-verify: pip install 'llada-plugins[grading]'"
        ) from error


def check_references(questions: list[Question]) -> None:
    """Raise ValueError on a reference that math-verify cannot read.

    Every answer to it would count as wrong.
    """
    for number, question in enumerate(questions, 1):
        if not _reference(question.answer):
            raise ValueError(
                f"row {number}: math-verify reads no answer in {question.answer!r}: give LaTeX, "
                f"bare or in \\boxed{{}}"
            )


def grade(reference: str, response: str) -> Grade:
    """Whether the boxed or last answer of the response equals the reference mathematically."""
    check_grader()
    from math_verify import parse, verify

    found = parse(response)  # expressions, then the text they were read from
    return Grade(bool(verify(_reference(reference), found)), str(found[-1]) if found else "")


def _reference(answer: str) -> list[Any]:
    from math_verify import parse

    return parse(f"${answer}$")


def _questions(path: Path) -> Iterator[Question]:
    if path.suffix == ".jsonl":
        yield from each_row(path, _question)
        return
    for number, row in enumerate(_rows(path), 1):
        try:
            yield _question(row)
        except ValueError as error:
            raise ValueError(f"{path}, row {number}: {error}") from None


def _rows(path: Path) -> list[Any]:
    # spreadsheets write a byte order mark
    with path.open(encoding="utf-8-sig", newline="") as file:
        if path.suffix == ".csv":
            return list(csv.DictReader(file))
        if path.suffix == ".json" and isinstance(rows := json.load(file), list):
            return rows
    raise ValueError(f"{path} must be a .csv, a .jsonl or a .json file that holds a list")


def _question(row: Any) -> Question:
    if not isinstance(row, dict):
        raise ValueError("not an object with the columns question (or problem) and answer")
    column = next((name for name in QUESTION_COLUMNS if name in row), "question")
    for name in (column, "answer"):
        if name not in row:
            raise ValueError(
                f"no column {name!r}; there are {', '.join(map(str, row))}; needed are question "
                "(or problem) and answer"
            )
        if row[name] is None or not str(row[name]).strip():
            raise ValueError(f"{name} is empty")
    return Question(str(row[column]), _final(str(row["answer"])))


def _final(answer: str) -> str:
    """What follows #### in the last line, if it begins so.

    math-verify would prefer what "answer" precedes.
    """
    found = re.search(r"^####\s*(\S.*)\Z", answer.rstrip(), re.MULTILINE)
    return found[1] if found else answer
