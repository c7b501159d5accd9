"""Later steps of a block-causal model beside their floor: a section of benchmarks.gpu.

What stands before the block keeps its exact keys and values
(llada_plugins/diffusion/finished_blocks.py), so a step computes one block of each row. It
is the last block of a canvas of prompt_length + gen_length columns, half of it masked. Of
a mixture's experts the floor has those that the tokens of such a step take, counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from llada_plugins import SamplerConfig
from llada_plugins.diffusion.denoiser import Canvas, Denoiser, Prediction, model_denoiser
from llada_plugins.diffusion.finished_blocks import keeping_finished_blocks
from llada_plugins.diffusion.memory import Lasting, Memory
from llada_plugins.models.folder import known_special_tokens
from llada_plugins.models.llada import LLaDA
from llada_plugins.models.mixture import Router

from . import roofline
from .gpu_bench import Bench
from .gpu_steps import LATER_STEPS
from .random_models import model_config, random_model, random_tokens
from .steps import canvas_of, our_step

WIDTHS = (4, 32)  # of SDAR's blocks, and of those of LLaDA2 and Fast-dLLM v2
# Models with grouped queries for each shape of the other sections, and their blocks; 8b: as
# SDAR-8B, and LLaDA2.0-mini, a mixture.
SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "tiny": {"tiny-gqa": WIDTHS},
    "100m": {"40m-gqa": WIDTHS},
    "8b": {"8b-gqa": WIDTHS, "16b-moe": (32,)},
}


class Place(NamedTuple):
    """Where the step stands on the canvas of every row."""

    length: int  # columns of the canvas, whole blocks
    width: int  # of a block
    num_masked: int  # masked tokens left in the last block

    @classmethod
    def of(cls, columns: int, width: int) -> Place:
        """The last block of about so many columns, of two blocks at least."""
        return cls(max(2, columns // width) * width, width, width // 2)

    @property
    def window(self) -> slice:
        """The block's columns."""
        return slice(self.length - self.width, self.length)

    @property
    def work(self) -> roofline.Work:
        """What the step of one row cannot do without."""
        kept = self.length - self.width
        left = roofline.mean_left(self.num_masked, self.num_steps)
        return roofline.Work(self.width, self.width * self.length, left, kept)

    def tokens(self, model: LLaDA, rows: int, seed: int) -> Tensor:
        """The canvas (rows, length) in work."""
        tokens = torch.cat([random_tokens(model, self.length, seed + row) for row in range(rows)])
        tokens[:, self.length - self.num_masked :] = known_special_tokens(model).mask
        return tokens

    @property
    def num_steps(self) -> int:
        """Steps that are measured together."""
        return min(LATER_STEPS, self.num_masked)

    def sampler(self) -> SamplerConfig:
        """An answer whose last block takes the measured steps."""
        return SamplerConfig(
            gen_length=self.width,
            block_length=self.width,
            sampling_method="block_causal",
            block_steps=self.num_steps,
            cache="auto",
        )


@torch.inference_mode()
def after_first_step(model: LLaDA, place: Place, tokens: Tensor) -> Denoiser:
    """The denoiser with all that stands before the block of tokens (B, L) in its cache."""
    config = place.sampler()
    denoise = keeping_finished_blocks(model_denoiser(model), config.blocks)
    memory, lasting = Memory(), Lasting()
    ids = torch.arange(len(tokens), device=model.device)

    def denoise_later(canvas: Canvas, window: slice) -> Prediction:
        canvas = canvas._replace(memory=memory, lasting=lasting, ids=ids, blocks=place.width)
        return denoise(canvas, window)

    denoise_later(canvas_of(tokens, config, padded=False), place.window)
    return denoise_later


def later_steps(model: LLaDA, place: Place, rows: int, seed: int) -> Callable[[], None]:
    """Steps of the block after its first."""
    tokens, config = place.tokens(model, rows, seed), place.sampler()
    denoise = after_first_step(model, place, tokens)
    return lambda: our_step(denoise, model, tokens.clone(), place.window, config, padded=False)


def block_causal(bench: Bench) -> dict[str, Any]:
    """Every model that there is time for."""
    shapes = SHAPES[bench.options.shape]
    return bench.each_in_time(shapes, lambda shape: of_shape(bench, shape, shapes[shape]))


def of_shape(bench: Bench, shape: str, widths: tuple[int, ...]) -> dict[str, Any]:
    """Every width with every number of rows: eager, and with compiled layers and CUDA graphs."""
    options, device = bench.options, bench.model.device
    columns = options.prompt_length + options.gen_length
    places = [Place.of(columns, width) for width in widths]
    longest = max(place.length for place in places)
    # what a column sees is told by the canvas, so that one model serves all widths
    config = model_config(shape, longest, widths[0])
    model = random_model(config, device, options.seed, bench.model.dtype)
    of_model = bench._replace(model=model)
    # before layers are compiled, which have no hooks
    experts = [
        num_experts(model, place, rows, options.seed) for place in places for rows in options.rows
    ]

    def first(rows: int) -> None:
        for place in places:
            later_steps(model, place, rows, options.seed)()

    measure = partial(steps, of_model, places, experts)
    return {"eager": measure(), "compiled": of_model.compiled_steps(first, measure)}


def steps(bench: Bench, places: list[Place], experts: Sequence[float | None]) -> dict[str, Any]:
    """What a step takes, by its block's width and the number of rows.

    experts: what `num_experts` says of each of them.
    """
    forms = [(place, rows) for place in places for rows in bench.options.rows]
    return {
        f"block {place.width} {rows}": bench.measured(
            later_steps(bench.model, place, rows, bench.options.seed),
            [place.work] * rows,
            place.num_steps,
            taken,
        )
        for (place, rows), taken in zip(forms, experts)
    }


def num_experts(model: LLaDA, place: Place, rows: int, seed: int) -> float | None:
    """How many experts of a layer those steps take, on average; None of a model without."""
    if not model.config.num_experts:
        return None
    found: list[int] = []

    def count(router: Router, given: Any, chosen: tuple[Tensor, Tensor]) -> None:
        found.append(chosen[0].unique().numel())

    run = later_steps(model, place, rows, seed)
    routers = [part for part in model.modules() if isinstance(part, Router)]
    hooks = [router.register_forward_hook(count) for router in routers]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return sum(found) / len(found)
