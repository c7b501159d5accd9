"""Decode a masked-diffusion language model: the one loop in which masks become tokens.

Every published decoder here is a set of options of `SamplerConfig`, not another loop:
what to trust, how many tokens to keep, which may be revised. The sampler sees a Denoiser
and token rows; it knows nothing of models, guidance, caches, tokenizers or harnesses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from llada_plugins.diffusion.denoiser import PADDING, Canvas, Denoiser, masked_first
from llada_plugins.diffusion.memory import Memory
from llada_plugins.models.special_tokens import SpecialTokens

from .config import SamplerConfig
from .propose import INF, ActiveBlock, draws_of_confidence, proposals_at
from .unmask_schedule import Plan, keep, plan_block


class Step(NamedTuple):
    """What one step did, for observers: B rows, the W positions of the block.

    rows: which of the prompts; under a Review a prompt may come several times, once for
    each candidate, which `places` tells apart. proposal: where nothing was proposed, the
    token that stands there.
    """

    block: int  # number of the block, from 0
    step: int  # number of the step in the block, from 0
    rows: Tensor  # (B,)
    # (B,) position in the answer of the block's first column; negative where the prompt's
    # end lies in the block
    start: Tensor
    places: Tensor  # (B,) rows of the canvas, the same in all steps that fill it
    proposal: Tensor  # (B, W) tokens
    score: Tensor  # (B, W) fp32; inf where a token is pinned
    policy: Tensor | None  # (B, W) score h of a policy stream, if the model has one
    masked: Tensor  # (B, W) bool: masked before this step
    kept: Tensor  # (B, W) bool: unmasked by this step
    remasked: Tensor  # (B, W) bool: masked again by this step

    def keep_rows(self, places: Tensor) -> Step:
        """The rows at these places alone."""
        of_rows = {
            name: value[places] for name, value in self._asdict().items() if torch.is_tensor(value)
        }
        return self._replace(**of_rows)


class RowsInWork(NamedTuple):
    """The N rows of a canvas whose window still has masks, and what belongs to each."""

    canvas: Canvas
    window: slice
    numbers: Tensor  # (N,) of these rows among those at the start
    keys: Tensor  # (N,) random streams
    offsets: Tensor  # (N, 1) of the window's first column in the row's random streams
    plan: Plan | None  # what is known of its steps

    @property
    def block(self) -> Tensor:
        """The window's tokens (N, W), a view: what is written here, the canvas holds."""
        return self.canvas.tokens[:, self.window]

    @property
    def fixed(self) -> Tensor:
        """Which of the block's columns hold no token of the answer, (N, W): they stay."""
        column = torch.arange(*self.window.indices(self.window.stop), device=self.keys.device)
        return (column < self.canvas.answer_start[:, None]) | (self.block == PADDING)

    def keep_rows(self, places: Tensor) -> RowsInWork:
        """The rows at these places alone."""
        return RowsInWork(
            self.canvas.keep_rows(places),
            self.window,
            self.numbers[places],
            self.keys[places],
            self.offsets[places],
            None if self.plan is None else self.plan.keep_rows(places),
        )

    def number_of(self, step: int) -> int | Tensor:
        """The schedule's number of the step, for rows of their own pace as (N, 1)."""
        if self.plan is None or self.plan.numbers is None:
            return step
        return self.plan.numbers[:, step, None]

    def standing_after(self, step: int) -> Tensor | None:
        """Tokens that stand after the step, (N,), if a plan says so."""
        if self.plan is None:
            return None
        return self.plan.standing[:, min(step, self.plan.standing.shape[1] - 1)]

    def copy_to(self, tokens: Tensor) -> None:
        """Write the blocks to their rows of tokens (B, L)."""
        tokens[self.numbers, self.window] = self.block.clone()  # both may be one memory


class MasksLeft(NamedTuple):
    """What is left to do before a step."""

    num_rows: int  # how many rows have masks
    most: int  # how many masks the row with most of them has


def masks_left(num_masked: Tensor) -> list[MasksLeft]:
    """What is left before each of S steps, from every row's masks before each, (B, S).

    Waits for the device, one time for all steps.
    """
    num_rows = (num_masked > 0).sum(0)
    most = num_masked.amax(0)
    return [MasksLeft(*each) for each in torch.stack([num_rows, most], 1).tolist()]


def unmask(
    denoise: Denoiser,
    canvas: Canvas,
    window: slice,
    keys: Tensor,
    config: SamplerConfig,
    special: SpecialTokens,
    *,
    offset: int | Tensor = 0,
    steps: int | None = None,
    on_step: Callable[[Step], None] | None = None,
) -> Tensor:
    """Denoise canvas.tokens[:, window] in place until none of it is masked.

    Returns the forwards that each row needed, (B,). keys: (B,) random streams. offset:
    the window's first position among those that the streams count, of all rows or (B,).
    steps: of a fixed schedule, by default those of one block. on_step: sees every step; its
    rows are numbers of canvas rows, its block is 0.
    """
    tokens = canvas.tokens
    masked = tokens[:, window] == special.mask  # (B, W)
    width = masked.shape[1]
    offsets = torch.as_tensor(offset, device=tokens.device).expand(len(tokens))[:, None]
    plan = plan_block(masked, config, steps, draws_of_confidence(keys, offsets, width))
    if plan is None or config.adaptive:
        foreseen = None
        num_blocks = -(-width // config.block)  # rounded up: the last may be short
        num_steps = config.forwards_per_block * num_blocks
    else:
        left_after = width - plan.standing
        foreseen = masks_left(torch.cat([masked.sum(-1, keepdim=True), left_after], 1))
        num_steps = left_after.shape[1]
    # a memory for these steps alone: what a cache keeps must not outlive them
    canvas = canvas._replace(memory=Memory())
    numbers = torch.arange(len(tokens), device=tokens.device)
    work = RowsInWork(canvas, window, numbers, keys, offsets, plan)
    forwards = torch.zeros_like(work.numbers)
    for step in range(num_steps):
        masked = work.block == special.mask  # (N, W)
        if foreseen is None:
            [left] = masks_left(masked.sum(-1, keepdim=True))
        else:
            left = foreseen[step]
        if left.num_rows == 0:
            break
        if left.num_rows < len(work.numbers):  # rows that are done cost no further forwards
            work.copy_to(tokens)
            work = work.keep_rows(masked_first(masked.any(-1))[: left.num_rows])
            masked = work.block == special.mask
        forwards[work.numbers] += 1
        num_columns = width if config.revises else left.most
        columns = masked_first(masked)[:, :num_columns]  # (N, M)
        block = ActiveBlock(work.block, work.keys, work.offsets, work.number_of(step))
        prediction = denoise(work.canvas, window)
        proposal, score = proposals_at(prediction, columns, block, config, special)
        if step == 0 and config.opens_with_one:
            score[:, 0] = INF
        if config.revises:
            score = score.masked_fill(work.fixed, INF)
        standing = keep(score, masked, work.standing_after(step), step == num_steps - 1, config)
        if config.revises:
            standing = standing | work.fixed
        work.block.copy_(torch.where(standing, proposal, special.mask))
        if on_step is not None:
            is_masked = work.block == special.mask
            kept, remasked = masked & ~is_masked, ~masked & is_masked
            on_step(
                Step(
                    block=0,
                    step=step,
                    rows=work.numbers,
                    start=window.start - work.canvas.answer_start,
                    places=work.numbers,
                    proposal=proposal,
                    score=score,
                    policy=prediction.confidence,
                    masked=masked,
                    kept=kept,
                    remasked=remasked,
                )
            )
    work.copy_to(tokens)
    return forwards
