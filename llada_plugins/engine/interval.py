"""The interval of a share of right answers."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import NamedTuple

NORMAL = NormalDist().inv_cdf(0.975)  # standard errors to either side that hold 95 %


class Interval(NamedTuple):
    """Of a share, 0-1."""

    low: float
    high: float


def wilson(share: float, number: int) -> Interval:
    """The 95 % interval of a share of `number` answers, right near 0 and 1 as well (Wilson)."""
    spread = NORMAL**2 / number
    middle = (share + spread / 2) / (1 + spread)
    half = math.sqrt(spread * (share * (1 - share) + spread / 4)) / (1 + spread)
    return Interval(max(0.0, middle - half), min(1.0, middle + half))
