"""The runs of a sweep: a stock harness on one setting each, in a folder that appears whole."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from .frontier_points import Result
from .sweep import Point


class Places:
    """The folders of a sweep."""

    def __init__(self, output: Path) -> None:
        self.output = output

    def point(self, point: Point) -> Path:
        """Where lm-eval's files of a finished run stand."""
        return self.output / "points" / point.name

    def log(self, point: Point) -> Path:
        """What the run printed."""
        return self.output / "logs" / f"{point.name}.log"

    def cache(self, point: Point) -> Path:
        """What a killed run goes on from: the start of files' names, or a folder."""
        return self.output / "caches" / point.name


class Harness(Protocol):
    """How a harness runs a point, and what it leaves."""

    @property
    def name(self) -> str:
        """Of its command."""

    @property
    def label(self) -> str:
        """Of the model, for curves."""

    @property
    def task(self) -> str:
        """For tables."""

    def told(self) -> dict[str, Any]:
        """What all runs of a sweep have in common, for JSON: other answers, another value."""

    def check(self, points: Sequence[Point]) -> None:
        """Raise ValueError where a point would be refused; loads nothing."""

    def words(self, point: Point, places: Places, folder: Path) -> list[str]:
        """The command line of a point that writes into a folder."""

    def writing(self, point: Point, places: Places) -> AbstractContextManager[Path]:
        """Where the run writes: the point's folder, once the block ends well.

        Raises ChildProcessError where that misses what a finished run leaves.
        """

    def result(self, point: Point, places: Places) -> Result:
        """What a finished run says; ValueError where that is no point of a curve."""


class Runs:
    """Several processes at a time, ended together when one of them fails."""

    def __init__(self, harness: Harness, places: Places) -> None:
        self.harness, self.places = harness, places
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._ended = False

    def finish(self, points: Sequence[Point], jobs: int, look: Callable[[Point], object]) -> None:
        """Run the points that have no folder yet; raises ChildProcessError where one fails.

        look: is shown each point that is done, those of earlier runs first; its errors
        end all as well.
        """
        missing = [point for point in points if not self.places.point(point).is_dir()]
        for point in points:
            if point not in missing:
                look(point)
        with ThreadPoolExecutor(jobs) as pool:
            futures = {pool.submit(self._run, point): point for point in missing}
            try:
                for done in as_completed(futures):
                    done.result()
                    look(futures[done])
            except BaseException:
                self._end(futures)
                raise

    def _end(self, futures: Iterable[Future[None]]) -> None:
        for future in futures:
            future.cancel()
        with self._lock:
            self._ended = True
            for process in self._running:
                process.terminate()

    def _run(self, point: Point) -> None:
        log = self.places.log(point)
        for folder in (log.parent, self.places.cache(point).parent):
            folder.mkdir(parents=True, exist_ok=True)
        with self.harness.writing(point, self.places) as folder:
            status = self._status(self.harness.words(point, self.places, folder), log)
            if status:
                raise ChildProcessError(
                    f"{point.name}: {self.harness.name} ended with status {status}: "
                    f"{last_line(log)} (all of it: {log})"
                )

    def _status(self, words: Sequence[str], log: Path) -> int:
        with log.open("wb") as file:
            with self._lock:
                if self._ended:
                    return 1
                process = subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT)
                self._running.add(process)
            status = process.wait()
            with self._lock:
                self._running.discard(process)
        return status


def last_line(log: Path) -> str:
    """The last line that says something."""
    lines = [
        line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()
    ]
    return next((line for line in reversed(lines) if line), "it printed nothing")
