"""Files and folders that appear whole or not at all, also where the power fails.

A new name may reach the disk before what it names. So contents are forced onto the disk
before they get their name, and the folder that holds the name after that.
"""

from __future__ import annotations

import errno
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
        for path in (*partial.rglob("*"), partial):
            if not path.is_symlink():
                force(path)
        partial.replace(folder.absolute())
        force(folder.absolute().parent)
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
    killed. It is on the disk when the block has ended, whatever the machine does next.
    """
    partial = path.with_name(f".{path.name}")
    try:
        yield partial
        force(partial)
        partial.replace(path)
        force(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Write a file of `whole_file`."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def force(path: Path) -> None:
    """Wait until a file's contents, or a folder's names, are on the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    except OSError as error:
        # some network file systems have no such call for folders: they write names at once
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(opened)
