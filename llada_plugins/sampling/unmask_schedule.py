"""How many tokens of a block stand after a step.

Fixed schedules are known before the first step; adaptive rules look at the scores. The
decode loop asks `plan_block` once a block and `keep` every step; which columns it may keep is
active.py's to say. A new schedule is a function
here, its row in SCHEDULES and a value of the option schedule; a new adaptive rule is a
function here, its row in PASSING and an option in SamplerConfig.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from llada_plugins.diffusion.denoiser import masked_first

from .config import SamplerConfig
from .dependence import without_dependents
from .facts import ADAPTIVE_RULES, Schedule
from .several_blocks import FLOORS, BlocksInWork

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
    """A block before its first step, B rows.

    uniform: step numbers (S, 1, 1) to the U(0, 1) draws of confidence_source=random at
    every position in these steps, (S, B, W).
    """

    masked: Tensor  # (B, W) bool
    steps: int
    first: int = 0  # the step to begin with; earlier ones are not planned
    uniform: Callable[[Tensor], Tensor] | None = None
    # (B,) tokens of it that were given, where spans of a text are filled in
    given: Tensor | None = None

    @property
    def num_masked(self) -> Tensor:
        """Masks of each row, (B,)."""
        return self.masked.sum(-1)

    @property
    def width(self) -> int:
        """Tokens of the block."""
        return self.masked.shape[1]

    def standing(self, shares: Tensor) -> Tensor:
        """Tokens that stand after each step, (B, S), from those that each step unmasks."""
        return self.width - self.num_masked[:, None] + shares.cumsum(-1)


def linear(block: Unfilled, config: SamplerConfig) -> Tensor:
    """Equal shares of the masked tokens, larger ones first (LLaDA)."""
    return block.standing(quota(block.num_masked, block.steps - block.first))


def linear_revised(block: Unfilled, config: SamplerConfig) -> Tensor:
    """Equal shares of the masked tokens, larger ones last (RemeDi's dynamic remasking).

    Where tokens were given, and fewer than steps are masked, every step unmasks one: those
    that unmask none have little to exchange.
    """
    shares = quota(block.num_masked, block.steps, remainder_last=True)
    if block.given is not None:
        few = (block.given > 0) & (block.num_masked < block.steps)
        shares = torch.where(few[:, None], quota(block.num_masked, block.steps), shares)
    return block.standing(shares)


def block_share(block: Unfilled, config: SamplerConfig) -> Tensor:
    """Equal shares of the whole block, larger ones first, as far as there are masks (SDAR)."""
    of_block = torch.full_like(block.num_masked, block.width)
    return block.standing(quota(of_block, block.steps)).clamp_max(block.width)


def mask_and_refine(block: Unfilled, config: SamplerConfig) -> Tensor:
    """All but remask_ratio of the block after every step, and all of it after the last.

    What was given is no part of that share.
    """
    assert config.remask_ratio is not None
    decoded = torch.full_like(block.num_masked, block.width)
    if block.given is not None:
        decoded = decoded - block.given
    num_refined = (config.remask_ratio * decoded.double() + 1e-6).long()
    kept = (block.width - num_refined)[:, None].repeat(1, block.steps)
    kept[:, -1] = block.width
    return kept


def dream(block: Unfilled, config: SamplerConfig) -> Tensor:
    """Of the masks that are left the share that timesteps say, rounded down (Dream).

    Timesteps are linspace(1, eps), and all arithmetic is in float32, as published: in
    float64 some counts differ by one (arXiv 2508.15487 and its code).
    """
    shares = _dream_shares(block.width, block.steps, config.last_timestep, block.first)
    return block.standing(shares.to(block.masked.device)[block.num_masked])


def independent(block: Unfilled, config: SamplerConfig) -> Tensor:
    """Each masked token by itself with the probability that Dream's timesteps give a step.

    The draws are those that confidence_source=random ranks by, the highest first: so the
    tokens that a step keeps are those whose draw exceeds 1 - probability.
    """
    assert block.uniform is not None
    rates = _dream_rates(block.steps, config.last_timestep).to(block.masked.device)  # (S,)
    steps = torch.arange(block.steps, device=block.masked.device)[:, None, None]
    passes = block.uniform(steps) > 1 - rates.double()[:, None, None]  # (S, B, W)
    unmasked = passes.cumsum(0) > 0
    return (unmasked | ~block.masked).sum(-1).T


def mdlm(block: Unfilled, config: SamplerConfig) -> Tensor:
    """Of the masks that are left the share of a linear alpha, half to even (dllm's MDLM)."""
    shares = _mdlm_shares(block.width, block.steps)
    return block.standing(shares.to(block.masked.device)[block.num_masked])


# a block and its options -> tokens that stand after each step, (B, steps)
SCHEDULES: dict[Schedule, Callable[[Unfilled, SamplerConfig], Tensor]] = {
    "linear": linear,
    "linear_revised": linear_revised,
    "block_share": block_share,
    "mask_and_refine": mask_and_refine,
    "dream": dream,
    "independent": independent,
    "mdlm": mdlm,
}


def _dream_rates(steps: int, eps: float) -> Tensor:
    """Probability (S,) float32 with which each step unmasks a token: 1 - s / t; 1 in the last.

    Always on the CPU, so that a device's linspace changes no count.
    """
    times = torch.linspace(1, eps, steps + 1)
    rates = 1 - times[1:] / times[:-1]
    rates[-1] = 1
    return rates


@lru_cache(maxsize=64)
def _dream_shares(width: int, steps: int, eps: float, first: int) -> Tensor:
    """Tokens that each step unmasks, (width + 1, steps - first), for each number of masks."""
    rates, left, shares = _dream_rates(steps, eps), torch.arange(width + 1), []
    for step in range(first, steps):
        share = (left.float() * rates[step]).long()
        shares.append(share)
        left = left - share
    return torch.stack(shares, 1)


@lru_cache(maxsize=64)
def _mdlm_shares(width: int, steps: int) -> Tensor:
    """Tokens that each step unmasks, (width + 1, steps), for each number of masks.

    alpha(t) = 1 - t and the ratio of what is masked before and after are float32, the
    product float64, as in dllm's code.
    """
    times = torch.tensor([step / steps for step in range(steps, -1, -1)])  # float32
    masked = 1 - (1 - times)
    left, shares = torch.arange(width + 1), []
    for before, after in zip(masked[:-1], masked[1:]):
        share = (left.double() * (1 - float(after / before))).round().long()
        shares.append(share)
        left = left - share
    return torch.stack(shares, 1)


class Plan(NamedTuple):
    """What is known of a block's steps before the first, of B rows and S steps."""

    standing: Tensor  # (B, S) tokens that stand after each; under a paced rule, at most
    # (B, S) the numbers that the schedule gives them; None: each step's own, from 0
    numbers: Tensor | None = None

    def keep_rows(self, places: Tensor) -> Plan:
        """The rows at these places alone."""
        return Plan(self.standing[places], None if self.numbers is None else self.numbers[places])


def plan_block(
    masked: Tensor,
    config: SamplerConfig,
    steps: int | None = None,
    uniform: Callable[[Tensor], Tensor] | None = None,
    given: Tensor | None = None,
) -> Plan | None:
    """The steps that a block takes; None under adaptive rules without a limit.

    masked: (B, W) bool. steps, uniform, given: see `planned`. Steps in which a row would change
    nothing are left out of its plan, for they cost a forward each.
    """
    standing = planned(masked, config, steps, uniform, given)
    if standing is None:
        return None
    if config.may_idle:
        return without_idle(standing, (~masked).sum(-1))
    return Plan(standing)


def without_idle(standing: Tensor, before: Tensor) -> Plan:
    """The plan without steps that unmask nothing: they come last, when a row is done.

    standing: (B, S). before: (B,) tokens that stand before the first step.
    """
    unmasked = standing.diff(dim=-1, prepend=before[:, None])
    order = (unmasked == 0).byte().argsort(dim=-1, stable=True)
    return Plan(standing.gather(1, order).cummax(1).values, order)


def planned(
    masked: Tensor,
    config: SamplerConfig,
    steps: int | None = None,
    uniform: Callable[[Tensor], Tensor] | None = None,
    given: Tensor | None = None,
) -> Tensor | None:
    """Tokens of the block that stand after each step, (B, steps); None under adaptive rules.

    Of a rule that is paced, or begins with the first token, at most so many. masked:
    (B, W) bool. steps: default a block's share of config.steps. uniform: see `Unfilled`;
    schedule=independent needs it. given: (B,) see `Unfilled`.
    """
    steps = steps or config.steps_per_block
    if config.opens_with_one:
        rest = masked.clone()
        rest[:, 0] = False
        if config.adaptive:
            after = torch.full_like(masked.sum(-1), masked.shape[1])[:, None]
        else:
            after = SCHEDULES[config.fixed_schedule](Unfilled(rest, steps, 1, uniform), config)
        return torch.cat([(~rest).sum(-1, keepdim=True), after], 1)
    if config.adaptive and not config.paced:
        return None
    return SCHEDULES[config.fixed_schedule](Unfilled(masked, steps, 0, uniform, given), config)


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
