"""JSON lines: whatever is wrong with one that others wrote is a ValueError with the
reason; those written here are whole or absent.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

FORM = '{"prompt": text, …}'

# how files are read: bytes that are not UTF-8 stay, for check_text
TEXT = {"encoding": "utf-8-sig", "errors": "surrogateescape"}


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file and their numbers, from 1, without blank ones."""
    with path.open(**TEXT) as lines:
        yield from ((number, line) for number, line in enumerate(lines, 1) if line.strip())


def parse(line: str) -> Any:
    """The value of a line read as TEXT."""
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


def check_text(text: str) -> None:
    r"""Raise ValueError on what UTF-8 cannot say: a byte that was none of it, or a lone
    surrogate, which JSON can spell (\ud800).
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        byte = f"byte 0x{code - 0xDC00:x}, or " if 0xDC80 <= code <= 0xDCFF else ""
        raise ValueError(
            f"not UTF-8 text: {byte}lone surrogate \\u{code:x} at character {error.start + 1}"
        ) from None


def write_rows(rows: Iterable[NamedTuple], path: Path) -> None:
    """Write JSONL under another name in the same folder first, so that `path` is whole
    or absent; raises OSError that names it.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("w", encoding="utf-8") as file:
                file.writelines(
                    json.dumps(row._asdict(), ensure_ascii=False) + "\n" for row in rows
                )
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(f"{path} could not be written ({error})") from error


def check_unicode(string: str) -> None:
    r"""Raise ValueError on what no tokenizer takes: a lone surrogate, which JSON can
    spell (\ud800) and bytes that are not UTF-8 turn into.
    """
    try:
        string.encode()
    except UnicodeEncodeError as error:
        before, found = string[max(0, error.start - 16) : error.start], string[error.start]
        raise ValueError(
            f"text is not Unicode: behind {before!r} stands {found!r}, half a character or a byte "
            "that is not UTF-8: give UTF-8 "
            "text"
        ) from None


def read_prompts(path: Path) -> list[str]:
    """The prompts of a JSONL file; raises FileNotFoundError, or ValueError naming file and line."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such data file; give a JSONL file with rows {FORM}")
    prompts = []
    for number, line in read_lines(path):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not (isinstance(row, dict) and isinstance(row.get("prompt"), str) and row["prompt"]):
            raise ValueError(f"{path}:{number}: expected {FORM}, the prompt not empty")
        try:
            check_unicode(row["prompt"])
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from None
        prompts.append(row["prompt"])
    if not prompts:
        raise ValueError(f"{path}: no rows; give a JSONL file with rows {FORM}")
    return prompts


def read_pairs(path: Path) -> list[tuple[str, str]]:
    """(prompt, completion) of every row of a JSONL file; raises FileNotFoundError, or
    ValueError naming file and line.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f'{path}: no such data file; give a JSONL file of rows {{"prompt": text, '
            f'"completion": text}}'
        )
    pairs = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            pair = (row["prompt"], row["completion"])
        except (json.JSONDecodeError, KeyError, TypeError):
            pair = (None, None)
        if not all(isinstance(string, str) and string for string in pair):
            raise ValueError(
                f'{path}:{number}: expected {{"prompt": text, "completion": text}}, both not empty'
            )
        pairs.append(pair)
    if not pairs:
        raise ValueError(f"{path}: no rows")
    return pairs
