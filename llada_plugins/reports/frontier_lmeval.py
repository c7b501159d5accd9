"""Points of a sweep in stock lm_eval.

What a killed run had decoded is taken up again from its --use_cache file.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llada_plugins.engine.interval import Interval, wilson
from llada_plugins.files.atomic import whole_folder
from llada_plugins.files.foreign_json import load
from llada_plugins.files.jsonl import each_row
from llada_plugins.files.newest import newest
from llada_plugins.options.fields import coerce, names
from llada_plugins.sampling import published
from llada_plugins.sampling.config import SamplerConfig

from .frontier_points import OWN_FLAGS, Result, check_points, result_of
from .frontier_runs import Places
from .sweep import Point


@dataclass(frozen=True, kw_only=True)
class LMEval:
    """lm_eval on one task; see `Harness`."""

    task: str
    label: str  # method
    options: Mapping[str, str]  # of the model, as flags gave them
    limit: int | None = None
    include_path: str | None = None
    lm_eval: str = ""  # further arguments
    metric: str | None = None
    name: str = "lm_eval"

    @property
    def arguments(self) -> list[str]:
        """Of every run, but for those that change no answer."""
        optional = {"--limit": self.limit, "--include_path": self.include_path}
        asked = ["--model", self.label, "--tasks", self.task]
        return [*asked, *_words(optional), *shlex.split(self.lm_eval)]

    @property
    def model_args(self) -> list[str]:
        """NAME=VALUE of every run."""
        return [f"{name}={each}" for name, each in self.options.items() if name not in OWN_FLAGS]

    def told(self) -> dict[str, Any]:
        """See `Harness`."""
        return {"lm_eval": self.arguments, "model_args": self.model_args}

    def check(self, points: Sequence[Point]) -> None:
        """See `Harness`."""
        for name, value in self.options.items():
            if "," in str(value):
                raise ValueError(f"{name}={value!r}: lm_eval's --model_args cannot hold a comma")
        check_points(self.label, self.options, points)

    def words(self, point: Point, places: Places, folder: Path) -> list[str]:
        """See `Harness`. Swept options of answers go where no task's own override them."""
        of_answers: list[str] = []
        of_model = self.model_args
        for name, value in point.options.items():
            is_sampler = name in names(SamplerConfig) or name in published.NAMES
            (of_answers if is_sampler else of_model).append(f"{name}={value}")
        optional = {
            **{f"--{name}": self.options.get(name) for name in OWN_FLAGS},
            "--model_args": ",".join(of_model) or None,
            "--gen_kwargs": ",".join(of_answers) or None,
        }
        written = ["--output_path", str(folder), "--log_samples"]
        cache = ["--use_cache", str(places.cache(point))]
        program = [sys.executable, "-m", "llada_plugins.cli"]
        return [*program, *self.arguments, *_words(optional), *written, *cache]

    @contextmanager
    def writing(self, point: Point, places: Places) -> Iterator[Path]:
        """See `Harness`."""
        with whole_folder(places.point(point)) as partial:
            yield partial
        cache = places.cache(point)
        for file in cache.parent.glob(f"{glob_free(cache.name)}_rank*.db*"):
            file.unlink()

    def result(self, point: Point, places: Places) -> Result:
        """See `Harness`."""
        return read_result(places.point(point), point, self.task, self.metric)


def _words(flags: Mapping[str, Any]) -> list[str]:
    given = ((flag, str(value)) for flag, value in flags.items() if value is not None)
    return [word for pair in given for word in pair]


def glob_free(name: str) -> str:
    """The name with nothing in it that a glob pattern would read as more than itself."""
    return "".join(f"[{letter}]" if letter in "[]*?" else letter for letter in name)


def read_result(folder: Path, point: Point, task: str, metric: str | None) -> Result:
    """A run's result; ValueError where it has none, or not of this setting."""
    path = newest(folder, "results_*.json")
    if path is None:
        raise ValueError(
            f"{folder}: lm_eval left no results_*.json there: remove the folder, run again"
        )
    found = load(path)
    name, accuracy = _accuracy(found["results"].get(task, {}), task, metric)
    costs = list(found["config"].get("decoding", {}).values())
    if not costs:
        raise ValueError(
            f"task {task} generates nothing, and a frontier is of decoding: give a task with "
            "output_type generate_until"
        )
    _check_options(found["config"].get("samplers", {}), point, task)
    return result_of(point, accuracy, _interval(folder, name, accuracy), costs)


def _accuracy(results: Mapping[str, Any], task: str, metric: str | None) -> tuple[str, float]:
    """A task's metric and its value, 0-1."""
    known = {
        name: value
        for name, value in results.items()
        if "," in name and "_stderr," not in name and isinstance(value, int | float)
    }
    if metric is None and len(known) == 1:
        (metric,) = known
    chosen = [name for name in known if metric in (name, name.removesuffix(",none"))]
    if len(chosen) != 1:
        raise ValueError(
            f"metric={metric!r}: task {task} reports {', '.join(known) or 'no number'}: say which "
            "by --metric NAME,FILTER; the runs that are done stay"
        )
    accuracy = float(known[chosen[0]])
    if not 0 <= accuracy <= 1:
        raise ValueError(
            f"{chosen[0]} of task {task} is {accuracy:g}, which is no share of right answers: give "
            "--metric one between 0 and 1"
        )
    return chosen[0], accuracy


def _check_options(
    used: Mapping[str, Sequence[Mapping[str, Any]]], point: Point, task: str
) -> None:
    """Raise ValueError where answers were decoded with another value than the sweep's."""
    asked = {name: value for name, value in point.options.items() if name in names(SamplerConfig)}
    for name, value in coerce(SamplerConfig, asked).items():
        others = {str(each[name]) for samplers in used.values() for each in samplers} - {str(value)}
        if others:
            raise ValueError(
                f"{point.name}: answers of task {task} were decoded with {name}={others.pop()}: "
                f"the task or --lm_eval sets {name}, so it cannot be swept"
            )


def _interval(folder: Path, metric: str, accuracy: float) -> Interval | None:
    """The binomial interval, where every answer counts 1 or 0 and the accuracy is their mean."""
    name, _, kept = metric.partition(",")

    def value(row: Any) -> float | None:
        if row.get("filter", "none") != kept or name not in row:
            return None
        return row[name] if isinstance(row[name], int | float) else -1.0

    files = folder.rglob("samples_*.jsonl")
    values = [each for file in files for each in each_row(file, value) if each is not None]
    if not values or set(values) - {0, 1} or abs(sum(values) / len(values) - accuracy) > 1e-9:
        return None
    return wilson(accuracy, len(values))
