"""Routed seeds at work: a Denoiser and a model for training that read what a router makes.

`routed` makes a Denoiser from a Denoiser, `RoutedLLaDA` a module for training; both go
through `seeded_inputs`. The router itself is in router.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llada_plugins.diffusion.arguments import check_function
from llada_plugins.diffusion.denoiser import PADDING, Canvas, Denoiser, Prediction, embeddable
from llada_plugins.diffusion.memory import Rows
from llada_plugins.models.columns import at_columns
from llada_plugins.models.layer import ActivationCheckpointing
from llada_plugins.models.llada import LLaDA

from .router import Router, check_blocks


def seeded_embeddings(
    router: Router, embedding: nn.Embedding, tokens: Tensor, answer_start: Tensor, mask_id: int
) -> Tensor:
    """Embeddings (B, L, D) of tokens (B, L) with seeds, of a router of one block alone."""
    if router.config.blocks > 1:
        raise ValueError(
            f"this router seeds {router.config.blocks} blocks, and embeddings alone were asked "
            "for: give one with blocks=1"
        )
    return seeded_inputs(router, embedding, tokens, answer_start, mask_id)[:, :, 0]


def seeded_inputs(
    router: Router, embedding: nn.Embedding, tokens: Tensor, answer_start: Tensor, mask_id: int
) -> Tensor:
    """What blocks read of tokens (B, L) with seeds, as (B, L, blocks, D).

    Block 0 has embeddings; every later one has what is added before it. Masked answer
    positions carry seeds. Elsewhere stand the tokens' own embeddings, PADDING as token 0,
    then zeros. answer_start: (B,) column of each row's first answer token. Rows are aligned
    so that each prompt ends at its own answer_start. Without a masked answer position the
    result is exactly the embedding's.
    """
    seeds = answer_seeds(router, embedding, tokens, answer_start, mask_id)
    return inputs_with(seeds, embedding, tokens, answer_start, mask_id)


def answer_seeds(
    router: Router,
    embedding: nn.Embedding,
    tokens: Tensor,
    answer_start: Tensor,
    mask_id: int,
    stop: int = 0,
) -> Tensor:
    """The router's seeds (B, W, blocks, D) for the first W positions of every answer.

    W reaches to the last masked one, and to column `stop`. Seeds follow from the prompts
    alone. Waits for the device, which knows W.
    """
    position = _position(tokens, answer_start)  # (B, L)
    # padding left out
    last = position.masked_fill(tokens != mask_id, 0).amax()
    last = last.clamp(min=stop - 1 - answer_start.min())
    start, last = torch.stack([answer_start.max(), last]).tolist()
    start = max(1, start)  # attention needs a column, if an absent one
    shift = start - answer_start  # (B,) columns to the right to line answers up
    # (B, P) source column of each lined-up place
    column = torch.arange(start, device=tokens.device) - shift[:, None]
    source = tokens.gather(1, column.clamp(min=0))
    present = (column >= 0) & (source != PADDING)
    prompt = embedding(embeddable(source))  # (B, P, D)
    mask_embedding = embedding(source.new_full((1,), mask_id))[0]  # (D,)
    precision = next(router.out.parameters()).dtype
    seeds = router(
        prompt.to(precision), present, mask_embedding.to(precision), max(0, last) + 1
    )  # (B, W, blocks, D)
    return seeds.to(prompt.dtype)


def inputs_with(
    seeds: Tensor, embedding: nn.Embedding, tokens: Tensor, answer_start: Tensor, mask_id: int
) -> Tensor:
    """`seeded_inputs` of tokens (B, L) whose seeds (B, W, blocks, D) are known."""
    position = _position(tokens, answer_start)  # (B, L)
    seeded = (position >= 0) & (tokens == mask_id)
    place = position.clamp(0, seeds.shape[1] - 1)[..., None, None]  # (B, L, 1, 1)
    seeds = seeds.gather(1, place.expand(-1, -1, *seeds.shape[2:]))  # (B, L, blocks, D)
    own = F.pad(embedding(embeddable(tokens))[:, :, None], (0, 0, 0, seeds.shape[2] - 1))
    return torch.where(seeded[..., None, None], seeds, own)


def _position(tokens: Tensor, answer_start: Tensor) -> Tensor:
    """The place of each column in its row's answer, (B, L); negative in the prompt."""
    return torch.arange(tokens.shape[1], device=tokens.device) - answer_start[:, None]


@contextmanager
def seeding(blocks: Sequence[nn.Module], inputs: Tensor) -> Iterator[None]:
    """Within it, every block after the first reads its input plus its own of `inputs`.

    inputs: (B, L, blocks, D), see `seeded_inputs`; its first is not read. What runs
    inside the blocks stays as it is.
    """
    handles = [
        block.register_forward_pre_hook(_adding(seed))
        for block, seed in zip(blocks[1:], inputs.unbind(2)[1:])
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _adding(seed: Tensor) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    """A hook that adds `seed` to a block's first input."""

    def add(block: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (inputs[0] + seed.reshape(inputs[0].shape), *inputs[1:])

    return add


class BlockSeeds:
    """A block's seeds (B, W, blocks, D), made at its first step.

    Only tokens of the window change in later steps, and the seeds reach to its end.
    """

    def __init__(self) -> None:
        self.seeds: Tensor | None = None

    def keep_rows(self, rows: Rows) -> None:
        """Forget all other rows."""
        if self.seeds is not None:
            self.seeds = rows.of(self.seeds)


def routed(
    denoise: Denoiser,
    router: Router,
    embedding: nn.Embedding,
    mask_id: int,
    blocks: Sequence[nn.Module] = (),
) -> Denoiser:
    """The same denoiser, which reads the router's seeds at masked answer positions.

    Masked *prompt* positions (guidance's blank prompt) keep the static embedding. blocks:
    the transformer's, for a router that seeds several. ValueError on arguments of another kind.
    """
    check_function("denoise", denoise)
    for name, value, kind in (("router", router, Router), ("embedding", embedding, nn.Embedding)):
        if not isinstance(value, kind):
            raise ValueError(f"{name} must be a {kind.__name__}, got {value!r}")
    check_blocks(router, max(1, len(blocks)))

    def denoise_routed(canvas: Canvas, window: slice) -> Prediction:
        answers = canvas.tokens, canvas.answer_start, mask_id
        if canvas.memory is None:
            seeds = answer_seeds(router, embedding, *answers)
        else:
            remembered = canvas.memory.of(BlockSeeds)
            if remembered.seeds is None:
                remembered.seeds = answer_seeds(router, embedding, *answers, stop=window.stop)
            seeds = remembered.seeds
        inputs = inputs_with(seeds, embedding, *answers)  # (B, L, blocks, D)
        with seeding(blocks, at_columns(inputs, canvas.columns)):
            return denoise(canvas._replace(embeds=inputs[:, :, 0]), window)

    return denoise_routed


class RoutedLLaDA(ActivationCheckpointing):
    """A frozen backbone that reads a router's seeds: ids (B, L) to logits (B, L, V)."""

    def __init__(self, backbone: LLaDA, router: Router, mask_id: int) -> None:
        super().__init__()
        if router.config.d_model != backbone.config.d_model:
            raise ValueError(
                f"the router's width is {router.config.d_model}, the model's "
                f"{backbone.config.d_model}"
            )
        check_blocks(router, backbone.config.n_layers)
        self.backbone = backbone.requires_grad_(False)
        self.router = router
        self.mask_id = mask_id
        self.config = backbone.config

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        prompt_lengths: Tensor,
        at: Tensor | tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Logits of rows whose answers begin after `prompt_lengths` (B,) tokens.

        Rows begin in the first column: right padding only. at: as of `LLaDA.forward`.
        """
        _check_lengths(prompt_lengths, input_ids)
        tokens = input_ids
        if attention_mask is not None:
            tokens = input_ids.masked_fill(~attention_mask.bool(), PADDING)
        inputs = seeded_inputs(
            self.router, self.backbone.embedding, tokens, prompt_lengths, self.mask_id
        )
        with seeding(self.backbone.blocks, inputs):
            logits: Tensor = self.backbone(
                None, attention_mask, inputs_embeds=inputs[:, :, 0], at=at
            )
        return logits


def _check_lengths(prompt_lengths: Tensor, input_ids: Tensor) -> None:
    """Raise ValueError unless there is a length for each row that fits into it."""
    batch, length = input_ids.shape
    whole = not prompt_lengths.is_floating_point() and prompt_lengths.shape == (batch,)
    if not whole or bool(((prompt_lengths < 0) | (prompt_lengths > length)).any()):
        raise ValueError(
            f"prompt_lengths must be ({batch},) whole numbers from 0 to {length}, "
            f"got {prompt_lengths.tolist()}"
        )
