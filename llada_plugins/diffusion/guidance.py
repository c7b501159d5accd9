"""Classifier-free guidance and suppressed tokens: denoisers around a denoiser."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .arguments import check_function, is_number, is_whole
from .denoiser import Canvas, Denoiser, LogitsAt, Prediction


def guided(denoise: Denoiser, scale: float, mask_id: int) -> Denoiser:
    """Classifier-free guidance (LLaDA, arXiv 2502.09992, appendix A).

    The prediction is u + (scale + 1)(c - u), where c sees the prompt and u a masked one. Of a
    text whose spans are filled in, all that was given is the prompt, as in LLaDA's code.
    ValueError where `check_scale` raises it.
    """
    check_function("denoise", denoise)
    check_scale(scale)
    if not is_whole(mask_id):
        raise ValueError(f"mask_id must be the id of the mask token, got {mask_id!r}")

    def denoise_guided(canvas: Canvas, window: slice) -> Prediction:
        tokens, start = canvas.tokens, canvas.answer_start
        # wrappers that set them go inside: the blank prompt needs its own
        assert canvas.embeds is None and canvas.past is None
        blank = tokens.masked_fill(canvas.prompt, mask_id)
        tokens_of_both = torch.cat([tokens, blank])  # (2 B, L)
        of_both = canvas._replace(
            tokens=tokens_of_both,
            answer_start=start.repeat(2),
            ids=None if canvas.ids is None else torch.cat([canvas.ids, ~canvas.ids]),
            layout=None if canvas.layout is None else canvas.layout.repeat(2),
            given=None if canvas.given is None else canvas.given.repeat(2, 1),
        )
        both = denoise(of_both, window)

        confidence = both.confidence
        if confidence is not None:
            confidence = confidence[: len(tokens)]  # of the branch that sees the prompt
        logits_at = GuidedLogits(both.logits_at, scale, len(tokens))
        return both._replace(logits_at=logits_at, confidence=confidence)

    return denoise_guided


def check_scale(scale: float) -> None:
    """Raise ValueError on a scale of guidance below 0, or that is no number."""
    if not is_number(scale) or not 0 <= scale < math.inf:
        raise ValueError(f"cfg_scale must be a number from 0 up, got {scale!r}")


class GuidedLogits(NamedTuple):
    """A LogitsAt of rows, from one of each row twice: with its prompt, and with a masked one."""

    both: LogitsAt
    scale: float
    num_rows: int

    def __call__(self, at: Tensor, rows: Tensor | None = None) -> Tensor:
        rows_of_both = None if rows is None else torch.cat([rows, rows + self.num_rows])
        logits = self.both(torch.cat([at, at]), rows_of_both)
        conditional, unconditional = logits.chunk(2)
        return unconditional + (self.scale + 1) * (conditional - unconditional)


def suppressed(denoise: Denoiser, ids: Sequence[int]) -> Denoiser:
    """The same prediction with some ids at probability zero (LLaDA's logits_eos_inf)."""

    def denoise_suppressed(canvas: Canvas, window: slice) -> Prediction:
        prediction = denoise(canvas, window)
        return prediction._replace(logits_at=LogitsWithout(prediction.logits_at, tuple(ids)))

    return denoise_suppressed


class LogitsWithout(NamedTuple):
    """A LogitsAt with some ids at probability zero."""

    others: LogitsAt
    ids: tuple[int, ...]

    def __call__(self, at: Tensor, rows: Tensor | None = None) -> Tensor:
        return without(self.others(at, rows), self.ids)


def without(logits: Tensor, ids: Sequence[int]) -> Tensor:
    """A copy of logits (..., V) with a few ids at probability zero.

    One by one, since a tensor of ids would go to the device at every step.
    """
    logits = logits.clone()
    for token in ids:
        logits[..., token] = -torch.inf
    return logits
