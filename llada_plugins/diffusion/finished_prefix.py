"""Finished blocks of a row are frozen a while after their last mask fell, first those on the left.

Delayed caching of d3LLM's multi-block decoding (arXiv 2601.07568): what a row computes ends on
the left where its prompt and its finished blocks are frozen. While a finished block still
waits, its row's forwards are of everything.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .denoiser import Canvas
from .memory import Rows


class DelayedPrefix(NamedTuple):
    """When a finished block is frozen."""

    delay: int  # forwards after the first that found it full; the prompt's first has number 1
    block: int  # tokens of a block
    mask_id: int


class FinishedParts:
    """Of each row's prompt and K blocks, in this order, how long they have been full."""

    def __init__(self) -> None:
        # (B, K + 1) forwards since the first that found the part full, which is 0; -1 before
        self.since: Tensor | None = None
        self.number: Tensor | None = None  # (B,) parts on the left that are frozen

    def keep_rows(self, rows: Rows) -> None:
        """Forget all other rows."""
        for name, values in vars(self).items():
            if values is not None:
                setattr(self, name, rows.of(values))

    def work(self, canvas: Canvas, window: slice, rule: DelayedPrefix, num_left: int) -> Tensor:
        """Columns (B, L) that the next forward computes, bool.

        window: the whole answer. num_left: columns on the left of a masked one that its logits
        need.
        """
        masked = canvas.tokens[:, window] == rule.mask_id
        full = _all_of_blocks(~masked, rule.block)
        of_prompt = torch.ones_like(full[:, :1])
        if self.since is None or self.number is None:
            never = torch.full_like(full, -1, dtype=torch.long)
            self.since = torch.cat([of_prompt.long() - 1, never], 1)
            self.number = self.since.new_zeros(len(full))
        full = torch.cat([of_prompt, full], 1)
        self.since = torch.where(full, self.since + 1, self.since)
        before = self.number
        ready = self.since >= rule.delay
        self.number = ready.long().cumprod(1).sum(1).maximum(before)
        # the next part on the left is full and not yet frozen
        following = self.number.clamp(max=full.shape[1] - 1)[:, None]
        waits = full.gather(1, following)[:, 0] & (self.number < full.shape[1])
        everything = waits & (self.number == before)
        after_frozen = window.start + (before - 1) * rule.block - num_left  # (B,)
        starts = torch.where((before == 0) | everything, 0, after_frozen)
        column = torch.arange(canvas.tokens.shape[1], device=starts.device)
        return column >= starts[:, None]


def _all_of_blocks(flags: Tensor, width: int) -> Tensor:
    """Are all flags (B, W) of a block set? (B, K) bool; the last may be short."""
    missing = -flags.shape[1] % width
    filled = torch.nn.functional.pad(flags, (0, missing), value=True)
    of_blocks: Tensor = filled.unflatten(1, (-1, width)).all(-1)
    return of_blocks
