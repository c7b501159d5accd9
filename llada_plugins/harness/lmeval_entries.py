"""The entries of an lm-eval --use_cache file: checked, read without code, written to stay.

lm-eval keeps them with sqlitedict: a row of SQLite each, its value pickled, and SQLite told
not to wait for the disk, so that a power failure may leave no database behind it.
"""

from __future__ import annotations

import io
import pickle
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from threading import Lock
from typing import Any

from sqlitedict import SqliteDict

from llada_plugins.files.background import Background

AT_ONCE = 256  # entries of a statement: old SQLite takes 999 values
REMEDY = "give another file, or move this one away and its answers are decoded again"


def check_file(path: Path) -> None:
    """Raise ValueError where a file is no whole database, OSError where it cannot be used.

    None there is right, and so is an empty one.
    """
    if not path.exists():
        return
    try:
        # read-write: what a killed run left unfinished is taken back first
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True)) as database:
            [[said], *_] = database.execute("pragma quick_check(1)").fetchall()
    except sqlite3.OperationalError as error:  # locks, disks, permissions
        raise OSError(f"--use_cache: {path} cannot be used: {error}") from None
    except sqlite3.DatabaseError as error:
        said = str(error)
    if said != "ok":
        reason = said.splitlines()[-1]
        raise ValueError(f"--use_cache: {path} is damaged or of another kind ({reason}): {REMEDY}")


class _Plain(pickle.Unpickler):
    """Reads numbers, texts and what holds them; a pickle may name any code to be run."""

    def find_class(self, module: str, name: str) -> Any:
        raise ValueError(f"it names {module}.{name}")


def plain(stored: bytes) -> Any:
    """An entry's value; ValueError where its bytes are damaged, or are more than a value."""
    try:
        return _Plain(io.BytesIO(stored)).load()
    except Exception as error:  # damaged pickles raise errors of many kinds
        raise ValueError(f"--use_cache: an entry cannot be read ({error}): {REMEDY}") from None


class Entries(SqliteDict):
    """lm-eval's cache, as lm-eval sees it: without answers, which are texts.

    lm-eval holds an object of its own class, which `enter` makes one of this.
    """

    def enter(self) -> None:
        """What stands in the place of a constructor."""
        self.decode = plain
        self._lock = Lock()
        self._waiting: dict[str, Any] = {}
        self._kept: set[str] = set()
        self._disk = Background(self._write)
        self.conn.execute("pragma synchronous=full")  # from now on it waits for the disk

    def keep(self, entries: Mapping[str, Any]) -> None:
        """Write entries soon, all of them or none, and what came meanwhile with them.

        A transaction takes some milliseconds. The caller goes on; it gets the errors of
        earlier ones.
        """
        with self._lock:
            self._waiting |= entries
            self._kept |= entries.keys()
        self._disk.ask()

    def settle(self) -> None:
        """Return when everything is on the disk."""
        self._disk.wait()

    def _write(self) -> None:
        with self._lock:
            entries, self._waiting = list(self._waiting.items()), {}
        table = f'"{self.tablename}" (key, value)'
        for start in range(0, len(entries), AT_ONCE):
            some = entries[start : start + AT_ONCE]
            places = ", ".join(["(?, ?)"] * len(some))
            values = [part for key, value in some for part in (key, self.encode(value))]
            self.conn.execute(f"replace into {table} values {places}", values)
        super().commit()
        self.conn.check_raise_error()

    # ---- what lm-eval calls

    def __contains__(self, key: str) -> bool:
        self.settle()
        return super().__contains__(key) and not isinstance(self[key], str)

    def __getitem__(self, key: str) -> Any:
        self.settle()
        return super().__getitem__(key)

    def __setitem__(self, key: str, value: Any) -> None:
        # lm-eval writes all of them once more, answers without their number
        if not isinstance(value, str) and key not in self._kept:
            super().__setitem__(key, value)

    def commit(self, blocking: bool = True) -> None:
        self.settle()
        super().commit(blocking)

    def close(self, do_log: bool = True, force: bool = False) -> None:
        if not force:  # as when it is collected
            self.settle()
        super().close(do_log, force)
