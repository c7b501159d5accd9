"""How many tokens of a block stand after a step.

Fixed schedules are known before the first step; adaptive rules look at the scores. The
decode loop asks `planned` once a block and `keep` every step. A new schedule is a function
here, its row in SCHEDULES and a case of SamplerConfig.schedule; a new adaptive rule is a
function here, its row in PASSING and an option in SamplerConfig.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .config import ADAPTIVE_RULES, SamplerConfig, Schedule

INF = float("inf")


def quota(num_masked: Tensor, steps: int, *, remainder_last: bool = False) -> Tensor:
    """Tokens to unmask at each step under the linear schedule.

    num_masked: (B,) masked tokens per row. Returns (B, steps); rows sum to num_masked.
    The remainder goes to the first steps (LLaDA, arXiv 2502.09992, Algorithm 5) or to
    the last (RemeDi, arXiv 2509.23653): then the first steps may unmask nothing where a
    block is filled again in part; under `revise` they exchange tokens (llada_prm,
    legacy, 1000 sudokus: .862 at 19.9 forwards with them, .843 at 16.8 without).
    """
    share, remainder = num_masked // steps, num_masked % steps
    step = torch.arange(steps, device=num_masked.device)
    if remainder_last:
        step = steps - 1 - step
    return share[:, None] + (step < remainder[:, None])


class Unfilled(NamedTuple):
    """A block before its first step, B rows."""

    num_masked: Tensor  # (B,)
    width: int  # tokens of the block
    steps: int


def linear(block: Unfilled, config: SamplerConfig) -> Tensor:
    """Equal shares of the masked tokens, larger ones first (LLaDA)."""
    return block.width - block.num_masked[:, None] + quota(block.num_masked, block.steps).cumsum(-1)


def linear_revised(block: Unfilled, config: SamplerConfig) -> Tensor:
    """Equal shares of the masked tokens, larger ones last (RemeDi's dynamic remasking)."""
    shares = quota(block.num_masked, block.steps, remainder_last=True)
    return block.width - block.num_masked[:, None] + shares.cumsum(-1)


def mask_and_refine(block: Unfilled, config: SamplerConfig) -> Tensor:
    """All but remask_ratio of the block after every step, and all of it after the last."""
    assert config.remask_ratio is not None
    num_refined = int(config.remask_ratio * block.width + 1e-6)
    size = len(block.num_masked), block.steps
    kept = torch.full(size, block.width - num_refined, device=block.num_masked.device)
    kept[:, -1] = block.width
    return kept


# a block and its options -> tokens that stand after each step, (B, steps)
SCHEDULES: dict[Schedule, Callable[[Unfilled, SamplerConfig], Tensor]] = {
    "linear": linear,
    "linear_revised": linear_revised,
    "mask_and_refine": mask_and_refine,
}


def planned(masked: Tensor, config: SamplerConfig, steps: int | None = None) -> Tensor | None:
    """Tokens of the block that stand after each step, (B, steps); None under adaptive rules.

    masked: (B, W) bool. steps: default a block's share of config.steps.
    """
    if config.adaptive:
        return None
    block = Unfilled(masked.sum(-1), masked.shape[1], steps or config.steps_per_block)
    return SCHEDULES[config.schedule](block, config)


def keep(
    score: Tensor, masked: Tensor, count: Tensor | None, last: bool, config: SamplerConfig
) -> Tensor:
    """Which positions of the block stand after this step, (B, W) bool.

    All others are masked, or masked again. score: (B, W). masked: (B, W) bool, before the
    step. count: (B,) of a planned schedule, or None, and then every row has masks. last:
    no forward is left.
    """
    if count is not None:
        return keep_top(score, count)
    if last:
        return torch.ones_like(masked)
    standing = ~masked
    if config.revise_below is not None:
        standing = standing & (score >= config.revise_below)
    candidates = score.masked_fill(~masked, -INF)
    num_kept = num_passing(candidates, config).clamp_min(1)
    return standing | (masked & keep_top(candidates, num_kept))


def num_passing(score: Tensor, config: SamplerConfig) -> Tensor:
    """How many of the masked positions pass the adaptive rule, (B,).

    score: (B, W), -inf where nothing is masked.
    """
    [rule] = [name for name in ADAPTIVE_RULES if getattr(config, name) is not None]
    ordered = score.sort(dim=-1, descending=True).values
    return PASSING[rule](ordered, getattr(config, rule))


def num_probable(ordered: Tensor, threshold: float) -> Tensor:
    """All at least as probable as the threshold (Fast-dLLM, arXiv 2505.22618)."""
    return (ordered >= threshold).sum(-1)


def num_within_factor(ordered: Tensor, factor: float) -> Tensor:
    """The n best while (n + 1)(1 - p) < factor for the n-th (Fast-dLLM, section 3.3)."""
    rank = torch.arange(1, ordered.shape[1] + 1, device=ordered.device)
    return ((rank + 1) * (1 - ordered) < factor).cumprod(-1).sum(-1)


def num_within_budget(ordered: Tensor, error_budget: float) -> Tensor:
    """The n best while their errors 1 - p sum to at most the budget.

    By the union bound, all are right with probability 1 - error_budget. Factor bounds the
    same sum by n + 1 times the worst error, and so keeps no more at an equal value.
    """
    errors = 1 - ordered.double()  # so that the order in which a device adds does not decide
    return (errors.cumsum(-1) <= error_budget).sum(-1)


# scores in descending order (B, W), the option's value -> (B,)
PASSING: dict[str, Callable[[Tensor, float], Tensor]] = {
    "threshold": num_probable,
    "factor": num_within_factor,
    "error_budget": num_within_budget,
}


def keep_top(score: Tensor, count: Tensor) -> Tensor:
    """The `count` (B,) best positions of every row of score (B, W), as bool.

    Ties go to the left, on every device.
    """
    rank = score.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    return rank < count[:, None]
