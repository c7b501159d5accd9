"""Which tokens of a block stand after a step.

A fixed schedule says how many (unmask_schedule.py), adaptive rules look at the scores. The
decode loop asks `keep` every step; which columns it may keep is active.py's to say. A new
adaptive rule is a function here, its row in PASSING and an option in SamplerConfig.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from llada_plugins.diffusion.denoiser import masked_first

from .config import SamplerConfig
from .dependence import without_dependents
from .facts import ADAPTIVE_RULES
from .several_blocks import FLOORS, BlocksInWork

INF = float("inf")


def keep(
    score: Tensor,
    masked: Tensor,
    eligible: Tensor,
    count: Tensor | None,
    last: bool,
    config: SamplerConfig,
    *,
    at_least: int = 1,
    dependent: Tensor | None = None,
    blocks: BlocksInWork | None = None,
) -> Tensor:
    """Which positions of the block stand after this step, (B, W) bool.

    All others are masked, or masked again. score: (B, W). masked: (B, W) bool, before the
    step. eligible: (B, W) bool, those of them that an adaptive rule may unmask. count: (B,) of
    a plan, or None. last: no forward is left. at_least: under adaptive rules, how many are
    kept in any case, if a row has so many masks. dependent: (B, W, W) bool, which two should
    not be kept in one step. blocks: where a window spans several; then at_least is of some.
    """
    if not config.adaptive:
        assert count is not None
        return keep_top(score, count)
    if last:
        return torch.ones_like(masked)
    standing = ~masked
    if config.revise_below is not None:
        standing = standing & (score >= config.revise_below)
    candidates = score.masked_fill(~eligible, -INF)
    first, passing = None, candidates
    if dependent is not None:
        first = without_dependents(candidates, eligible, dependent)
        passing = candidates.masked_fill(~first, -INF)
    num_kept = num_passing(passing, config)
    if blocks is None or config.floor == "first_and_best":
        num_kept = num_kept.clamp_min(at_least)
    if count is not None:
        num_kept = num_kept.minimum(count - (~masked).sum(-1))
    kept = keep_top(candidates, num_kept, first)
    if blocks is not None:
        kept |= best_of_blocks(candidates, at_least, blocks, config, first)
        standing = standing | blocks.due(masked.shape[1], config)
    return standing | (eligible & kept)


def best_of_blocks(
    candidates: Tensor,
    number: int,
    blocks: BlocksInWork,
    config: SamplerConfig,
    first: Tensor | None,
) -> Tensor:
    """The best `number` columns of each block that must keep some, (B, W) bool.

    candidates: (B, W) scores, -inf where nothing may be kept. first: as in `keep_top`.
    """
    count = FLOORS[config.floor](blocks).long() * number  # (B, K)
    best = blocks.by_block(candidates, -INF).flatten(0, 1)  # (B * K, width)
    if first is not None:
        first = blocks.by_block(first, False).flatten(0, 1)
    kept = keep_top(best, count.flatten(), first)
    return kept.view(len(candidates), -1)[:, : candidates.shape[1]]


def num_passing(score: Tensor, config: SamplerConfig) -> Tensor:
    """How many of the masked positions pass the adaptive rule, (B,).

    score: (B, W), -inf where nothing is masked.
    """
    [rule] = [name for name in ADAPTIVE_RULES if getattr(config, name) is not None]
    ordered = score.sort(dim=-1, descending=True).values
    passing = (PASSING | STRICTLY)[rule] if config.strict else PASSING[rule]
    return passing(ordered, getattr(config, rule))


def num_probable(ordered: Tensor, threshold: float) -> Tensor:
    """All at least as probable as the threshold (Fast-dLLM, arXiv 2505.22618)."""
    return (ordered >= threshold).sum(-1)


def num_more_probable(ordered: Tensor, threshold: float) -> Tensor:
    """All more probable than the threshold (SDAR, LLaDA2, Fast-dLLM v2)."""
    return (ordered > threshold).sum(-1)


def num_certain(ordered: Tensor, threshold: float) -> Tensor:
    """All whose entropy is at most the threshold (dParallel, arXiv 2509.26488).

    ordered: entropies, negated.
    """
    return (-ordered <= threshold).sum(-1)


def num_more_certain(ordered: Tensor, threshold: float) -> Tensor:
    """All whose entropy is below the threshold (d3LLM's Dream, arXiv 2601.07568)."""
    return (-ordered < threshold).sum(-1)


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
    "threshold_entropy": num_certain,
    "factor": num_within_factor,
    "error_budget": num_within_budget,
}
# the same, of rules under the option strict
STRICTLY: dict[str, Callable[[Tensor, float], Tensor]] = {
    "threshold": num_more_probable,
    "threshold_entropy": num_more_certain,
}


def keep_top(score: Tensor, count: Tensor, first: Tensor | None = None) -> Tensor:
    """The `count` (B,) best positions of every row of score (B, W), as bool.

    Ties go to the left, on every device. first: (B, W) bool, those that go before all others.
    """
    order = score.argsort(dim=-1, descending=True, stable=True)
    if first is not None:
        order = order.gather(1, masked_first(first.gather(1, order)))
    return order.argsort(dim=-1) < count[:, None]
