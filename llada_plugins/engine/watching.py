"""An answer while it is decoded: who sees it, and how it looks as text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from llada_plugins.diffusion.denoiser import PADDING, Canvas, Denoiser, Prediction
from llada_plugins.models import text

if TYPE_CHECKING:
    from .engine import Engine

MASK = "░"


def watched(denoise: Denoiser, show: Callable[[Sequence[int]], None]) -> Denoiser:
    """The same denoiser; before every forward `show` sees the first row's answer.

    Of a text whose spans are filled in that is all from the first span on.

    Under a process reward model that is the first candidate's. Not an on_step observer:
    those learn what a step changes, and a review's refills begin from states that no step
    made.
    """

    def denoise_watched(canvas: Canvas, window: slice) -> Prediction:
        answer = canvas.tokens[0, int(canvas.answer_start[0]) :].tolist()
        show([token for token in answer if token != PADDING])
        return denoise(canvas, window)

    return denoise_watched


def picture(engine: Engine, answer: Sequence[int]) -> str:
    """An answer in work as text up to its first end token, with MASK for each masked token."""
    kept = text.before_end(answer, engine.special.ends)
    pieces = []
    for masked, run in groupby(kept, lambda token: token == engine.special.mask):
        ids = list(run)
        pieces.append(MASK * len(ids) if masked else text.decode(engine.tokenizer, ids, ()))
    return text.without_special_tokens(engine.tokenizer, "".join(pieces))
