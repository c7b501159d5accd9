"""Estimators of log p(answer | prompt): which answer tokens each row masks, and what
rows' log-probabilities say, with their error.

Pure arithmetic on masks and numbers: no model and no tokens here; likelihood.py makes
the rows and runs them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from statistics import NormalDist
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from llada_plugins.diffusion.random_streams import uniform

EXACT_LENGTH = 6  # tokens that `exact` enumerates whatever mc_num says: 63 rows
FIRST_ROUND = 16  # draws before mc_num=auto looks at an error for the first time
MC_MAX, CONFIDENCE, MC_BATCH = 1024, 0.99, 8
# tokens on either side whose masks explain a token's log-probability; 4 did as well on
# text, 8 better on nim
NEIGHBOURS = 8
# rows of the prior of a token's level; 1 is as good on text, ten times the variance
# where levels are all there is
SHRINKAGE = 0.1


class Masks(NamedTuple):
    """S rows of an answer of n tokens; the estimate is the mean over rows of weight ×
    summed log-probability of the scored tokens.
    """

    masked: Tensor  # (S, n) bool
    scored: Tensor  # (S, n) bool, masked tokens whose log-probability counts
    weight: Tensor  # (S,) float64
    # (S,) from -1 to 1, of other tokens masked, mean over what might have been drawn;
    # given: adjusted terms
    share: Tensor | None = None
    exact: bool = False  # the rows are not a sample: nothing is left to chance
    # rows drawn together; different sweeps are independent, or stratified next to each
    # other
    sweep: int = 1


def joined(rounds: Sequence[Masks]) -> Masks:
    """The rows of several rounds as one."""
    tensors = [
        None if parts[0] is None else torch.cat(parts)
        for parts in zip(*(each[:4] for each in rounds))
    ]
    return Masks(*tensors, *rounds[-1][4:])


def enumerated(length: int) -> Masks:
    """All 2^length - 1 masks of the count-matched bound with their exact weights."""
    subsets = [subset for k in range(1, length + 1) for subset in combinations(range(length), k)]
    masked = torch.tensor(
        [[position in subset for position in range(length)] for subset in subsets]
    )
    size = masked.sum(-1)
    ways = torch.tensor([math.comb(length, k) for k in size.tolist()])
    return Masks(masked, masked, len(subsets) / (size * ways).double(), exact=True)


def count_masks(length: int, draws: range, key: int, batch: int) -> Masks:
    """Masks of the count-matched bound E_k E_{|M|=k} [length/k log p(masked | rest)], k
    ~ U{1..length} (LLaDA, eq. 14).

    Enumerated where that takes no more rows than are drawn; else row i's count is
    floor(t · length) + 1 for a t uniform in the i-th of S intervals, which together are
    (0, 1), and its weight has the interval's width. Rows draw independently: one place
    for all intervals would move all counts together. Tokens of a count are those of
    lowest rank in the row's own random order. The published code rounds a linspace
    instead, which is not uniform; see docs/reproduce.md.
    """
    if length < 30 and 2**length - 1 <= draws.stop:
        return enumerated(length)
    edges = _intervals(len(draws), length)  # (S + 1,)
    # (S,)
    width, place = (
        edges.diff(),
        uniform(torch.tensor(key), torch.arange(draws.start, draws.stop), 0, 2),
    )
    count = ((edges[:-1] + place * width) * length).long().clamp(max=length - 1) + 1
    masked = _lowest(draws, length, key, count)
    whole = (edges * length).long().clamp(max=length - 1)
    below = whole * (edges - (whole + 1) / 2 / length)  # integral of count - 1 from 0 to the edge
    return Masks(
        masked,
        masked,
        len(draws) * width * length / count,
        _share(below.diff() / width + 1, length),
    )


def published_masks(length: int, draws: range, key: int, batch: int) -> Masks:
    """LLaDA's get_log_likelihood: `batch` counts from k ~ U{1..length}, length / batch
    apart, rounded, modulo length.

    Rounding half to even makes counts non-uniform, so the mean differs from the bound;
    for comparison with published numbers.
    """
    sweeps = torch.arange(draws.start // batch, draws.stop // batch)
    first = (uniform(torch.tensor(key), sweeps, 0, 1) * length).long() + 1
    count = torch.cat(
        [
            torch.linspace(float(k), k + (batch - 1) * (length / batch), batch).round().long()
            for k in first.tolist()
        ]
    )
    count = (count - 1) % length + 1  # (S,)
    masked = _lowest(draws, length, key, count)
    return Masks(masked, masked, length / count.double(), sweep=batch)


def bernoulli_masks(length: int, draws: range, key: int, batch: int) -> Masks:
    """Every token masked with probability t, weight 1 / t, t ~ U(0, 1) stratified
    (SMDM, arXiv 2410.18514).

    The same bound as `count`, from terms whose variance is infinite, if only
    logarithmically: a lone token masked at a small t.
    """
    t = _stratified(draws, key)  # (S,)
    masked = _order(draws, length, key) < t[:, None]
    return Masks(masked, masked, 1 / t)


def chain_masks(length: int, draws: range, key: int, batch: int) -> Masks:
    """Left to right: token j given the prompt and the tokens before it, all after it
    masked; the exact log-probability of that order.
    """
    scored = torch.eye(length, dtype=torch.bool)
    return Masks(
        torch.ones(length, length).triu().bool(),
        scored,
        torch.full((length,), float(length)).double(),
        exact=True,
    )


def exact_masks(length: int, draws: range, key: int, batch: int) -> Masks:
    """The bound of `count` by enumeration."""
    return enumerated(length)


# draws: which of a request's rows; key: its random stream; batch: rows of a published sweep
ESTIMATORS: dict[str, Callable[[int, range, int, int], Masks]] = {
    "count": count_masks,
    "published": published_masks,
    "bernoulli": bernoulli_masks,
    "chain": chain_masks,
    "exact": exact_masks,
}
IN_ROUNDS = ("count", "bernoulli")  # what mc_num=auto can continue


class Budget(NamedTuple):
    """How many rows are drawn for a request."""

    first: int
    limit: int
    target: float = 0.0  # nats: no more rows once the standard error is not above it
    confidence: float = 1.0  # nor once a question's best choice is settled with this probability
    batch: int = MC_BATCH

    def rounds(self) -> Iterator[range]:
        """The rows of each round; every round doubles their number. None is left over
        for a round of its own, which would have no error.
        """
        done, stop = 0, self.first
        while done < self.limit:
            stop = self.limit if self.limit - stop == 1 else stop
            yield range(done, stop)
            done, stop = stop, min(2 * stop, self.limit)


def budget(
    estimator: str,
    mc_num: int | str,
    mc_max: int | None = None,
    mc_confidence: float | None = None,
    mc_batch: int | None = None,
) -> Budget:
    """The budget that options ask for; raises ValueError on values or combinations that
    mean nothing.
    """
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator must be one of {', '.join(ESTIMATORS)}, got {estimator!r}")
    auto = isinstance(mc_num, str)
    for name, value, needs in (
        ("mc_max", mc_max, "mc_num=auto:NATS"),
        ("mc_confidence", mc_confidence, "mc_num=auto:NATS"),
        ("mc_batch", mc_batch, "estimator=published"),
    ):
        if value is not None and not (
            auto if needs.startswith("mc_num") else estimator == "published"
        ):
            raise ValueError(f"{name} has no effect without {needs}: leave it out")
    if mc_confidence is not None and not 0.5 <= mc_confidence <= 1:
        raise ValueError(f"mc_confidence must be from 0.5 to 1, got {mc_confidence}")
    if not auto and not isinstance(mc_num, int):
        _target(mc_num)
    for name, value in (
        ("mc_max", mc_max),
        ("mc_batch", mc_batch),
        ("mc_num", None if auto else mc_num),
    ):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if auto:
        target = _target(mc_num)
        if estimator not in IN_ROUNDS:
            raise ValueError(
                f"mc_num={mc_num} needs an estimator that can go on drawing, "
                f"{' or '.join(IN_ROUNDS)}; got {estimator!r}"
            )
        limit = mc_max or MC_MAX
        return Budget(
            min(FIRST_ROUND, limit),
            limit,
            target,
            CONFIDENCE if mc_confidence is None else mc_confidence,
        )
    batch = mc_batch or MC_BATCH
    if estimator == "published" and mc_num % batch:
        raise ValueError(
            f"estimator='published' needs mc_num to be a multiple of mc_batch ({batch}), got "
            f"{mc_num}"
        )
    return Budget(mc_num, mc_num, batch=batch)


def check_length(estimator: str, length: int, limits: Budget) -> None:
    """Raise ValueError on an answer too long for the estimator."""
    if (
        estimator == "exact"
        and length > EXACT_LENGTH
        and (length >= 30 or 2**length - 1 > limits.limit)
    ):
        raise ValueError(
            f"estimator='exact' takes 2^{length} - 1 rows for an answer of {length} tokens, which "
            "exceeds "
            f"mc_num={limits.limit}: raise mc_num or use estimator='count'"
        )


def terms(masks: Masks, log_p: Tensor) -> Tensor:
    """Each row's say (S,) in the estimate, which is their mean, from log_p (S, n), 0
    where not scored.

    Adjusted: a ridge regression over the other rows predicts what a row says of each
    masked token from how many tokens and which of its neighbours are masked too. Terms
    are made of the residuals, and the expectation of what was predicted, over all that
    the row might have masked, is put back. The mean stays the same, since a row's mask
    does not depend on the others; what goes is the variance that comes from how many
    and which tokens a row happens to mask.
    """
    # a token ruled out makes the answer impossible, and nothing to predict
    if masks.share is None or not log_p.isfinite().all():
        return masks.weight * log_p.sum(-1)
    masked = masks.masked.double()
    features = _features(masked) * masked[..., None]  # (S, n, F)
    ridge = torch.tensor([SHRINKAGE] + [1.0] * (features.shape[-1] - 1), dtype=torch.float64)
    # (n, F, F)
    inverse = torch.linalg.inv(torch.einsum("snf,sng->nfg", features, features) + ridge.diag())
    # (S,) of the other rows
    level = (log_p.sum() - log_p.sum(-1)) / (masked.sum() - masked.sum(-1)).clamp(min=1)
    slopes = torch.einsum("nfg,ng->nf", inverse, (features * log_p[..., None]).sum(0))
    slopes = slopes + SHRINKAGE * level[:, None, None] * inverse[..., 0]  # (S, n, F)
    reach = torch.einsum("snf,nfg->sng", features, inverse)  # (S, n, F)
    # (S, n), of a fit without the row
    residual = (log_p - (features * slopes).sum(-1)) / (1 - (features * reach).sum(-1))
    # (S,) each, of a fit without the row
    level, trend = (slopes - reach * residual[..., None]).sum(1)[:, :2].unbind(-1)
    width = masks.weight * masked.mean(-1)
    return masks.weight * residual.sum(-1) + (width * (level + trend * masks.share)).mean()


def _features(masked: Tensor) -> Tensor:
    """Of each row and token (S, n, F): 1; the share of the other tokens that is masked,
    from -1 to 1; which neighbours are masked.

    The latter have mean 0 over the masks of a count that mask the token, and scale with
    distance to the power -1/2, so that near ones explain more.
    """
    num_rows, length = masked.shape
    share = _share(masked.sum(-1), length)[:, None]  # (S, 1)
    reach = min(NEIGHBOURS, length - 1)
    distance = torch.arange(-reach, reach + 1).abs().double()
    near = F.pad(masked - (share + 1) / 2, (reach, reach)).unfold(
        1, 2 * reach + 1, 1
    ) * distance.rsqrt().where(distance > 0, 0)
    return torch.cat(
        [torch.ones(num_rows, length, 1).double(), share.expand(-1, length)[..., None], near], -1
    )


def _share(size: Tensor, length: int) -> Tensor:
    return 2 * (size - 1) / max(1, length - 1) - 1


def mean_and_error(series: Sequence[Tensor], sweep: int = 1) -> tuple[float, float]:
    """Mean of the terms of all rounds and its standard error; nan where a round is a single sweep.

    Rows next to each other have counts next to each other, so their differences show
    the spread within a stratum without the trend between strata: half the mean square
    of cyclic differences, conservative by what trend is left.
    """
    total = sum(len(part) for part in series)
    value = variance = 0.0
    for part in series:
        sweeps = part.view(-1, sweep).mean(-1)
        value += float(part.sum()) / total
        spread = (
            float((sweeps - sweeps.roll(1)).square().mean()) / 2 / len(sweeps)
            if len(sweeps) > 1
            else math.nan
        )
        variance += spread * (len(part) / total) ** 2
    return value, math.sqrt(variance)


def is_settled(
    choices: Sequence[Sequence[Tensor]], lengths: Sequence[int], confidence: float, num_rounds: int
) -> bool:
    """Is the best of a question's choices the best with this probability, by sum and by
    mean over tokens alike?

    choices: for each, terms by round; rows of equal number are paired. The error
    probability is split over comparisons and rounds; Student's quantile by its first
    correction to the normal one, since the error is estimated from the same rows.
    """
    draws = sum(len(part) for part in choices[0])
    z = NormalDist().inv_cdf(1 - (1 - confidence) / (len(choices) - 1) / num_rounds)
    # cyclic differences of S rows have 2 S / 3 degrees of freedom
    bound = z + (z**3 + z) / 4 / (2 / 3 * draws)
    for scales in ([1] * len(choices), lengths):
        scaled = [[part / scale for part in choice] for choice, scale in zip(choices, scales)]
        best = max(range(len(scaled)), key=lambda n: float(torch.cat(list(scaled[n])).mean()))
        for number, other in enumerate(scaled):
            if number != best:
                margin, error = mean_and_error([a - b for a, b in zip(scaled[best], other)])
                if not margin > bound * error:  # also where equal choices never differ
                    return False
    return True


def _target(mc_num: object) -> float:
    word, _, number = str(mc_num).partition(":")
    try:
        target = float(number)
    except ValueError:
        target = math.nan
    if word != "auto" or not 0 < target < math.inf:
        raise ValueError(
            f"mc_num must be a whole number, got {mc_num!r}: or auto:NATS with the standard error "
            "to reach, such as auto:0.1"
        )
    return target


def _stratified(draws: range, key: int) -> Tensor:
    """(S,) float64 in (0, 1): one number in each of S equal intervals, at the same place in all."""
    offset = uniform(torch.tensor(key), draws.start, 0, 2)
    return (offset + torch.arange(len(draws))) / len(draws)


def _intervals(num: int, length: int) -> Tensor:
    """The edges (S + 1,) in (0, 1) of intervals of t, which stands for the count
    floor(t · length) + 1.

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
    """U(0, 1) of each row and token (S, n); a longer answer's begin with a shorter
    one's, so choices of any lengths have related masks.
    """
    return uniform(
        torch.tensor(key), torch.arange(draws.start, draws.stop)[:, None], torch.arange(length), 3
    )


def _lowest(draws: range, length: int, key: int, count: Tensor) -> Tensor:
    """(S, n) bool: `count` tokens of each row, uniform among the subsets of that size."""
    return _order(draws, length, key).argsort(-1).argsort(-1) < count[:, None]
