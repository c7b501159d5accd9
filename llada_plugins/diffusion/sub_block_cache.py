"""Fast-dLLM v2's cache of a block's parts, an approximation inside the block (use_block_cache).

A block is unmasked part by part. While a part's first token is masked, and at the block's
first step, a forward is of everything. Later ones are of the part alone: the keys and
values of all others stay as that forward had them, and where logits are shifted, the part's
first token keeps its own.
"""

from __future__ import annotations

import torch

from llada_plugins.models.past import Past

from .denoiser import Canvas, Denoiser, Prediction
from .memory import Rows


class PastOfEachRow:
    """Keys and values of each row's last forward of everything, if there was one."""

    def __init__(self) -> None:
        self.rows: list[Past | None] = []

    def keep_rows(self, rows: Rows) -> None:
        """Forget all other rows."""
        self.rows = [self.rows[place] for place in rows.of(torch.arange(len(self.rows))).tolist()]


def cached_by_parts(denoise: Denoiser, length: int, mask_id: int) -> Denoiser:
    """The denoiser, whose forwards are of one part of the window where the cache allows.

    length: tokens of a part. Rows are at different parts, so each has forwards of its own.
    """

    def denoise_by_parts(canvas: Canvas, window: slice) -> Prediction:
        if canvas.memory is None:
            return denoise(canvas, window)
        kept = canvas.memory.of(PastOfEachRow)
        kept.rows = kept.rows or [None] * len(canvas.tokens)
        masked = canvas.tokens[:, window] == mask_id  # (B, W)
        logits = []
        for row, masks in enumerate(masked.tolist()):
            alone = _row(canvas, row)
            first = masks.index(True) // length * length if any(masks) else 0
            past = kept.rows[row]
            if past is None or masks[first]:
                past = Past()
                predicted = denoise(alone._replace(past=past), window)
                # the token that opens a block is, as published, that block's and no part's
                kept.rows[row] = None if masks[0] else past
                logits.append(_all_of(predicted, window.stop - window.start, canvas))
            else:
                part = slice(window.start + first, window.start + first + length)
                predicted = denoise(alone._replace(past=past, columns=part), part)
                of_part = _all_of(predicted, length, canvas)
                whole = of_part.new_zeros(1, masked.shape[1], of_part.shape[2])
                whole[:, first : first + length] = of_part
                logits.append(whole)
        return Prediction.from_logits(torch.cat(logits))

    return denoise_by_parts


def _row(canvas: Canvas, row: int) -> Canvas:
    """The canvas of one row, which remembers nothing."""
    only = slice(row, row + 1)
    return canvas._replace(
        tokens=canvas.tokens[only],
        answer_start=canvas.answer_start[only],
        ids=None if canvas.ids is None else canvas.ids[only],
        embeds=None if canvas.embeds is None else canvas.embeds[only],
        given=None if canvas.given is None else canvas.given[only],
        memory=None,
    )


def _all_of(prediction: Prediction, width: int, canvas: Canvas) -> torch.Tensor:
    """The logits (1, W, V) of all columns."""
    return prediction.logits_at(torch.arange(width, device=canvas.tokens.device)[None])
