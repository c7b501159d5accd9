"""How far a share of right answers may be from the true one."""

from __future__ import annotations

import math
from statistics import NormalDist


def wilson(share: float, number: int, confidence: float = 0.95) -> tuple[float, float]:
    """The interval of a binomial share (Wilson 1927), both 0 to 1.

    share: of right answers, number: of questions, at least 1.
    """
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    spread = z * z / number
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / number + spread / (4 * number))
    return max(0.0, middle - half), min(1.0, middle + half)
