"""JSON lines: whatever is wrong with one that others wrote is a ValueError with the reason; those written here are whole or absent."""
from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

TEXT = {"encoding": "utf-8-sig", "errors": "surrogateescape"}        # how files are read: bytes that are not UTF-8 stay, for check_text


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
    return f"not JSON: {f'{error.msg} at column {error.colno}' if isinstance(error, json.JSONDecodeError) else error}"


def check_text(text: str) -> None:
    r"""Raise ValueError on what UTF-8 cannot say: a byte that was none of it, or a lone surrogate, which JSON can spell (\ud800)."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        byte = f"byte 0x{code - 0xDC00:x}, or " if 0xDC80 <= code <= 0xDCFF else ""
        raise ValueError(f"not UTF-8 text: {byte}lone surrogate \\u{code:x} at character {error.start + 1}") from None


def write_rows(rows: Iterable[NamedTuple], path: Path) -> None:
    """Write JSONL under another name in the same folder first, so that `path` is whole or absent; raises OSError that names it."""
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(row._asdict(), ensure_ascii=False) + "\n" for row in rows)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(f"{path} could not be written ({error})") from error
