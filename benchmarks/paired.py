"""Accuracies of several ways on the same problems, and intervals of their differences."""

from __future__ import annotations

from typing import NamedTuple

import numpy


class Outcome(NamedTuple):
    """What one sampler did with n problems."""

    correct: numpy.ndarray  # (n,) bool
    forwards: numpy.ndarray  # (n,) forward passes


class Interval(NamedTuple):
    """A mean difference and its 95 % bootstrap interval."""

    difference: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.difference:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def paired_interval(
    first: numpy.ndarray, second: numpy.ndarray, num_draws: int = 2000, seed: int = 0
) -> Interval:
    """mean(first - second) over the same n items, with an interval.

    The interval is the percentile one of num_draws resamples of the items.
    """
    difference = numpy.asarray(first, float) - numpy.asarray(second, float)
    items = numpy.random.default_rng(seed).integers(
        len(difference), size=(num_draws, len(difference))
    )
    low, high = numpy.quantile(difference[items].mean(1), (0.025, 0.975))
    return Interval(float(difference.mean()), float(low), float(high))
