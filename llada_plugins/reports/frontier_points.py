"""What a finished run of a sweep says: its accuracy with an interval, and what it cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from llada_plugins.engine.interval import Interval, wilson
from llada_plugins.files.foreign_json import load
from llada_plugins.files.jsonl import each_row
from llada_plugins.files.newest import newest
from llada_plugins.options.fields import coerce, names
from llada_plugins.sampling.config import SamplerConfig

from .sweep import Point


class Result(NamedTuple):
    """Of one setting."""

    options: dict[str, str]
    series: str
    accuracy: float  # 0-1
    interval: Interval | None  # None where answers are not judged right or wrong
    answers: int
    tokens_per_forward: float
    forwards: float  # an answer
    tokens: float  # an answer
    revised: float  # an answer
    seconds: float  # an answer


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
    answers = sum(each["answers"] for each in costs)
    totals = {
        cost: sum(each[cost] for each in costs)
        for cost in ("tokens", "forwards", "revised", "seconds")
    }
    forwards = totals["forwards"]
    return Result(
        point.options,
        point.series,
        accuracy,
        _interval(folder, name, accuracy),
        answers,
        totals["tokens"] / forwards if forwards else 0.0,
        *(totals[cost] / answers for cost in ("forwards", "tokens", "revised", "seconds")),
    )


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
