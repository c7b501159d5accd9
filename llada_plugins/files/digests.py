"""Digests of files: of weights in a form that is cheap, or whole and remembered."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from .atomic import write_whole

SAMPLE = 1024  # bytes that are read at the beginning, in the middle and at the end of a tensor
CHUNK = 1 << 22  # bytes read at once
SHORT = 16  # hex digits of a digest that no user compares by hand


class WeightsDigest(NamedTuple):
    """What tells the weights of a folder from others; it does not depend on their sharding.

    headers: SHA-256 of every tensor's name, dtype and shape, sorted by name. sampled: of the
    same with SAMPLE bytes at the beginning, in the middle and at the end of each; a change
    elsewhere in a tensor is not seen. full: of every byte of every file, where that is asked.
    """

    tensors: int
    bytes: int
    headers: str
    sampled: str
    full: str | None


def weights_digest(folder: Path, *, full: bool = False) -> WeightsDigest:
    """Of the safetensors files of a folder; ValueError on one that is none."""
    files = sorted(folder.glob("*.safetensors"))
    entries = sorted(entry for path in files for entry in _entries(path))
    headers, sampled = hashlib.sha256(), hashlib.sha256()
    for header, pieces, _ in entries:
        headers.update(header)
        sampled.update(header + pieces)
    return WeightsDigest(
        tensors=len(entries),
        bytes=sum(size for _, _, size in entries),
        headers=headers.hexdigest()[:SHORT],
        sampled=sampled.hexdigest()[:SHORT],
        full=_of_all(files) if full else None,
    )


def text_digest(paths: Iterable[Path]) -> str | None:
    """Of the names and contents of small files; None where there is none of them."""
    found = hashlib.sha256()
    present = [path for path in paths if path.is_file()]
    for path in present:
        found.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()[:SHORT] if present else None


def file_digest(path: Path) -> str:
    """SHA-256 of a whole file, remembered by its path, size and time of change."""
    status = path.stat()
    key = f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"
    memory = _memory()
    known = _remembered(memory)
    if key not in known:
        found = hashlib.sha256()
        with path.open("rb") as file:
            while piece := file.read(CHUNK):
                found.update(piece)
        known = {**_remembered(memory), key: found.hexdigest()}
        memory.parent.mkdir(parents=True, exist_ok=True)
        write_whole(memory, json.dumps(known))
    return known[key]


def _entries(path: Path) -> Iterator[tuple[bytes, bytes, int]]:
    """Header, sampled bytes and size of each tensor of a safetensors file."""
    with path.open("rb") as file:
        header, start = _header(path, file)
        for name, tensor in header.items():
            if name == "__metadata__":
                continue
            begin, end = tensor["data_offsets"]
            size = end - begin
            pieces = b""
            for place in sorted({0, max(0, size // 2 - SAMPLE // 2), max(0, size - SAMPLE)}):
                file.seek(start + begin + place)
                pieces += file.read(min(SAMPLE, size - place))
            yield f"{name} {tensor['dtype']} {tensor['shape']}\n".encode(), pieces, size


def _header(path: Path, file: Any) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file, and where its tensors begin."""
    try:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > os.fstat(file.fileno()).st_size:
            raise ValueError
        return dict(json.loads(file.read(length))), 8 + length
    except (struct.error, ValueError):
        raise ValueError(f"{path} is not a readable safetensors file") from None


def _of_all(files: Iterable[Path]) -> str:
    whole = "".join(f"{path.name} {file_digest(path)}\n" for path in files)
    return hashlib.sha256(whole.encode()).hexdigest()


def _memory() -> Path:
    """Where digests of whole files are remembered."""
    return Path("~/.cache/llada_plugins/sha256.json").expanduser()


def _remembered(memory: Path) -> dict[str, str]:
    try:
        return dict(json.loads(memory.read_text(encoding="utf-8")))
    except (OSError, ValueError):  # absent, or torn: it is only a memory
        return {}
