"""What is known of columns that a step leaves out, of each row another set of them.

Delayed caching (dKV-Cache, arXiv 2505.15781): a token's keys and values change most in the
step after it was decoded, so they are frozen from then on, not earlier.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llada_plugins.models.columns import at_columns

from .denoiser import Canvas, masked_first
from .memory import Rows


def put_at(memory: Tensor, columns: slice | Tensor, values: Tensor) -> None:
    """Write values (B, W, ...) to memory (B, L, ...) at a slice of columns, or at (B, W)."""
    if isinstance(columns, slice):
        memory[:, columns] = values
        return
    rows = torch.arange(len(columns), device=columns.device)[:, None]
    memory[rows, columns] = values


def places_of(work: Tensor) -> Tensor:
    """The columns (B, W) of each row that are true in work (B, L), of which each has some.

    A row with fewer than others has one of its own several times. Waits for the device.
    """
    number = work.sum(1, keepdim=True)  # (B, 1)
    places = masked_first(work)[:, : int(number.max())]
    rank = torch.arange(places.shape[1], device=work.device)
    return torch.where(rank < number, places, places[:, :1])


class KnownStates:
    """Of every column, the token it was last computed from and what came of that."""

    def __init__(self) -> None:
        self.tokens: Tensor | None = None  # (B, L)
        self.hidden: Tensor | None = None  # (B, L, D)
        self.own: Tensor | None = None  # (B, L) of a policy stream

    def keep_rows(self, rows: Rows) -> None:
        """Forget all other rows."""
        for name, values in vars(self).items():
            if values is not None:
                setattr(self, name, rows.of(values))

    def update(
        self, tokens: Tensor, columns: slice | Tensor, hidden: Tensor, own: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Take over what was computed of columns; returns the states of all, (B, L, D), (B, L)."""
        if self.tokens is None or self.hidden is None:
            self.tokens = tokens.clone()
            self.hidden = hidden.new_zeros(*tokens.shape, hidden.shape[-1])
            self.own = None if own is None else own.new_zeros(tokens.shape)
        put_at(self.tokens, columns, at_columns(tokens, columns))
        put_at(self.hidden, columns, hidden)
        if self.own is not None and own is not None:
            put_at(self.own, columns, own)
        return self.hidden, self.own

    def in_work(
        self,
        canvas: Canvas,
        near: slice,
        window: slice,
        mask_id: int,
        *,
        beside: bool,
        shifted: bool,
    ) -> Tensor:
        """Columns of each row that a step computes, (B, W).

        They are those of `near` with a mask, or with another token than the one they were
        computed from; beside: and all outside the window; shifted: and those left of a
        mask, which its logits come from. See `places_of`: rows in work have masks.
        """
        assert self.tokens is not None
        tokens = canvas.tokens
        column = torch.arange(tokens.shape[1], device=tokens.device)
        start, stop, _ = near.indices(tokens.shape[1])
        masked = tokens == mask_id
        work = masked | (tokens != self.tokens)  # (B, L)
        if shifted:
            work = work | masked.roll(-1, 1)
        if beside:
            work = work | (column < window.start) | (column >= window.stop)
        work = work & (column >= start) & (column < stop)
        return places_of(work)
