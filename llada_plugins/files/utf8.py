"""Text that others wrote: read whatever its bytes are, and checked to be UTF-8."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import TextIO

ENCODING = "utf-8-sig"  # editors on Windows write a byte order mark
ERRORS = "surrogateescape"  # a byte that is not UTF-8 becomes a lone surrogate


def open_text(path: Path, newline: str | None = None) -> TextIO:
    """A file to read from, .gz or plain, in which bytes that are not UTF-8 stay for `check_text`.

    Reading a damaged .gz raises EOFError, zlib.error or gzip.BadGzipFile.
    """
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding=ENCODING, errors=ERRORS, newline=newline)
    return path.open(encoding=ENCODING, errors=ERRORS, newline=newline)


def read_text(path: Path) -> str:
    """The text of a file, in which bytes that are not UTF-8 stay for `check_text`."""
    return path.read_text(encoding=ENCODING, errors=ERRORS)


def check_text(text: str) -> None:
    r"""Raise ValueError on what no tokenizer takes and UTF-8 cannot say: a lone surrogate.

    JSON can spell one (\ud800), and a byte that is not UTF-8 is read as one. Also on what is no
    text at all.
    """
    if not isinstance(text, str):
        raise ValueError(f"a text must be a string, got {text!r}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        byte = f"byte 0x{code - 0xDC00:x}, or " if 0xDC80 <= code <= 0xDCFF else ""
        before = text[max(0, error.start - 16) : error.start]
        place = f"at character {error.start + 1}" + (f", after {before!r}" if before else "")
        raise ValueError(
            f"not UTF-8 text: {byte}lone surrogate \\u{code:x} {place}: give UTF-8 text"
        ) from None
