"""How many tokens of a block stand after a step.

Fixed schedules are known before the first step: the decode loop asks `plan_block` once a
block. Rules that look at the scores are in keep_rules.py. A new schedule is a function here,
its row in SCHEDULES and a value of the option schedule.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from .config import SamplerConfig
from .facts import Schedule


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
