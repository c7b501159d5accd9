"""Accuracy under parallelism (AUP): one number for a curve of accuracy against tokens a forward.

The metric of d3LLM (arXiv 2601.07568) and its leaderboard. It depends strongly on the
curve's slowest point, which decides what is dropped: never rank by it alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

PENALTY = 3.0  # alpha of W
MOST_LOST = 5.0  # percentage points below the slowest point


class Measured(NamedTuple):
    """A decoder's setting on a task."""

    parallelism: float  # tokens a forward
    accuracy: float  # in percent


def weight(accuracy: float, best: float) -> float:
    """W(y) = min(exp(-3 (1 - y / y_max)), 1), how much an accuracy counts."""
    return min(math.exp(-PENALTY * (1 - accuracy / best)), 1.0)


def counted(points: Sequence[Measured]) -> list[Measured]:
    """The points by parallelism, without those more than 5 points below the slowest one.

    Of points of equal parallelism only the most accurate is left: published code takes
    them in the order in which they are given.
    """
    best: dict[float, Measured] = {}
    for point in points:
        _check(point)
        kept = best.setdefault(point.parallelism, point)
        best[point.parallelism] = max(kept, point)
    ordered = sorted(best.values())
    return [point for point in ordered if point.accuracy >= ordered[0].accuracy - MOST_LOST]


def _check(point: Measured) -> None:
    if not (math.isfinite(point.parallelism) and point.parallelism > 0):
        raise ValueError(
            f"AUP needs a positive number of tokens a forward, got {point.parallelism}: a run "
            "whose answers are all empty has none"
        )
    if not 0 <= point.accuracy <= 100:
        raise ValueError(f"AUP takes accuracies in percent (0-100), got {point.accuracy}")


def aup(points: Sequence[Measured], best: float | None = None) -> float:
    """The score of a curve.

    best: y_max, the best accuracy of any method on the task, in percent (default: of these
    points). With the counted points by parallelism: rho_1 y_1, plus over the others the
    areas of trapezoids (rho_i - rho_(i-1)) (y_i W_i + y_(i-1) W_(i-1)) / 2. Raises
    ValueError without points.
    """
    if not points:
        raise ValueError("AUP needs at least one point")
    if best is not None and not 0 < best <= 100:
        raise ValueError(f"y_max must be a percentage above 0 and at most 100, got {best}")
    kept = counted(points)
    if best is None:
        best = max(point.accuracy for point in points)
    if best == 0:
        return 0.0

    def height(point: Measured) -> float:
        return point.accuracy * weight(point.accuracy, best)

    areas = [
        (after.parallelism - before.parallelism) * (height(after) + height(before)) / 2
        for before, after in pairwise(kept)
    ]
    return kept[0].parallelism * kept[0].accuracy + sum(areas)
