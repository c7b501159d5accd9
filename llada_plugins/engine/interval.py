"""The interval of a share of right answers."""

from __future__ import annotations

import math
from typing import NamedTuple

NORMAL = 1.959964  # of 95 %


class Interval(NamedTuple):
    """Of a share, 0-1."""

    low: float
    high: float


def wilson(share: float, number: int) -> Interval:
    """The 95 % interval of a share of `number` answers, right near 0 and 1 as well (Wilson)."""
    spread = NORMAL**2 / number
    middle = (share + spread / 2) / (1 + spread)
    half = math.sqrt(spread * (share * (1 - share) + spread / 4)) / (1 + spread)
    return Interval(middle - half, middle + half)
