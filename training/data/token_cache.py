"""Tokenised data on the disk, whole or absent, which any run with the same data finds again.

Its name is a digest of all that it is made of. Not for what the tokens are: corpus.py
keeps a stream of documents, rows.py rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from llada_plugins.files.atomic import whole_folder


def place(cache: Path, made_of: Sequence[Any]) -> Path:
    """The folder in `cache` of what is made of these, whether it is there or not."""
    return cache / hashlib.blake2b(repr(list(made_of)).encode(), digest_size=12).hexdigest()


def kept(
    cache: Path,
    made_of: Sequence[Any],
    write: Callable[[Path], None],
    option: str = "--token_cache",
) -> Path:
    """The folder in `cache` that `write` has filled; it is called if there is none yet.

    made_of: all that it depends on, data and tokenizer by content, as values whose repr
    tells them apart. Raises OSError that names cache, and the option that gave it.
    """
    folder = place(cache, made_of)
    if folder.is_dir():
        return folder
    try:
        with whole_folder(folder) as partial:
            write(partial)
    except OSError as error:
        if not folder.is_dir():  # else another run has put it there meanwhile
            raise OSError(
                f"tokens could not be kept in {cache} ({error}): give another {option}"
            ) from error
    return folder


def digest(files: Sequence[Path]) -> str:
    """Of the files' contents, and of their suffixes, which say how they are read."""
    found = hashlib.blake2b(digest_size=16)
    for file in files:
        found.update(f"{file.suffix} {file.stat().st_size} ".encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                found.update(block)
    return found.hexdigest()
