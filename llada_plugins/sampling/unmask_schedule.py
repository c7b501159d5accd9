"""How many tokens of a block stand after a step: fixed schedules, known beforehand, and
rules that look at the scores.

The decode loop asks `planned` once a block and `keep` every step. A new rule is a
function here, its row in PASSING and an option in SamplerConfig.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .config import ADAPTIVE_RULES, SamplerConfig

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


def planned(masked: Tensor, config: SamplerConfig, steps: int | None = None) -> Tensor | None:
    """Tokens of the block that stand after each step, (B, steps), where that does not
    depend on scores; else None.

    steps: default a block's share of config.steps.
    """
    if config.adaptive:
        return None
    width, steps = masked.shape[1], steps or config.steps_per_block
    if config.remask_ratio is not None:
        kept = torch.full(
            (masked.shape[0], steps),
            width - int(config.remask_ratio * width + 1e-6),
            device=masked.device,
        )
        kept[:, -1] = width
        return kept
    num_masked = masked.sum(-1)
    return (width - num_masked)[:, None] + quota(
        num_masked, steps, remainder_last=config.revise
    ).cumsum(-1)


def keep(
    score: Tensor, masked: Tensor, count: Tensor | None, last: bool, config: SamplerConfig
) -> Tensor:
    """Which positions of the block stand after this step, (B, W) bool; all others are
    masked (again).

    score: (B, W). masked: (B, W) bool, before the step. count: (B,) of a planned
    schedule, or None, and then every row has masks. last: no forward is left.
    """
    if count is not None:
        return keep_top(score, count)
    if last:
        return torch.ones_like(masked)
    standing = ~masked
    if config.revise_below is not None:
        standing = standing & (score >= config.revise_below)
    candidates = score.masked_fill(~masked, -INF)
    return standing | masked & keep_top(candidates, num_passing(candidates, config).clamp_min(1))


def num_passing(score: Tensor, config: SamplerConfig) -> Tensor:
    """How many of the masked positions pass the adaptive rule, (B,); score: (B, W),
    -inf where nothing is masked.
    """
    (rule,) = (name for name in ADAPTIVE_RULES if getattr(config, name) is not None)
    return PASSING[rule](score.sort(dim=-1, descending=True).values, getattr(config, rule))


def num_probable(ordered: Tensor, threshold: float) -> Tensor:
    """All at least as probable as the threshold (Fast-dLLM, arXiv 2505.22618)."""
    return (ordered >= threshold).sum(-1)


def num_within_factor(ordered: Tensor, factor: float) -> Tensor:
    """The n best while (n + 1)(1 - p) < factor for the n-th (Fast-dLLM, section 3.3)."""
    rank = torch.arange(1, ordered.shape[1] + 1, device=ordered.device)
    return ((rank + 1) * (1 - ordered) < factor).cumprod(-1).sum(-1)


def num_within_budget(ordered: Tensor, error_budget: float) -> Tensor:
    """The n best while their errors 1 - p sum to at most the budget: by the union
    bound, all right with probability 1 - error_budget.

    Factor bounds the same sum by n + 1 times the worst error, and so keeps no more at
    an equal value.
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
    """The `count` (B,) best positions of every row of score (B, W), as bool; ties go to
    the left, on every device.
    """
    rank = score.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    return rank < count[:, None]
