"""Which answer tokens each masked row of an estimate hides, by estimator.

Pure arithmetic on masks and random numbers: no model and no tokens here. estimate.py
makes the rows and runs them; control_variate.py says what their numbers add up to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor

from llada_plugins.diffusion.forward_process import EPS
from llada_plugins.diffusion.random_streams import uniform

MC_BATCH = 8  # rows of a sweep of PUBLISHED
PUBLISHED = ("published", "published_dream")  # as their authors' code, in sweeps of mc_batch rows
# what random numbers are for, the last counter of uniform(): uses share none
SWEEPS, PLACES, ORDERS = 1, 2, 3


class Masks(NamedTuple):
    """S rows of an answer of n tokens.

    The estimate is the mean over rows of weight × summed log-probability of the scored
    tokens.
    """

    masked: Tensor  # (S, n) bool
    scored: Tensor  # (S, n) bool, masked tokens whose log-probability counts
    weight: Tensor  # (S,) float64
    # (S,) masked_share, mean over what might have been drawn; given: control_variate.py
    # adjusts the terms
    share: Tensor | None = None
    exact: bool = False  # the rows are not a sample: nothing is left to chance
    # rows drawn together; different sweeps are independent, or stratified next to each
    # other
    sweep: int = 1


def joined(rounds: Sequence[Masks]) -> Masks:
    """The rows of several rounds as one."""
    last = rounds[-1]
    shares = [each.share for each in rounds if each.share is not None]
    return last._replace(
        masked=torch.cat([each.masked for each in rounds]),
        scored=torch.cat([each.scored for each in rounds]),
        weight=torch.cat([each.weight for each in rounds]),
        share=torch.cat(shares) if shares else None,
    )


def enumerated(length: int) -> Masks:
    """All 2^length - 1 masks of the count-matched bound with their exact weights."""
    subsets = [subset for k in range(1, length + 1) for subset in combinations(range(length), k)]
    masked = torch.zeros(len(subsets), length, dtype=torch.bool)
    for row, subset in enumerate(subsets):
        masked[row, list(subset)] = True
    size = masked.sum(-1)
    ways = torch.tensor([math.comb(length, k) for k in size.tolist()])
    return Masks(masked, masked, len(subsets) / (size * ways).double(), exact=True)


def count_masks(length: int, draws: range, key: int, batch: int) -> Masks:
    """Masks of the count-matched bound E_k E_{|M|=k} [n/k log p(masked | rest)] (LLaDA, eq. 14).

    k ~ U{1..n}, n = length. Enumerated where that takes no more rows than are drawn;
    else row i's count is floor(t n) + 1 for a t uniform in the i-th of S intervals, which
    together are (0, 1), and its weight has the interval's width. Rows draw independently:
    one place for all intervals would move all counts together. Tokens of a count are
    those of lowest rank in the row's own random order. The published code rounds a
    linspace instead, which is not uniform; see docs/reproduce.md "Deviations".
    """
    if length < 30 and 2**length - 1 <= draws.stop:
        return enumerated(length)
    num_rows, last = len(draws), length - 1
    edges = _intervals(num_rows, length)  # (S + 1,)
    width = edges.diff()  # (S,)
    place = uniform(torch.tensor(key), torch.arange(draws.start, draws.stop), 0, PLACES)  # (S,)
    count = ((edges[:-1] + place * width) * length).long().clamp(max=last) + 1
    masked = _lowest(draws, length, key, count)
    whole = (edges * length).long().clamp(max=last)
    below = whole * (edges - (whole + 1) / 2 / length)  # integral of count - 1 from 0 to the edge
    share = masked_share(below.diff() / width + 1, length)  # of the interval's mean count
    return Masks(masked, masked, num_rows * width * length / count, share)


def published_masks(length: int, draws: range, key: int, batch: int) -> Masks:
    """Masks of LLaDA's get_log_likelihood, for comparison with published numbers.

    A sweep is `batch` counts from k ~ U{1..length}, length / batch apart, rounded,
    modulo length. Rounding half to even makes counts non-uniform, so the mean differs
    from the bound.
    """
    sweeps = torch.arange(draws.start // batch, draws.stop // batch)
    first = (uniform(torch.tensor(key), sweeps, 0, SWEEPS) * length).long() + 1
    span = (batch - 1) * (length / batch)
    counts = [torch.linspace(float(k), k + span, batch).round().long() for k in first.tolist()]
    count = (torch.cat(counts) - 1) % length + 1  # (S,)
    masked = _lowest(draws, length, key, count)
    return Masks(masked, masked, length / count.double(), sweep=batch)


def dream_masks(length: int, draws: range, key: int, batch: int) -> Masks:
    """Masks of Dream's likelihood, for comparison with published numbers.

    Every token is masked with probability p = (1 - eps) t + eps, weight 1 / p; the t of a
    sweep are u, u + 1 / batch, … modulo 1. Without the part of t below eps the mean is not
    quite the bound of `count`.
    """
    rows = torch.arange(draws.start, draws.stop)
    start = uniform(torch.tensor(key), rows // batch, 0, SWEEPS)
    t = (start + rows % batch / batch) % 1  # (S,)
    p = (1 - EPS) * t + EPS
    masked = _order(draws, length, key) < p[:, None]
    return Masks(masked, masked, 1 / p, sweep=batch)


def bernoulli_masks(length: int, draws: range, key: int, batch: int) -> Masks:
    """Every token masked with probability t, weight 1 / t, t ~ U(0, 1) stratified (SMDM).

    arXiv 2410.18514. The same bound as `count`, from terms whose variance is infinite, if
    only logarithmically: a lone token masked at a small t.
    """
    t = _stratified(draws, key)  # (S,)
    masked = _order(draws, length, key) < t[:, None]
    return Masks(masked, masked, 1 / t)


def chain_masks(length: int, draws: range, key: int, batch: int) -> Masks:
    """Left to right: token j given the prompt and the tokens before it, all after it masked.

    The exact log-probability of that order.
    """
    masked = torch.ones(length, length).triu().bool()
    scored = torch.eye(length, dtype=torch.bool)
    weight = torch.full((length,), float(length)).double()
    return Masks(masked, scored, weight, exact=True)


def exact_masks(length: int, draws: range, key: int, batch: int) -> Masks:
    """The bound of `count` by enumeration."""
    return enumerated(length)


# length of the answer; draws: which of a request's rows; key: its random stream; batch:
# rows of a published sweep
Estimator = Callable[[int, range, int, int], Masks]

ESTIMATORS: dict[str, Estimator] = {
    "count": count_masks,
    "published": published_masks,
    "published_dream": dream_masks,
    "bernoulli": bernoulli_masks,
    "chain": chain_masks,
    "exact": exact_masks,
}


def masked_share(count: Tensor, length: int) -> Tensor:
    """How many of the other tokens are masked beside a masked one, from -1 (none) to 1 (all)."""
    return 2 * (count - 1) / max(1, length - 1) - 1


def _stratified(draws: range, key: int) -> Tensor:
    """(S,) float64 in (0, 1): one number in each of S equal intervals, at the same place in all."""
    offset = uniform(torch.tensor(key), draws.start, 0, PLACES)
    return (offset + torch.arange(len(draws))) / len(draws)


def _intervals(num: int, length: int) -> Tensor:
    """The edges (S + 1,) in (0, 1) of intervals of t, which stands for the count floor(t n) + 1.

    A row that masks k tokens tells as much as the mean of k residuals, so small counts
    scatter more: intervals are narrower there, as 1 / sqrt(k), which has least variance
    where residuals are independent: on random weights 40 % less than equal ones, on
    text as much.
    """
    rate = torch.arange(1, length + 1).double().rsqrt()
    rate = rate / rate.sum()  # (n,) of the rows for each count
    below = torch.cat([torch.zeros(1).double(), rate.cumsum(0)])
    edges = torch.arange(num + 1).double() / num
    cell = (torch.searchsorted(below, edges, right=True) - 1).clamp(max=length - 1)
    return (cell + (edges - below[cell]) / rate[cell]) / length


def _order(draws: range, length: int, key: int) -> Tensor:
    """U(0, 1) of each row and token (S, n).

    A longer answer's begin with a shorter one's, so choices of any lengths have related
    masks.
    """
    rows = torch.arange(draws.start, draws.stop)[:, None]
    return uniform(torch.tensor(key), rows, torch.arange(length), ORDERS)


def _lowest(draws: range, length: int, key: int, count: Tensor) -> Tensor:
    """(S, n) bool: `count` tokens of each row, uniform among the subsets of that size."""
    rank = _order(draws, length, key).argsort(-1).argsort(-1)
    return rank < count[:, None]
