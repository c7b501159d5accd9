"""Answers of a task that has not ended, on disk as soon as they are decoded.

Stock inferencers write predictions when a whole batch is answered, some only at the end, and
start again where a kill has torn the file. So each answer has a line in a file beside theirs,
and a task that is started again takes what it finds there. When the predictions are
complete, the file goes.

A line is handed to the system at once, so that no kill takes it, and forced onto the disk in
the background, so that a power failure takes at most those of the last moments.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from llada_plugins.engine.request import Completion, Request
from llada_plugins.files.atomic import force
from llada_plugins.files.background import Background

logger = logging.getLogger(__name__)


class Journal:
    """The answers of the data set that is asked, by request.

    identity: what determines the model's answers; those of another model are not found.
    """

    def __init__(self, identity: str) -> None:
        self.identity = identity
        self._predictions: Path | None = None  # the stock file of all answers, at its end
        self._file: TextIO | None = None
        self._disk = Background(self._force)
        self._answers: dict[str, Completion] = {}
        atexit.register(self.close)

    def open(self, predictions: Path | None) -> None:
        """The data set's predictions will stand in this file; None if they will in none.

        Only the first of several processes writes, as it alone writes predictions.
        """
        if predictions == self._predictions:
            return
        self.close()
        self._predictions = predictions
        if predictions is None:
            return
        path = journal_of(predictions)
        self._answers = dict(_read(path))
        if os.environ.get("RANK", "0") == "0":
            path.parent.mkdir(parents=True, exist_ok=True)
            _end_last_line(path)
            self._file = path.open("a", encoding="utf-8")
            force(path.parent)  # the file's name

    def find(self, request: Request) -> Completion | None:
        """The answer to a request, if an earlier run of the task decoded it."""
        return self._answers.get(self._key(request))

    def keep(self, request: Request, completion: Completion) -> None:
        """Write an answer down; a kill of the process does not lose it. OSError where it cannot."""
        key = self._key(request)
        self._answers[key] = completion
        if self._file is not None:
            self._file.write(json.dumps([key, completion]) + "\n")
            self._file.flush()
            self._disk.ask()

    def close(self) -> None:
        """Forget the answers; their file goes if the predictions are complete.

        Predictions that a full disk has torn go instead: OpenCompass would take them for whole.
        """
        if self._file is not None:
            self._disk.wait()
            self._file.close()
            assert self._predictions is not None
            if self._predictions.exists():
                _settle(self._predictions)
        self._predictions, self._file, self._answers = None, None, {}

    def _force(self) -> None:
        assert self._file is not None
        os.fsync(self._file.fileno())

    def _key(self, request: Request) -> str:
        return hashlib.sha256(repr((self.identity, request._replace(id=None))).encode()).hexdigest()


def journal_of(predictions: Path) -> Path:
    """Where the answers of unfinished predictions stand."""
    return predictions.with_name(f"tmp_{predictions.stem}.answers.jsonl")


def _read(path: Path) -> Iterator[tuple[str, Completion]]:
    """The answers in a file; lines that a kill or a full disk has torn are left out."""
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            key, values = json.loads(line)
            completion = Completion(*values)
            yield key, completion._replace(spans=tuple(completion.spans))  # JSON has lists
        except (ValueError, TypeError):
            continue


def _settle(predictions: Path) -> None:
    """Leave the predictions or their journal, whichever is whole."""
    if _is_whole(predictions):
        force(predictions)  # stock code does not
        force(predictions.parent)
        journal_of(predictions).unlink(missing_ok=True)
    else:
        predictions.unlink(missing_ok=True)
        logger.error("%s was torn and is removed: -r goes on", predictions)


def _is_whole(predictions: Path) -> bool:
    try:
        json.loads(predictions.read_bytes())
    except ValueError:
        return False
    return True


def _end_last_line(path: Path) -> None:
    """After a torn line the next one begins a line of its own."""
    if path.exists() and not path.read_bytes().endswith((b"\n",)) and path.stat().st_size:
        with path.open("a", encoding="utf-8") as file:
            file.write("\n")
