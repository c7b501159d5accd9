"""The step that benchmarks.generation measures, and what is timed by itself beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from llada_plugins.methods.routing import seeded_embeddings
from llada_plugins.models.folder import known_special_tokens
from llada_plugins.models.llada import LLaDA

from .clock import Seconds, timed
from .generation_options import Options
from .random_models import random_tokens
from .steps import random_head, random_router


def middle_of_generation(model: LLaDA, options: Options) -> tuple[Tensor, slice]:
    """Tokens (1, L) as the step finds them, and the active block's columns."""
    tokens = random_tokens(model, options.prompt_length + options.gen_length, options.seed)
    first = (
        options.prompt_length
        + options.gen_length // options.block_length // 2 * options.block_length
    )
    window = slice(first, first + options.block_length)
    order = torch.randperm(
        options.block_length, generator=torch.Generator().manual_seed(options.seed)
    ).to(model.device)
    tokens[:, first + order[: options.num_masked]] = known_special_tokens(model).mask
    tokens[:, window.stop :] = known_special_tokens(model).mask
    return tokens, window


def on_a_copy(step: Callable[..., None], model: LLaDA, tokens: Tensor, *rest: Any) -> None:
    """A step on a copy of the tokens: it writes into what it is given."""
    step(model, tokens.clone(), *rest)


@torch.inference_mode()
def head_seconds(model: LLaDA, block_length: int, width: int, repetitions: int = 100) -> Seconds:
    """What a policy head alone takes on one block's hidden states."""
    head = random_head(model.config.d_model, width, model.device)
    hidden = torch.ones(
        1, block_length, model.config.d_model, dtype=model.dtype, device=model.device
    )
    head(hidden)  # the first call is slower
    taken = timed(lambda: [head(hidden) for _ in range(repetitions)], model.device)
    return Seconds(*(each / repetitions for each in taken))


@torch.inference_mode()
def routing_seconds(model: LLaDA, options: Options, repetitions: int = 20) -> Seconds:
    """What the router adds to the measured step: seeds in place of the tokens' own embeddings."""
    router, (tokens, _) = (
        random_router(model.config.d_model, model.config.n_heads, model.device),
        middle_of_generation(model, options),
    )
    start = tokens.new_full((1,), options.prompt_length)

    def work() -> None:
        for _ in range(repetitions):
            seeded_embeddings(
                router, model.embedding, tokens, start, known_special_tokens(model).mask
            )

    work()  # the first call is slower
    return Seconds(*(each / repetitions for each in timed(work, model.device)))
