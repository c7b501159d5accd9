"""The forms of a decoding step that benchmarks.generation measures.

The published one, ours, and ours with what can be put around it.
"""

from __future__ import annotations

import copy
import functools
import importlib.util
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from llada_plugins import SamplerConfig
from llada_plugins.diffusion.cache import cached
from llada_plugins.diffusion.denoiser import PADDING, Canvas, Denoiser, model_denoiser
from llada_plugins.diffusion.memory import Memory
from llada_plugins.methods.policy_head import PolicyHead, policy_denoiser
from llada_plugins.methods.router import Router, RouterConfig
from llada_plugins.methods.routing import routed
from llada_plugins.models import gptq
from llada_plugins.models.folder import known_special_tokens
from llada_plugins.models.llada import BLOCKS, LLaDA
from llada_plugins.models.quantization import quantised
from llada_plugins.models.weights import is_quantised
from llada_plugins.sampling.sampler import unmask

from . import reference

NUM_ROWS = 8  # of a batch

Frozen = Literal["prefix", "dual"]  # modes of a cache


def reference_step(
    model: LLaDA, tokens: Tensor, window: slice, config: SamplerConfig, num_masked: int
) -> None:
    reference.unmask_step(
        model,
        tokens,
        window.stop,
        [num_masked],
        known_special_tokens(model).mask,
        config.temperature,
    )


def exact_step(
    model: LLaDA, tokens: Tensor, window: slice, config: SamplerConfig, num_masked: int
) -> None:
    our_step(model_denoiser(model), model, tokens, window, config)


@torch.inference_mode()
def our_step(
    denoise: Denoiser,
    model: LLaDA,
    tokens: Tensor,
    window: slice,
    config: SamplerConfig,
    padded: bool | None = None,
) -> None:
    """padded: as of `canvas_of`."""
    unmask(
        denoise,
        canvas_of(tokens, config, padded),
        window,
        tokens.new_zeros(len(tokens)),
        config,
        known_special_tokens(model),
    )


def canvas_of(tokens: Tensor, config: SamplerConfig, padded: bool | None = None) -> Canvas:
    """padded: where it is known, as an engine knows it of its prompts."""
    answer_start = tokens.new_full((len(tokens),), tokens.shape[1] - config.gen_length)
    return Canvas(tokens, answer_start, padded=len(tokens) > 1 if padded is None else padded)


@functools.cache
def random_head(d_model: int, width: int, device: torch.device) -> PolicyHead:
    """A policy head with random weights, in float32 as `load_policy` loads it."""
    return PolicyHead(d_model, width).to(device).eval().requires_grad_(False)


def ups_step(
    model: LLaDA,
    tokens: Tensor,
    window: slice,
    config: SamplerConfig,
    num_masked: int,
    *,
    width: int,
    ranks: bool,
) -> None:
    """One step with a policy head of `width` hidden units.

    ranks: in RemeDi's sampler, else the head's score is not used.
    """
    if ranks:
        config = replace(config, revise=True, confidence_source="ups")
    head = random_head(model.config.d_model, width, model.device)
    our_step(policy_denoiser(model, head), model, tokens, window, config)


@functools.cache
def random_router(d_model: int, heads: int, device: torch.device) -> Router:
    """A router with random weights, in float32 as `load_router` loads it."""
    return (
        Router(RouterConfig(d_model=d_model, heads=heads)).to(device).eval().requires_grad_(False)
    )


def ala_step(
    model: LLaDA, tokens: Tensor, window: slice, config: SamplerConfig, num_masked: int
) -> None:
    router = random_router(model.config.d_model, model.config.n_heads, model.device)
    our_step(
        routed(model_denoiser(model), router, model.embedding, known_special_tokens(model).mask),
        model,
        tokens,
        window,
        config,
    )


Variant = Callable[[LLaDA], LLaDA]  # the same model with other weights


def as_it_is(model: LLaDA) -> LLaDA:
    return model


@functools.cache
def low_precision(model: LLaDA) -> LLaDA:
    return model if model.dtype == torch.bfloat16 else copy.deepcopy(model).to(torch.bfloat16)


@functools.cache
def int8(model: LLaDA) -> LLaDA:
    """The Linears and experts of the blocks in 8 bits, by torchao.

    Whatever else has parameters shares the model's.
    """
    return quantised_copy(model, "int8")


def quantised_copy(model: LLaDA, method: str) -> LLaDA:
    """The model with its blocks quantised; whatever else has parameters shares the model's."""
    copied = copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
    for name, linear in list(copied.named_modules()):
        if is_quantised(linear, name, BLOCKS):
            gptq.replace(copied, name, quantised(linear, method))
    return copied


def first_step(
    model: LLaDA,
    tokens: Tensor,
    window: slice,
    config: SamplerConfig,
    num_masked: int,
    *,
    variant: Variant = as_it_is,
) -> None:
    """The first step of a block, which fills the cache."""
    model = variant(model)
    our_step(cached(model_denoiser(model), "dual"), model, tokens, window, config)


@functools.cache
def filled(
    model: LLaDA,
    mode: Frozen,
    rows: tuple[tuple[int, ...], ...],
    window: tuple[int, int],
    config: SamplerConfig,
) -> Memory:
    """What a cache remembers after the first step: made in the repetition that is not measured."""
    memory = Memory()
    canvas = canvas_of(torch.tensor(rows, device=model.device), config)
    with torch.inference_mode():
        cached(model_denoiser(model), mode)(canvas._replace(memory=memory), slice(*window))
    return memory


def later_step(
    model: LLaDA,
    tokens: Tensor,
    window: slice,
    config: SamplerConfig,
    num_masked: int,
    *,
    mode: Frozen,
    variant: Variant = as_it_is,
) -> None:
    """A step of a block after its first."""
    model = variant(model)
    memory = filled(
        model, mode, tuple(map(tuple, tokens.tolist())), (window.start, window.stop), config
    )
    denoise = cached(model_denoiser(model), mode)
    our_step(
        lambda canvas, at: denoise(canvas._replace(memory=memory), at),
        model,
        tokens,
        window,
        config,
    )


def ragged(tokens: Tensor, config: SamplerConfig) -> list[int]:
    """First columns of the rows of a batch: prompts of half the length to all of it."""
    return [
        number * (tokens.shape[1] - config.gen_length) // (2 * NUM_ROWS)
        for number in range(NUM_ROWS)
    ]


def together(
    step: Callable[..., None],
    model: LLaDA,
    tokens: Tensor,
    window: slice,
    config: SamplerConfig,
    num_masked: int,
) -> None:
    """The step on a batch of rows with prompts of several lengths."""
    first = torch.tensor(ragged(tokens, config), device=tokens.device)
    column = torch.arange(tokens.shape[1], device=tokens.device)
    step(model, torch.where(column < first[:, None], PADDING, tokens), window, config, num_masked)


def alone(
    step: Callable[..., None],
    model: LLaDA,
    tokens: Tensor,
    window: slice,
    config: SamplerConfig,
    num_masked: int,
) -> None:
    """The step on each row of that batch, one by one."""
    for first in ragged(tokens, config):
        step(
            model,
            tokens[:, first:].clone(),
            slice(window.start - first, window.stop - first),
            config,
            num_masked,
        )


# model, tokens (1, L), window, config, masked tokens of the window
Form = Callable[[LLaDA, Tensor, slice, SamplerConfig, int], None]
dual_later = functools.partial(later_step, mode="dual")
FORMS: dict[str, Form] = {
    "reference": reference_step,
    "exact": exact_step,
    "first": first_step,
    "prefix_later": functools.partial(later_step, mode="prefix"),
    "dual_later": dual_later,
    "first_low_precision": functools.partial(first_step, variant=low_precision),
    "dual_later_low_precision": functools.partial(later_step, mode="dual", variant=low_precision),
    "ups_head": functools.partial(ups_step, width=128, ranks=False),
    "ups_head_512": functools.partial(ups_step, width=512, ranks=False),
    "ups": functools.partial(ups_step, width=128, ranks=True),
    "ala": ala_step,
}
if importlib.util.find_spec("torchao"):  # an optional package
    FORMS |= {
        "first_int8": functools.partial(first_step, variant=int8),
        "dual_later_int8": functools.partial(later_step, mode="dual", variant=int8),
    }
BATCHES: dict[str, Form] = {  # of NUM_ROWS rows; they leave the tokens that they are given
    "first_batch8": functools.partial(together, first_step),
    "dual_later_batch8": functools.partial(together, dual_later),
    "first_alone": functools.partial(alone, first_step),
    "dual_later_alone": functools.partial(alone, dual_later),
    "first_batch8_low_precision": functools.partial(together, FORMS["first_low_precision"]),
    "dual_later_batch8_low_precision": functools.partial(
        together, FORMS["dual_later_low_precision"]
    ),
    "first_alone_low_precision": functools.partial(alone, FORMS["first_low_precision"]),
    "dual_later_alone_low_precision": functools.partial(alone, FORMS["dual_later_low_precision"]),
}
COMPOSED = {  # name -> first step of a block, later ones
    "prefix": ("first", "prefix_later"),
    "dual": ("first", "dual_later"),
    # keeping its keys and values costs a step nothing
    "low_precision": ("first_low_precision", "first_low_precision"),
    "dual_low_precision": ("first_low_precision", "dual_later_low_precision"),
    "int8": ("first_int8", "first_int8"),
    "dual_int8": ("first_int8", "dual_later_int8"),
    "batch8": ("first_batch8", "dual_later_batch8"),
    "batch8_alone": ("first_alone", "dual_later_alone"),
    "batch8_low_precision": ("first_batch8_low_precision", "dual_later_batch8_low_precision"),
    "batch8_alone_low_precision": ("first_alone_low_precision", "dual_later_alone_low_precision"),
}
