"""Steps of which one set of tokens goes on: those of every rule without branches or drafts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from llada_plugins.diffusion.denoiser import Prediction
from llada_plugins.models.special_tokens import SpecialTokens

from .config import SamplerConfig
from .decision import Decide, Decision, Reasons, ends_in
from .step import Step
from .work import RowsInWork


class Deciding:
    """Steps of which one set of tokens goes on; on_step sees each right after it.

    left: (B,) of all rows, see Unmasked; it is kept up to date.
    """

    def __init__(
        self,
        config: SamplerConfig,
        special: SpecialTokens,
        on_step: Callable[[Step], None] | None,
        left: Tensor,
    ) -> None:
        self.config, self.special, self.on_step, self.left = config, special, on_step, left

    def take_step(
        self, prediction: Prediction, work: RowsInWork, number: int, num_columns: int, *, last: bool
    ) -> RowsInWork:
        """What a forward of the rows in work changes in their block, in place.

        number: of the step. num_columns: of the block that are judged, at most. last: no
        forward is left.
        """
        config = self.config
        decide = Decide(
            config,
            self.special,
            config.at_least_in(number),
            last=last,
            opens=config.opens_with_one and number == 0,
            explains=config.leaves or config.edits or self.on_step is not None,
        )
        before = work.before(number, config)
        decision: Decision
        if decide.waits:
            decision = decide(prediction, before, num_columns)
        else:
            decision = prediction.decide(decide, before, num_columns, work.block.shape[1])
        reasons = decision.reasons
        work.block.copy_(decision.tokens)
        if reasons is not None:
            self._follow(work, number, prediction.confidence, decision.tokens, reasons)
        return work

    def _follow(
        self,
        work: RowsInWork,
        number: int,
        policy: Tensor | None,
        tokens: Tensor,
        reasons: Reasons,
    ) -> None:
        """Note and show what a step has done; tokens: (N, W) that it left."""
        if self.config.edits:
            left = post_steps_left(work.post_steps, reasons.masked, reasons.replaced)
            work.post_steps.copy_(left)
        if self.config.leaves:
            self.left[work.numbers] = has_left(work, reasons.masked, self.special, self.config)
        if self.on_step is not None:
            self.on_step(work.as_step(number, policy, reasons, tokens, self.special.mask))

    def tell(self) -> None:
        """Every step has been shown."""


def post_steps_left(before: Tensor, masked: Tensor, replaced: Tensor) -> Tensor:
    """Forwards (B,) that are left to rows without masks; none after one that replaces nothing.

    before: (B,). masked, replaced: (B, W) by the step.
    """
    after_last_mask = ~masked.any(-1)
    left = (before - 1).masked_fill(~replaced.any(-1), 0)
    return torch.where(after_last_mask, left, before)


def has_left(
    work: RowsInWork, masked: Tensor, special: SpecialTokens, config: SamplerConfig
) -> Tensor:
    """Which rows (N,) a step has ended: an end token stands and nothing before it is masked.

    Under stop_at=new_eos the step must have written one. masked: (N, W) before it.
    """
    is_end = ends_in(work.block, special) & ~work.fixed
    after_mask = (work.block == special.mask).cumsum(-1) > 0
    left = (is_end & ~after_mask).any(-1)
    if config.stops == "new_eos":
        left &= (is_end & masked).any(-1)
    return left
