"""A point of a sweep: which are refused beforehand, and what a finished run says of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from llada_plugins.engine.asked import option_classes
from llada_plugins.engine.config import HARNESS_DEFAULTS, EngineConfig
from llada_plugins.engine.interval import Interval
from llada_plugins.methods.table import METHODS
from llada_plugins.models.folder import resolve
from llada_plugins.options.fields import build, coerce, names, reject_unknown
from llada_plugins.sampling import published
from llada_plugins.sampling.config import SamplerConfig, build_sampler

from .sweep import Point, Sweep

OWN_FLAGS = ("batch_size", "device")  # of the model's options those that are lm_eval's too
NOT_OF_DECODING = ("pretrained", "revision", "peft", "tokenizer", *OWN_FLAGS)


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


def result_of(
    point: Point, accuracy: float, interval: Interval | None, costs: Sequence[Mapping[str, Any]]
) -> Result:
    """A result; costs: of the run's tasks or parts, as `Totals.info` tells them."""
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
        interval,
        answers,
        totals["tokens"] / forwards if forwards else 0.0,
        *(totals[cost] / answers for cost in ("forwards", "tokens", "revised", "seconds")),
    )


def check_sweeps(sweeps: Sequence[Sweep], method: str, options: Mapping[str, Any]) -> None:
    """Raise ValueError where what is swept is no option of decoding, or given beside."""
    for sweep in sweeps:
        known = [*names(*option_classes(method)), *published.NAMES]
        reject_unknown([sweep.name], known, "option to sweep")
        if sweep.name in options:
            raise ValueError(f"{sweep.name} is swept and given as --{sweep.name}: leave one out")
        if sweep.name in NOT_OF_DECODING:
            raise ValueError(f"{sweep.name} is no option of decoding: run one sweep for each")


def check_points(method: str, options: Mapping[str, Any], points: Sequence[Point]) -> None:
    """Raise ValueError where the options of a point are refused.

    What only a checkpoint's files can tell is said by its first run, before its weights.
    """
    for point in points:
        given = {**options, **point.options}
        for each in (EngineConfig, METHODS[method].options):
            build(each, given)
        if not given.keys() & set(published.NAMES):
            build_sampler(coerce(SamplerConfig, given), HARNESS_DEFAULTS)
    resolve(options.get("pretrained"), options.get("revision"))
