"""Routed seeds at work: a Denoiser and a model for training that read what a router makes.

`routed` makes a Denoiser from a Denoiser, `RoutedLLaDA` a module for training; both go
through `route_blocks`. The router itself is in router.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llada_plugins.diffusion.denoiser import PADDING, Canvas, Denoiser, Prediction, embeddable
from llada_plugins.diffusion.memory import Rows
from llada_plugins.models.layer import ActivationCheckpointing
from llada_plugins.models.llada import LLaDA

from .router import Router, check_blocks


def route(
    router: Router, embedding: nn.Embedding, tokens: Tensor, answer_start: Tensor, mask_id: int
) -> Tensor:
    """Embeddings (B, L, D) of tokens (B, L) in which masked answer positions carry the
    router's seeds; of a router of one block.
    """
    if router.config.blocks > 1:
        raise ValueError(
            f"this router seeds {router.config.blocks} blocks, and embeddings alone were asked "
            "for: give one with blocks=1"
        )
    return route_blocks(router, embedding, tokens, answer_start, mask_id)[:, :, 0]


def route_blocks(
    router: Router, embedding: nn.Embedding, tokens: Tensor, answer_start: Tensor, mask_id: int
) -> Tensor:
    """What a router makes of tokens (B, L), as (B, L, blocks, D): embeddings, then what
    is added before the second block, and so on.

    Masked answer positions carry seeds; elsewhere stand the tokens' own embeddings,
    PADDING as token 0, then zeros. answer_start: (B,) column of each row's first answer
    token. Rows are aligned so that each prompt ends at its own answer_start. Without a
    masked answer position the result is exactly the embedding's.
    """
    return placed(
        seeds_of(router, embedding, tokens, answer_start, mask_id),
        embedding,
        tokens,
        answer_start,
        mask_id,
    )


def seeds_of(
    router: Router,
    embedding: nn.Embedding,
    tokens: Tensor,
    answer_start: Tensor,
    mask_id: int,
    stop: int = 0,
) -> Tensor:
    """The router's seeds (B, W, blocks, D) for the first W positions of every answer:
    to the last masked one, and to column `stop`.

    They follow from the prompts alone. Waits for the device, which knows W.
    """
    position = _position(tokens, answer_start)  # (B, L)
    # padding left out
    last = (
        position.masked_fill(tokens != mask_id, 0).amax().clamp(min=stop - 1 - answer_start.min())
    )
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
    return router(prompt.to(precision), present, mask_embedding.to(precision), max(0, last) + 1).to(
        prompt.dtype
    )


def placed(
    seeds: Tensor, embedding: nn.Embedding, tokens: Tensor, answer_start: Tensor, mask_id: int
) -> Tensor:
    """`route_blocks` of tokens (B, L) whose seeds (B, W, blocks, D) are known."""
    position = _position(tokens, answer_start)  # (B, L)
    seeded = (position >= 0) & (tokens == mask_id)
    seeds = seeds.gather(
        1, position.clamp(0, seeds.shape[1] - 1)[..., None, None].expand(-1, -1, *seeds.shape[2:])
    )
    # (B, L, blocks, D)
    own = F.pad(embedding(embeddable(tokens))[:, :, None], (0, 0, 0, seeds.shape[2] - 1))
    return torch.where(seeded[..., None, None], seeds, own)


def _position(tokens: Tensor, answer_start: Tensor) -> Tensor:
    """The place of each column in its row's answer, (B, L); negative in the prompt."""
    return torch.arange(tokens.shape[1], device=tokens.device) - answer_start[:, None]


@contextmanager
def added(blocks: Sequence[nn.Module], seeds: Tensor) -> Iterator[None]:
    """Within it, the second block reads its input plus seeds[:, :, 1], and so on; what
    runs inside the blocks stays as it is.
    """
    handles = [
        block.register_forward_pre_hook(
            lambda _, inputs, seed=seed: (inputs[0] + seed, *inputs[1:])
        )
        for block, seed in zip(blocks[1:], seeds.unbind(2)[1:])
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


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
    """The same denoiser on routed embeddings. Masked *prompt* positions (guidance's
    blank prompt) keep the static embedding.

    blocks: the transformer's, for a router that seeds several.
    """
    check_blocks(router, max(1, len(blocks)))

    def denoise_routed(canvas: Canvas, window: slice) -> Prediction:
        answers = canvas.tokens, canvas.answer_start, mask_id
        if canvas.memory is None:
            seeds = seeds_of(router, embedding, *answers)
        else:
            remembered = canvas.memory.of(BlockSeeds)
            if remembered.seeds is None:
                remembered.seeds = seeds_of(router, embedding, *answers, stop=window.stop)
            seeds = remembered.seeds
        routes = placed(seeds, embedding, *answers)  # (B, L, blocks, D)
        with added(blocks, routes[:, canvas.columns]):
            return denoise(canvas._replace(embeds=routes[:, :, 0]), window)

    return denoise_routed


class RoutedLLaDA(ActivationCheckpointing):
    """The plan's ALALLaDA: a frozen backbone behind a router, (B, L) ids and prompt
    lengths to logits (B, L, V).
    """

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
        self, input_ids: Tensor, attention_mask: Tensor | None = None, *, prompt_lengths: Tensor
    ) -> Tensor:
        """prompt_lengths: (B,) tokens of each row before its answer, from the first
        column; right padding only.
        """
        whole = (
            not prompt_lengths.is_floating_point() and prompt_lengths.shape == input_ids.shape[:1]
        )
        if (
            not whole
            or bool((prompt_lengths < 0).any())
            or bool((prompt_lengths > input_ids.shape[1]).any())
        ):
            raise ValueError(
                f"prompt_lengths must be ({len(input_ids)},) whole numbers from 0 to "
                f"{input_ids.shape[1]}, "
                f"got {prompt_lengths.tolist()}"
            )
        tokens = (
            input_ids
            if attention_mask is None
            else input_ids.masked_fill(~attention_mask.bool(), PADDING)
        )
        seeds = route_blocks(
            self.router, self.backbone.embedding, tokens, prompt_lengths, self.mask_id
        )
        with added(self.backbone.blocks, seeds):
            return self.backbone(None, attention_mask, inputs_embeds=seeds[:, :, 0])
