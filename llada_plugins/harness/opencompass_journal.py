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
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TextIO

from llada_plugins.engine.request import Completion, Request
from llada_plugins.files.atomic import force
from llada_plugins.files.background import Background
from llada_plugins.files.changes import changes_of_text

logger = logging.getLogger(__name__)


class Journal:
    """The answers of the data set that is asked, by request.

    identity: what determines the model's answers; those of another model are not found.
    """

    def __init__(self, identity: str) -> None:
        self.identity = identity
        self._predictions: Path | None = None  # the stock file of all answers, at its end
        self._file: TextIO | None = None
        self._heading = ""  # whose answers come; it is written before the first
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
        self._answers = self._known(path)
        if os.environ.get("RANK", "0") == "0":
            path.parent.mkdir(parents=True, exist_ok=True)
            _end_last_line(path)
            self._file = path.open("a", encoding="utf-8")
            self._heading = json.dumps({"answers of": self.identity}) + "\n"
            force(path.parent)  # the file's name

    def _known(self, path: Path) -> dict[str, Completion]:
        """Earlier answers of this model; says in a line of which others there are."""
        found: dict[str, Completion] = {}
        others: Counter[str] = Counter()
        for identity, key, completion in _read(path):
            if identity in (None, self.identity):
                found[key] = completion
            else:
                others[identity] += 1
        for identity, number in others.items():
            logger.warning(
                "%d answers in %s are of another model or version, or of other options (%s): they "
                "are not taken, and decoded again",
                number,
                path,
                "; ".join(islice(changes_of_text(identity, self.identity), 4)),
            )
        return found

    def find(self, request: Request) -> Completion | None:
        """The answer to a request, if an earlier run of the task decoded it."""
        return self._answers.get(self._key(request))

    def keep(self, request: Request, completion: Completion) -> None:
        """Write an answer down; a kill of the process does not lose it. OSError where it cannot."""
        key = self._key(request)
        self._answers[key] = completion
        if self._file is not None:
            self._file.write(self._heading + json.dumps([key, completion]) + "\n")
            self._heading = ""
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


def _read(path: Path) -> Iterator[tuple[str | None, str, Completion]]:
    """The answers in a file with whose they are, as the line before says.

    Lines that a kill or a full disk has torn are left out.
    """
    if not path.exists():
        return
    identity: str | None = None
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            found = json.loads(line)
            if isinstance(found, dict):
                identity = found["answers of"]
                continue
            key, values = found
            completion = Completion(*values)
            yield identity, key, completion._replace(spans=tuple(completion.spans))  # not lists
        except (ValueError, TypeError, KeyError):
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
