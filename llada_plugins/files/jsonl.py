"""JSON lines: read so that a bad one is refused by file and line, written whole or not at all."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from .atomic import whole_file
from .utf8 import check_text, open_text

PROMPTS = '{"prompt": text, …}'
PAIRS = '{"prompt": text, "completion": text}'

Row = TypeVar("Row")


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file, .gz or plain, and their numbers from 1, without blank ones.

    ValueError that names the file where it is a damaged .gz.
    """
    try:
        with open_text(path) as lines:
            yield from ((number, line) for number, line in enumerate(lines, 1) if line.strip())
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}: no whole gzip file ({error}): copy it again") from None


def parse(line: str) -> Any:
    """The value of a line; ValueError with the reason where it is none."""
    check_text(line)
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(reason(error)) from None


def reason(error: Exception) -> str:
    """Why json.loads failed."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error.msg} at column {error.colno}"
    return f"not JSON: {error}"


def each_row(path: Path, read: Callable[[Any], Row]) -> Iterator[Row]:
    """What `read` makes of the value of every line; its ValueErrors get file and line."""
    for number, line in read_lines(path):
        try:
            row = read(parse(line))
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from None
        yield row


def read_rows(path: Path, read: Callable[[Any], Row], form: str) -> list[Row]:
    """All of `each_row`; raises FileNotFoundError, or ValueError where there is none.

    form: what a row looks like, for messages.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such data file; give a JSONL file with rows {form}")
    rows = list(each_row(path, read))
    if not rows:
        raise ValueError(f"{path}: no rows; give a JSONL file with rows {form}")
    return rows


def read_prompts(path: Path) -> list[str]:
    """The prompts of a JSONL file; raises FileNotFoundError, or ValueError naming file and line."""
    return read_rows(path, _prompt, PROMPTS)


def read_pairs(path: Path) -> list[tuple[str, str]]:
    """(prompt, completion) of every row of a JSONL file; raises as `read_prompts` does."""
    return read_rows(path, _pair, PAIRS)


def _prompt(row: Any) -> str:
    prompt = row.get("prompt") if isinstance(row, dict) else None
    if not isinstance(prompt, str) or not prompt:
        raise ValueError(f"expected {PROMPTS}, the prompt not empty")
    check_text(prompt)
    return prompt


def _pair(row: Any) -> tuple[str, str]:
    if not isinstance(row, dict):
        row = {}
    prompt, completion = row.get("prompt"), row.get("completion")
    for text in (prompt, completion):
        if not isinstance(text, str) or not text:
            raise ValueError(f"expected {PAIRS}, both not empty")
        check_text(text)
    return prompt, completion


def write_rows(rows: Iterable[NamedTuple], path: Path) -> None:
    """Write JSONL that is whole or absent; raises OSError that names `path`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as partial, partial.open("w", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(row._asdict(), ensure_ascii=False) + "\n")
    except OSError as error:
        raise OSError(f"{path} could not be written ({error})") from error
