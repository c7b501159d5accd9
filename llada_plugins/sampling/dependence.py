"""Which tokens of a step depend on one another, and which of them may be kept together."""

from __future__ import annotations

import torch
from torch import Tensor

from llada_plugins.diffusion.guidance import without

from .confidence import Candidates, token_probability
from .config import SamplerConfig


def dependent_pairs(candidates: Candidates, mask: int, config: SamplerConfig) -> Tensor:
    """Which two candidates may not be kept in one step, (B, M, M) bool, symmetric.

    Each is judged as if the others stayed masked. Where two uncertain ones draw on the
    same tokens, both may take the one that only one of them can have: the digit of two
    cells of a sudoku. Then the cosine of their predicted distributions is high. mask: the
    id that no distribution counts.
    """
    assert config.max_dependence is not None
    choices = without(candidates.logits, [mask]).softmax(-1)  # (B, M, V)
    choices /= choices.norm(dim=-1, keepdim=True)
    alike = choices @ choices.mT  # NaN, and so not alike, where a filter leaves the mask alone
    uncertain = candidates.masked & (token_probability(candidates) < config.certainty)
    return (alike >= config.max_dependence) & uncertain[:, :, None] & uncertain[:, None]


def at_places(pairs: Tensor, columns: Tensor, width: int) -> Tensor:
    """Pairs (B, M, M) of these columns (B, M) as pairs of all columns, (B, W, W)."""
    num_rows, number = columns.shape
    of_one = pairs.new_zeros(num_rows, number, width)
    of_one.scatter_(2, columns[:, None].expand_as(pairs), pairs)
    of_both = pairs.new_zeros(num_rows, width, width)
    return of_both.scatter_(1, columns[:, :, None].expand_as(of_one), of_one)


def without_dependents(score: Tensor, eligible: Tensor, dependent: Tensor) -> Tensor:
    """The eligible positions that depend on no better one of the same kind, (B, W) bool.

    By descending score (B, W), ties to the left, each that depends on none taken before.
    dependent: (B, W, W) bool. Each round is right about one more position at least, in this
    order, and what a round does not change is right everywhere.
    """
    rank = score.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    better = rank[:, None] < rank[:, :, None]  # (B, W, W): is the last one before the middle one?
    excludes = dependent & better
    taken = eligible
    for _ in range(score.shape[1]):
        before = taken
        taken = eligible & ~(excludes & before[:, None]).any(-1)
        if torch.equal(taken, before):
            break
    return taken
