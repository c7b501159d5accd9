"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A new folder that takes the place of `folder` when the block ends well.

    Otherwise nothing is left. Refuses a folder with contents.
    """
    check_empty(folder)
    folder.absolute().parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.absolute().parent))
    try:
        yield partial
        partial.chmod(0o755)  # mkdtemp makes it private
        partial.replace(folder.absolute())
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_empty(folder: Path) -> None:
    """Raise ValueError where `folder` is a file or holds anything."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(
            f"output {folder} is {'not empty' if folder.is_dir() else 'a file'}: give another "
            "folder, or remove it"
        )


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A name for a new file that takes the place of `path` when the block ends well.

    Otherwise nothing of it is left, and `path` is as it was, also where the process is
    killed.
    """
    partial = path.with_name(f".{path.name}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_whole(path: Path, text: str, *, durable: bool = False) -> None:
    """Write a file that appears whole or not at all.

    durable: it is on the disk when this returns, whatever the machine does next.
    """
    with whole_file(path) as partial, partial.open("w", encoding="utf-8") as file:
        file.write(text)
        if durable:
            file.flush()
            os.fsync(file.fileno())
