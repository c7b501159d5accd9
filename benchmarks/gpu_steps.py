"""Decoding steps of each form beside their floors: two sections of benchmarks.gpu."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from llada_plugins.diffusion.cache import cached
from llada_plugins.diffusion.denoiser import model_denoiser
from llada_plugins.diffusion.memory import Memory
from llada_plugins.models.folder import known_special_tokens
from llada_plugins.models.llada import LLaDA

from . import roofline
from .gpu_bench import Bench
from .gpu_options import Options
from .random_models import random_tokens
from .steps import Frozen, canvas_of, our_step

FORMS = ("exact", "prefix_later", "dual_later")
LATER_STEPS = 8  # of a block at most, measured together


def canvas_in_work(model: LLaDA, options: Options, rows: int) -> tuple[Tensor, slice]:
    """Tokens (rows, L) in the middle of a generation, and the active block's columns."""
    length = options.prompt_length + options.gen_length
    tokens = torch.cat(
        [random_tokens(model, length, options.seed + row) for row in range(rows)]
    )  # (rows, L)
    blocks_before = options.gen_length // options.block_length // 2
    first = options.prompt_length + blocks_before * options.block_length
    window = slice(first, first + options.block_length)
    assert model.special_tokens is not None  # of a random model
    tokens[:, window.stop - options.num_masked :] = known_special_tokens(model).mask
    return tokens, window


def steps_in_a_row(form: str, options: Options) -> int:
    """How many steps of a form are measured together."""
    return min(LATER_STEPS, options.num_masked) if form.endswith("_later") else 1


@torch.inference_mode()
def steps_of(form: str, model: LLaDA, options: Options, rows: int) -> Callable[[], None]:
    """The steps of a form that are measured together; a cache is filled before."""
    tokens, window = canvas_in_work(model, options, rows)
    num_blocks = options.gen_length // options.block_length
    config = options.sampler(steps=num_blocks * steps_in_a_row(form, options))
    denoise = model_denoiser(model)
    if form == "exact":
        return lambda: our_step(denoise, model, tokens.clone(), window, config, padded=False)
    mode: Frozen = "prefix" if form == "prefix_later" else "dual"
    memory, with_cache = Memory(), cached(denoise, mode)
    with_cache(canvas_of(tokens, config, padded=False)._replace(memory=memory), window)
    return lambda: our_step(
        lambda canvas, at: with_cache(canvas._replace(memory=memory), at),
        model,
        tokens.clone(),
        window,
        config,
        padded=False,
    )


def steps(bench: Bench) -> dict[str, Any]:
    """Every form with every number of rows."""
    return {
        f"{form} {rows}": measured_step(bench, form, rows)
        for form in FORMS
        for rows in bench.options.rows
    }


def measured_step(bench: Bench, form: str, rows: int) -> dict[str, float]:
    """What a step of a form takes; see Bench.measured."""
    model, options = bench.model, bench.options
    _, window = canvas_in_work(model, options, 1)
    length = options.prompt_length + options.gen_length
    num_steps = steps_in_a_row(form, options)
    left = roofline.mean_left(options.num_masked, num_steps)
    work = roofline.row_work(form, length, window.start, options.block_length, left)
    return bench.measured(steps_of(form, model, options, rows), [work] * rows, num_steps)


def compiled(bench: Bench) -> dict[str, Any]:
    """`steps` with compiled layers, and the seconds that compiling took."""

    def first(rows: int) -> None:
        for form in FORMS:
            steps_of(form, bench.model, bench.options, rows)()

    return bench.compiled_steps(first, partial(steps, bench))
