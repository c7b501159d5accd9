"""What chance leaves open in an estimate: its standard error, and what that decides."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import torch
from torch import Tensor


def mean_and_error(series: Sequence[Tensor], sweep: int = 1) -> tuple[float, float]:
    """Mean of the terms of all rounds and its standard error; nan where a round is a single sweep.

    Rows next to each other have counts next to each other, so their differences show
    the spread within a stratum without the trend between strata: half the mean square
    of cyclic differences, conservative by what trend is left.
    """
    num_rows = sum(len(round_terms) for round_terms in series)
    value = variance = 0.0
    for round_terms in series:
        value += float(round_terms.sum()) / num_rows
        sweeps = round_terms.view(-1, sweep).mean(-1)
        variance += _variance_of_mean(sweeps) * (len(round_terms) / num_rows) ** 2
    return value, math.sqrt(variance)


def _variance_of_mean(sweeps: Tensor) -> float:
    if len(sweeps) < 2:
        return math.nan
    return float((sweeps - sweeps.roll(1)).square().mean()) / 2 / len(sweeps)


def is_settled(
    choices: Sequence[Sequence[Tensor]], lengths: Sequence[int], confidence: float, num_rounds: int
) -> bool:
    """Is the best of a question's choices the best with this probability?

    By sum and by mean over tokens alike. choices: for each, terms by round; rows of
    equal number are paired. The error probability is split over comparisons and rounds.
    """
    num_rows = sum(len(round_terms) for round_terms in choices[0])
    level = 1 - (1 - confidence) / (len(choices) - 1) / num_rounds
    # cyclic differences of S rows have 2 S / 3 degrees of freedom
    bound = _student_quantile(level, 2 / 3 * num_rows)
    by_sum = [1] * len(choices)
    for scales in (by_sum, lengths):
        scaled = [[each / scale for each in choice] for choice, scale in zip(choices, scales)]
        if not _best_stands_out(scaled, bound):
            return False
    return True


def _student_quantile(level: float, freedom: float) -> float:
    """Student's quantile, by its first correction to the normal one.

    The normal quantile alone would settle too early: the error is estimated from the
    same few rows.
    """
    z = NormalDist().inv_cdf(level)
    return z + (z**3 + z) / 4 / freedom


def _best_stands_out(choices: Sequence[Sequence[Tensor]], bound: float) -> bool:
    """Is the best choice ahead of every other by more than `bound` standard errors?"""
    means = [float(torch.cat(list(choice)).mean()) for choice in choices]
    best = means.index(max(means))
    for number, other in enumerate(choices):
        if number == best:
            continue
        margin, error = mean_and_error([a - b for a, b in zip(choices[best], other)])
        if not margin > bound * error:  # also where equal choices never differ
            return False
    return True
