"""A CSV file that a run appends to, row by row, so that a killed run can go on.

No row is lost, none doubled.

Beside FILE lies FILE.json, which says of which run its rows are; rows of another run
are never mixed in. A row is on the disk before the next is made. The file stays locked
while it is open: a second process is refused.
"""

from __future__ import annotations

import csv
import fcntl
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from .atomic import write_whole
from .changes import changes


class MetricsFile:
    """Rows of one run.

    Use it in a `with` statement: first `expect` what identifies the run, then `begin`,
    then `append`.
    """

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.path, self.columns = path, list(columns)
        self.run_path = path.with_name(path.name + ".json")
        self._run: dict[str, Any] = {}
        path.absolute().parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b")
        try:
            self._lock()
            self._stored = self._read_run()
        except BaseException:
            self._file.close()
            raise

    def expect(self, **run: Any) -> None:
        """State parts of what identifies the run.

        Raises ValueError, naming the differences, where the file holds another run.
        """
        self._run |= json.loads(json.dumps(run))
        if self._stored is None:
            return
        differing = [
            change
            for name, change in changes(self._stored, self._run).items()
            if name.split(".")[0] in self._run
        ]
        if differing:
            raise ValueError(
                f"{self.path} holds another run ({'; '.join(differing[:3])}): give another file, "
                f"or remove it and {self.run_path.name}"
            )

    def begin(self, **notes: Any) -> list[dict[str, str]]:
        """The rows that are already there, after a torn last one is removed.

        notes: for FILE.json, beside what identifies the run.
        """
        if self._stored is None:
            text = json.dumps({"run": self._run, **notes}, indent=1)
            write_whole(self.run_path, text)
        self._file.seek(0)
        content = self._file.read()
        whole = _whole_records(content)
        self._file.truncate(whole)
        if not whole:
            self._write(self.columns)
            return []
        header, *rows = csv.reader(io.StringIO(content[:whole].decode(), newline=""))
        if header != self.columns or any(len(row) != len(header) for row in rows):
            raise ValueError(
                f"{self.path} has other columns than this command writes: give another file"
            )
        return [dict(zip(self.columns, row)) for row in rows]

    def append(self, row: Sequence[Any]) -> None:
        """Write a row; it is on the disk when this returns."""
        self._write([_readable(value) for value in row])

    def _write(self, row: Sequence[Any]) -> None:
        line = io.StringIO(newline="")
        # quotes hold a lone \r as well
        csv.writer(line, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n").writerow(row)
        self._file.write(line.getvalue().encode())
        self._file.flush()
        os.fsync(self._file.fileno())

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"{self.path} is being written by another process: wait for it, or give another "
                "file"
            ) from None

    def _read_run(self) -> dict[str, Any] | None:
        """What FILE.json says; None where there is no row yet."""
        self._file.seek(0)
        content = self._file.read()
        if content and not self.run_path.is_file():
            raise ValueError(
                f"{self.path} exists, and no {self.run_path.name} beside it says of which run its "
                "rows are: give another file"
            )
        # at most a header: a run that failed early binds no other
        if content[: _whole_records(content)].count(b"\n") < 2:
            return None
        try:
            run: dict[str, Any] = json.loads(self.run_path.read_text(encoding="utf-8"))["run"]
            return run
        except (ValueError, KeyError, TypeError):
            raise ValueError(
                f"{self.run_path} does not say of which run {self.path.name} is: give another file"
            ) from None

    def __enter__(self) -> MetricsFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()


def _readable(value: Any) -> Any:
    """A value that the csv module reads back: that of Python 3.10 cannot read NUL."""
    return value.replace("\0", "\N{REPLACEMENT CHARACTER}") if isinstance(value, str) else value


def _whole_records(content: bytes) -> int:
    """Where the last complete record ends.

    That is after a newline with an even number of quotes before it: inside a field the
    number is odd.
    """
    end = place = quotes = 0
    for line in content.split(b"\n")[:-1]:
        place += len(line) + 1
        quotes += line.count(b'"')
        if quotes % 2 == 0:
            end = place
    return end
