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

from llada_plugins.diffusion.denoiser import Canvas, Denoiser, masked_first
from llada_plugins.diffusion.memory import Memory
from llada_plugins.models.special_tokens import SpecialTokens

from .branches import Branching
from .config import SamplerConfig
from .deciding import Deciding
from .propose import draws_of_confidence
from .several_blocks import BlocksInWork
from .speculation import Speculating
from .step import Step
from .unmask_schedule import plan_block
from .work import Foreseen, RowsInWork, foresee, work_left_now


class Unmasked(NamedTuple):
    """What became of B rows whose window was to be filled."""

    forwards: Tensor  # (B,) that each needed
    branches: Tensor  # (B,) further rows that each had in them
    left: Tensor  # (B,) bool: did an end token end the row, whatever is masked after it?


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
) -> Unmasked:
    """Denoise canvas.tokens[:, window] in place until none of it is masked.

    keys: (B,) random streams. offset: the window's first position among those that the
    streams count, of all rows or (B,). steps: of a fixed schedule, by default those of one
    block. on_step: sees every step; its rows are numbers of canvas rows, its block is 0.
    """
    tokens = canvas.tokens
    work, foreseen = begin(canvas, window, keys, offset, steps, config, special)
    nothing = torch.zeros_like(work.numbers)
    result = Unmasked(nothing, nothing.clone(), nothing.bool())
    stepper: Deciding | Branching | Speculating
    if config.branches is not None:
        stepper = Branching(config, special, on_step, result.branches)
    elif config.draft_rows is not None:
        stepper = Speculating(config, special, on_step, result.branches)
    else:
        stepper = Deciding(config, special, on_step, result.left)
    num_steps = foreseen.num_steps
    for step in range(num_steps):
        work = work.before_step(special.mask)
        if foreseen.left is None:
            left = work_left_now(work, result.left, special, config)
        else:
            left = foreseen.left[step]
        if left.num_rows == 0:
            num_steps = step
            break
        if left.num_rows < len(work.numbers):  # rows that are done cost no further forwards
            work.write_back(tokens, result.forwards, step)
            unfinished = work.unfinished(result.left, special.mask)
            work = work.keep_rows(masked_first(unfinished)[: left.num_rows])
        prediction = denoise(work.canvas, work.window)
        last = config.adaptive and step == foreseen.num_steps - 1
        work = stepper.take_step(prediction, work, step, left.most, last=last)
    stepper.tell()
    work.write_back(tokens, result.forwards, num_steps)
    return result


def begin(
    canvas: Canvas,
    window: slice,
    keys: Tensor,
    offset: int | Tensor,
    steps: int | None,
    config: SamplerConfig,
    special: SpecialTokens,
) -> tuple[RowsInWork, Foreseen]:
    """All rows of a canvas before the first step of a window, and what is known of its steps."""
    device, num_rows = canvas.tokens.device, len(canvas.tokens)
    masked = canvas.tokens[:, window] == special.mask  # (B, W)
    offsets = torch.as_tensor(offset, device=device).expand(num_rows)[:, None]
    draws = draws_of_confidence(keys, offsets, masked.shape[1])
    given = None if canvas.given is None else canvas.given[:, window].sum(-1)
    plan = plan_block(masked, config, steps, draws, given)
    foreseen = foresee(masked, plan, config)
    numbers = torch.arange(num_rows, device=device)
    work = RowsInWork(
        # a memory for these steps alone: what a cache keeps must not outlive them
        canvas._replace(memory=Memory()),
        window,
        numbers,
        keys,
        offsets,
        window.start - canvas.answer_start,
        numbers.new_full((num_rows,), config.post_steps),
        torch.arange(foreseen.num_steps, device=device),
        plan,
        BlocksInWork.of(masked, config) if config.blocks_at_once > 1 else None,
        None if config.branches is None else torch.zeros_like(masked),
    )
    return work, foreseen
