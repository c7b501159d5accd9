"""The runs of a sweep: stock lm_eval on one setting each, in a folder that appears whole.

What a killed run had decoded is taken up again from its --use_cache file.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

from llada_plugins.files.atomic import whole_folder

from .sweep import Point


class Command(NamedTuple):
    """What every run of a sweep has in common."""

    lm_eval: tuple[str, ...]  # the command's arguments, but for those of a point
    placement: tuple[str, ...]  # further ones that change no answer
    model_args: tuple[str, ...]  # NAME=VALUE
    in_gen_kwargs: frozenset[str]  # swept options that a task's own may not override


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
        """The start of the names of the run's --use_cache files."""
        return self.output / "caches" / point.name


class Runs:
    """Several processes at a time, ended together when one of them fails."""

    def __init__(self, command: Command, places: Places) -> None:
        self.command, self.places = command, places
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
        log, cache = self.places.log(point), self.places.cache(point)
        for folder in (log.parent, cache.parent):
            folder.mkdir(parents=True, exist_ok=True)
        with whole_folder(self.places.point(point)) as partial:
            status = self._status(self.words(point, partial), log)
            if status:
                raise ChildProcessError(
                    f"{point.name}: lm_eval ended with status {status}: {last_line(log)} "
                    f"(all of it: {log})"
                )
        for file in cache.parent.glob(f"{glob_free(cache.name)}_rank*.db*"):
            file.unlink()

    def words(self, point: Point, folder: Path) -> list[str]:
        """The command line of a point."""
        given = [f"{name}={value}" for name, value in point.options.items()]
        of_answers = [
            each for each in given if each.partition("=")[0] in self.command.in_gen_kwargs
        ]
        of_model = [*self.command.model_args, *(each for each in given if each not in of_answers)]
        optional = {"--model_args": of_model, "--gen_kwargs": of_answers}
        return [
            sys.executable,
            "-m",
            "llada_plugins.cli",
            *self.command.lm_eval,
            *self.command.placement,
            *(
                word
                for flag, values in optional.items()
                if values
                for word in (flag, ",".join(values))
            ),
            "--output_path",
            str(folder),
            "--log_samples",
            "--use_cache",
            str(self.places.cache(point)),
        ]

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


def glob_free(name: str) -> str:
    """The name with nothing in it that a glob pattern would read as more than itself."""
    return "".join(f"[{letter}]" if letter in "[]*?" else letter for letter in name)


def last_line(log: Path) -> str:
    """The last line that says something."""
    lines = [
        line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()
    ]
    return next((line for line in reversed(lines) if line), "it printed nothing")
