"""A teacher whose answers follow a rule where several are as good: a denoiser around one.

Equally good answers differ by chance in what is a little more probable. A student cannot
learn that, and stays unsure where its teacher was.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from llada_plugins.diffusion.denoiser import Canvas, Denoiser, LogitsAt, Prediction, log_total
from llada_plugins.diffusion.guidance import without

AT_ONCE = 64  # positions whose logits exist together


def canonical(denoise: Denoiser, mask_id: int, *, sure: float, share: float) -> Denoiser:
    """The same prediction, but where it is sure of no masked token one has probability 1.

    That is the leftmost masked column's token with the smallest id of those at least `share`
    times as probable as its best (0 to 1). sure: the probability, mask token in the
    normaliser, from which a token is sure. A loop with this threshold then takes the first
    answer in the order of ids, as far as the model knows which tokens are possible. Logits of
    masked columns are computed twice.
    """

    def denoise_canonical(canvas: Canvas, window: slice) -> Prediction:
        prediction = denoise(canvas, window)
        masked = canvas.tokens[:, window] == mask_id  # (B, W)
        unsure = ~_any_sure(prediction.logits_at, masked, mask_id, sure)  # (B,)
        column = masked.byte().argmax(-1)  # (B,) the leftmost
        column = column.masked_fill(~(unsure & masked.any(-1)), -1)
        logits_at = CanonicalLogits(prediction.logits_at, column, mask_id, share)
        return prediction._replace(logits_at=logits_at, model=None)

    return denoise_canonical


def _any_sure(logits_at: LogitsAt, masked: Tensor, mask_id: int, sure: float) -> Tensor:
    """In which rows a masked token (B, W) has at least that probability, (B,) bool."""
    found = torch.zeros(len(masked), dtype=torch.bool, device=masked.device)
    for part in masked.nonzero().split(AT_ONCE):
        rows, columns = part.unbind(-1)
        logits = logits_at(columns, rows).float()  # (P, V)
        total = log_total(logits)
        probability = (without(logits, (mask_id,)).amax(-1) - total).exp()
        found[rows[probability >= sure]] = True
    return found


class CanonicalLogits(NamedTuple):
    """A LogitsAt with a single token left at a column of some rows."""

    others: LogitsAt
    column: Tensor  # (B,) in the window; -1: none
    mask_id: int
    share: float

    def __call__(self, at: Tensor, rows: Tensor | None = None) -> Tensor:
        logits = self.others(at, rows)
        column = self.column[:, None] if rows is None else self.column[rows]
        here = at == column
        decided = logits[here].float()  # (N, V)
        choices = without(decided, (self.mask_id,))
        likely = choices.softmax(-1)
        likely = likely >= self.share * likely.amax(-1, keepdim=True)
        first = likely.byte().argmax(-1, keepdim=True)  # (N, 1)
        alone = torch.full_like(decided, -torch.inf).scatter(-1, first, 0.0)
        logits = logits.clone()
        logits[here] = alone.to(logits.dtype)
        return logits
