"""Caches of keys and values as a Denoiser: after a block's first step only a few
columns are computed. Faster, and an approximation.

Fast-dLLM (arXiv 2505.22618): the first step of a block is a forward of the whole
canvas, whose keys and values stand until the block is done. Nothing outlives the block,
because what is kept lives in the canvas's memory, which the sampler makes anew for
each.
"""

from __future__ import annotations

from typing import Literal

from .denoiser import Canvas, Denoiser, Prediction


def cached(
    denoise: Denoiser, mode: Literal["prefix", "dual"], refresh: int | None = None
) -> Denoiser:
    """The denoiser with the keys and values frozen before the window (prefix), or on
    both sides of it (dual).

    refresh: every so many steps of a block, a forward of the whole canvas (default: at
    its first step alone; 1 is the plain denoiser). Rows, guided branches and a
    bi-tower's streams each have their own; routed embeddings are read as they are at
    every step.
    """

    def denoise_cached(canvas: Canvas, window: slice) -> Prediction:
        memory = canvas.memory
        if memory is None:
            return denoise(canvas, window)
        step = memory["step"] = memory.get("step", -1) + 1
        if step == 0 or refresh is not None and step % refresh == 0:
            memory["past"], columns = {}, slice(None)
        else:
            columns = window if mode == "dual" else slice(window.start, None)
        return denoise(canvas._replace(columns=columns, past=memory["past"]), window)

    return denoise_cached
