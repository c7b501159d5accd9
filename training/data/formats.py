"""Public data formats as dialogues: one function a format."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from llada_plugins.files.jsonl import parse, reason
from llada_plugins.files.utf8 import check_text, read_text

from . import dialogue
from .row_keys import check_row


class Row(NamedTuple):
    """A training row of text."""

    prompt: str
    completion: str


class Dialogue(NamedTuple):
    """A training row of turns."""

    messages: list[dialogue.Message]


class Skip(NamedTuple):
    """A row that did not fit."""

    place: str  # FILE:LINE, of a JSON array FILE: row NUMBER, both from 1
    reason: str


def sharegpt(row: dict[str, Any]) -> Dialogue:
    """ShareGPT: the conversation.

    It begins with the row's system text and ends with the chosen answer of a preference
    pair, where it has them.
    """
    return Dialogue(dialogue.read_row("conversations", row))


def messages(row: dict[str, Any]) -> Dialogue:
    """OpenAI's fine-tuning form; system text and chosen answer as above."""
    return Dialogue(dialogue.read_row("messages", row))


def prompt_completion(row: dict[str, Any]) -> Row:
    """Prompts and completions as they are."""
    return Row(_text(row, "prompt"), _text(row, "completion"))


def alpaca(row: dict[str, Any]) -> Row:
    """Alpaca: the instruction, and below it the input if it has one."""
    given = _text(row, "input") if row.get("input") else ""
    return Row(_text(row, "instruction") + (f"\n\n{given}" if given else ""), _text(row, "output"))


def problem_solution(row: dict[str, Any]) -> Row:
    """s1K, MATH and MATH-500: the problem and its worked solution."""
    return Row(_text(row, "problem"), _text(row, "solution"))


def gsm8k(row: dict[str, Any]) -> Row:
    """GSM8K: the question and its answer.

    Calculator marks and the final "#### number" stay as published.
    """
    return Row(_text(row, "question"), _text(row, "answer"))


def opc(row: dict[str, Any]) -> Row:
    """OpenCoder's stage-2 instruction sets."""
    return Row(_text(row, "instruction"), _text(row, "output"))


FORMATS: dict[str, Callable[[dict[str, Any]], Row | Dialogue]] = {
    "sharegpt": sharegpt,
    "messages": messages,
    "prompt_completion": prompt_completion,
    "alpaca": alpaca,
    "s1k": problem_solution,
    "math": problem_solution,
    "math500": problem_solution,
    "gsm8k": gsm8k,
    "opc": opc,
}
# of row_keys.ROW_KEYS, by format
HONOURED = {"sharegpt": ("system", "chosen"), "messages": ("system", "chosen")}


def as_dialogue(row: Row | Dialogue) -> Dialogue:
    """A question and its answer as a dialogue of one turn each."""
    if isinstance(row, Dialogue):
        return row
    return Dialogue(
        [{"role": "user", "content": row.prompt}, {"role": "assistant", "content": row.completion}]
    )


Placed = Iterator[tuple[str, Any]]  # (place, row); of what cannot be read, a ValueError


def read_rows(path: Path) -> Placed:
    """(place, row) of the rows of a file or of a folder's files.

    Of what cannot be read, the ValueError in the row's place.

    Raises FileNotFoundError, or ValueError for parquet and a broken JSON array.
    """
    if path.is_dir():
        files = sorted([*path.rglob("*.json"), *path.rglob("*.jsonl")])
        if not files:
            raise FileNotFoundError(f"{path}: no .json or .jsonl file in this folder")
        for file in files:
            yield from read_rows(file)
        return
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file; give a JSONL file, a JSON array or a folder of such"
        )
    text = read_text(path)
    if text.startswith("PAR1"):
        raise ValueError(f"{path}: not UTF-8 text but parquet: export it as JSONL first")
    try:
        whole = json.loads(text)  # of JSONL it fails after the first line
    except (ValueError, RecursionError) as error:
        told = _broken_whole(path, text, error)
        yield from told if told else _lines(path, text)
        return
    if isinstance(whole, list):
        yield from ((f"{path}: row {number}", row) for number, row in enumerate(whole, 1))
    else:
        yield f"{path}:1", whole


def _broken_whole(path: Path, text: str, error: Exception) -> list[tuple[str, Any]]:
    """What is told of a file that is one JSON value and cannot be read; nothing of JSONL.

    Raises ValueError of an array, in which no row can be told from the next.
    """
    first = text.lstrip().partition("\n")[0].rstrip()
    place = f"{path}:{getattr(error, 'lineno', 1)}"
    if first.startswith("[") and not first.endswith("]"):
        raise ValueError(f"{place}: a JSON array that cannot be read: {reason(error)}") from None
    if first.endswith(("{", ",")):  # one object on many lines
        return [(place, ValueError(reason(error)))]
    return []


def _lines(path: Path, text: str) -> Placed:
    # splitlines would cut at U+2028 inside strings
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield f"{path}:{number}", parse(line)
            except ValueError as error:
                yield f"{path}:{number}", error


def convert(
    path: Path, name: str, *, chat: bool = False, strict: bool = False
) -> tuple[list[Row | Dialogue], list[Skip]]:
    """The rows of `path` in format `name`, and those that were skipped.

    Together they are all rows of the file.

    chat: all as dialogues. strict: raise ValueError at the first bad row instead of
    skipping it.
    """
    rows: list[Row | Dialogue] = []
    skipped: list[Skip] = []
    for place, raw in read_rows(path):
        try:
            row = _converted(raw, name)
            rows.append(as_dialogue(row) if chat else row)
        except ValueError as error:
            if strict:
                raise ValueError(f"{place}: {error}") from None
            skipped.append(Skip(place, str(error)))
    if not rows:
        first = f" (first: {skipped[0].place}: {skipped[0].reason})" if skipped else ""
        raise ValueError(f"{path}: no row fits --format {name}{first}")
    return rows, skipped


def _converted(raw: Any, name: str) -> Row | Dialogue:
    """A row of a file in format `name`; ValueError where it does not fit."""
    if isinstance(raw, ValueError):
        raise raw
    if not isinstance(raw, dict):
        raise ValueError(f"expected an object, found {type(raw).__name__}")
    check_row(raw, HONOURED.get(name, ()))
    row = FORMATS[name](raw)
    texts = [turn["content"] for turn in row.messages] if isinstance(row, Dialogue) else row
    for text in texts:
        check_text(text)
    return row


def _text(row: dict[str, Any], field: str) -> str:
    value = row.get(field)
    if not isinstance(value, str):
        found = f"keys {', '.join(sorted(row)) or 'none'}"
        if field in row:
            found = type(value).__name__
        raise ValueError(f"{field!r} must be text, found {found}")
    if not value.strip():
        raise ValueError(f"{field!r} is empty")
    return value
