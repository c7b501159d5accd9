"""Compressed lines of text that several processes append to, and that survive a killed one.

Each line is a gzip member of its own, written in one call under a lock: what zcat reads is
the lines. A member that a killed process left unfinished is passed over when the file is
read, and so costs no other line.
"""

from __future__ import annotations

import fcntl
import os
import zlib
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import NamedTuple

# gzip's header, with an extra field: these 20 bytes do not come about by chance within
# compressed data, and so tell where a line begins.
EXTRA = b"LP\x04\x00line"
HEAD = b"\x1f\x8b\x08\x04\x00\x00\x00\x00\x00\xff" + len(EXTRA).to_bytes(2, "little") + EXTRA
LEVEL = 4  # of 1 to 9; 6 takes twice as long for 4 % fewer bytes of a trajectory


def member(line: str) -> bytes:
    """A line, without its newline, as a gzip member."""
    content = f"{line}\n".encode()
    packer = zlib.compressobj(LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
    packed = packer.compress(content) + packer.flush()
    ends = (
        zlib.crc32(content).to_bytes(4, "little"),
        (len(content) & 0xFFFFFFFF).to_bytes(4, "little"),
    )
    return HEAD + packed + b"".join(ends)


def append(path: Path, line: str) -> None:
    """Add a line; OSError that names the file where that fails, which then ends as before."""
    found = member(line)
    with _opened(path) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        before = os.fstat(file.fileno()).st_size
        try:
            written = file.write(found)
            if written != len(found):
                raise OSError(f"only {written} of {len(found)} bytes were written")
        except OSError as error:
            os.ftruncate(file.fileno(), before)
            raise OSError(f"{path} could not be written ({error})") from error


def _opened(path: Path) -> FileIO:
    try:
        return path.open("ab", buffering=0)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("ab", buffering=0)


class Counted(NamedTuple):
    """How many lines a file had when it was looked at last."""

    path: Path
    inode: int
    size: int  # bytes
    lines: int  # unfinished ones included


def count(path: Path, before: Counted | None = None) -> Counted:
    """How many lines a file has, 0 where there is none.

    before: what was found last; of the same file only what was appended since is read.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        return Counted(path, 0, 0, 0)
    begin = lines = 0
    if before and before[:2] == (path, found.st_ino) and before.size <= found.st_size:
        # a beginning of a line that was cut in two is met again, a whole one is not
        begin, lines = max(0, before.size - len(HEAD) + 1), before.lines
    with path.open("rb") as file:
        file.seek(begin)
        content = file.read()
    return Counted(path, found.st_ino, begin + len(content), lines + content.count(HEAD))


def read(path: Path) -> Iterator[str | None]:
    """The lines of a file in order, None for whatever in it is not a whole line."""
    content = path.read_bytes()
    pieces = content.split(HEAD)
    if pieces[0]:
        yield None
    for piece in pieces[1:]:
        yield from _line(HEAD + piece)


def _line(found: bytes) -> Iterator[str | None]:
    """The line of a member, and None for what is wrong with it or comes after it."""
    unpacker = zlib.decompressobj(zlib.MAX_WBITS | 16)
    try:
        content = unpacker.decompress(found)
    except zlib.error:
        content = b""
    if unpacker.eof:
        yield content.decode(errors="replace").removesuffix("\n")
    if not unpacker.eof or unpacker.unused_data:
        yield None
