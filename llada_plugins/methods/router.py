"""ALA, the router: prompt-conditioned seeds in place of the one static embedding that
all masked positions share.

Nothing inside the transformer changes: only what masked answer positions look like
before its first block, or before each of several. `routed` makes a Denoiser from a
Denoiser, `RoutedLLaDA` a module for training; both go through `route_blocks`. The
last-layer corrections of later public code that share the name are something else, and
not here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llada_plugins.diffusion.denoiser import PADDING, Canvas, Denoiser, Prediction, embeddable
from llada_plugins.diffusion.memory import Rows
from llada_plugins.files.json_files import FLAG, TEXT, number, whole
from llada_plugins.models.layer import ActivationCheckpointing
from llada_plugins.models.llada import LLaDA
from llada_plugins.models.llada_config import WIDTH
from llada_plugins.options.fields import arg, build, names, reject_unknown

from .addon import Part, check_part, fill_part, read_part, write_part

CONFIG, WEIGHTS = "router_config.json", "router.safetensors"
ROUTER = Part(
    CONFIG,
    WEIGHTS,
    "router",
    "router",
    "makes embeddings",
    "training.router_sft",
    {"d_model": WIDTH},
    dict(
        heads=whole(most=2**20),
        layers=whole(most=1000),
        mlp=whole(most=2**20),
        mode=TEXT,
        use_prompt=FLAG,
        scale=number(-1e9, 1e9),
        # RouterConfig knows what is too small
        max_positions=whole(most=2**24),
        blocks=whole(most=1000),
    ),
)


@dataclass(frozen=True, kw_only=True)
class RouterConfig:
    """What a router is."""

    d_model: int = arg(help="width of the embeddings it reads and makes")
    heads: int = arg(4, "attention heads")
    layers: int = arg(1, "cross-attention layers")
    mlp: int = arg(0, "hidden units of the MLP after each attention; 0 = none")
    mode: Literal["residual", "replace"] = arg(
        "residual",
        "residual: mask embedding + output, zero at first: it starts as the identity; replace: "
        "the output alone",
    )
    max_positions: int = arg(
        1024, "longest answer, and reach into the prompt from its end, in tokens"
    )
    use_prompt: bool = arg(
        True, "off: the control, a static bias for each answer position that sees no prompt"
    )
    scale: float = arg(
        1.0, "unit of the input's seeds; the size of embeddings, in training with --router_scaled"
    )
    blocks: int = arg(
        1, "transformer blocks that get seeds, each its own, the first ones; 1 = only the input"
    )

    def __post_init__(self) -> None:
        for name in ("d_model", "heads", "layers", "max_positions", "blocks"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"{name} of a router must be at least 1, got {getattr(self, name)}"
                )
        if not self.scale > 0:
            raise ValueError(f"scale of a router must be above 0, got {self.scale}")
        if self.mlp < 0:
            raise ValueError(f"mlp of a router must not be negative, got {self.mlp}")
        if self.d_model % self.heads:
            raise ValueError(
                f"d_model ({self.d_model}) of a router must be a multiple of heads ({self.heads})"
            )
        if self.blocks > 1 and self.mode == "replace":
            raise ValueError(
                "mode='replace' knows nothing to replace after the input: blocks must be 1, got "
                f"{self.blocks}"
            )


class RouterLayer(nn.Module):
    """Pre-norm cross-attention from answer positions to the prompt, then an MLP."""

    def __init__(self, config: RouterConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.d_model)
        self.attention = (
            nn.MultiheadAttention(config.d_model, config.heads, batch_first=True)
            if config.use_prompt
            else None
        )
        self.mlp = (
            nn.Sequential(
                nn.LayerNorm(config.d_model),
                nn.Linear(config.d_model, config.mlp),
                nn.GELU(),
                nn.Linear(config.mlp, config.d_model),
            )
            if config.mlp
            else None
        )

    def forward(self, x: Tensor, prompt: Tensor, absent: Tensor) -> Tensor:
        """x: (B, W, D). prompt: (B, P, D). absent: (B, P) bool, True = no prompt token there."""
        if self.attention is not None:
            x = (
                x
                + self.attention(
                    self.norm(x), prompt, prompt, key_padding_mask=absent, need_weights=False
                )[0]
            )
        return x if self.mlp is None else x + self.mlp(x)


class Router(nn.Module):
    """Seeds (B, W, blocks, D) for W answer positions from prompt embeddings (B, P, D):
    mask queries attend to the prompt.
    """

    def __init__(self, config: RouterConfig) -> None:
        super().__init__()
        self.config = config
        self.query_position = nn.Embedding(config.max_positions, config.d_model)
        self.prompt_position = nn.Embedding(config.max_positions, config.d_model)
        self.prompt_norm = nn.LayerNorm(config.d_model)
        self.stack = nn.ModuleList(RouterLayer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.d_model)
        self.out = nn.Linear(config.d_model, config.blocks * config.d_model)
        if config.mode == "residual":
            nn.init.zeros_(self.out.weight)
            nn.init.zeros_(self.out.bias)

    def forward(
        self, prompt: Tensor, present: Tensor, mask_embedding: Tensor, width: int
    ) -> Tensor:
        """prompt: (B, P, D) embeddings, the answer follows column P - 1. present: (B,
        P) bool, prompt tokens. mask_embedding: (D,).

        The first block's seeds stand for embeddings, the others' are to be added to
        hidden states. A row without prompt gets the mask embedding at every position,
        and zeros.
        """
        if width > self.config.max_positions:
            raise ValueError(
                f"the router knows answers of {self.config.max_positions} tokens (max_positions), "
                f"got {width}: "
                "train a longer one"
            )
        positions = torch.arange(width, device=prompt.device)
        # distance from the answer, less one
        back = torch.arange(prompt.shape[1], 0, -1, device=prompt.device) - 1
        keys = self.prompt_norm(
            prompt + self.prompt_position(back.clamp(max=self.config.max_positions - 1))
        )
        # (B, W, D)
        query = (mask_embedding + self.query_position(positions)).expand(len(prompt), -1, -1)
        empty = ~present.any(-1)  # (B,)
        # attention over nothing is undefined; such rows are overwritten below
        absent = ~present & ~empty[:, None]
        x = query
        for layer in self.stack:
            x = layer(x, keys, absent)
        seeds = self.out(self.norm(x)).unflatten(-1, (self.config.blocks, -1))  # (B, W, blocks, D)
        seeds = torch.cat([self.config.scale * seeds[:, :, :1], seeds[:, :, 1:]], 2)
        static = F.pad(mask_embedding[None], (0, 0, 0, self.config.blocks - 1))  # (blocks, D)
        if self.config.mode == "residual":
            seeds = static + seeds
        return torch.where(empty[:, None, None, None], static, seeds)


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


def check_blocks(router: Router, num_blocks: int) -> None:
    """Raise ValueError where a router seeds more blocks than there are."""
    if router.config.blocks > num_blocks:
        raise ValueError(
            f"this router seeds {router.config.blocks} blocks, and there are {num_blocks}: "
            "give the model's blocks, or another router"
        )


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


def save_router(
    router: Router, folder: Path, backbone: str, extra_config: Mapping[str, Any] | None = None
) -> None:
    """Write router_config.json and router.safetensors; backbone: fingerprint of the
    model that it was trained on.
    """
    write_part(
        ROUTER,
        router,
        folder,
        {**asdict(router.config), "backbone": backbone, **(extra_config or {})},
    )


def load_router(folder: Path, model: LLaDA) -> Router:
    """The router in `folder`, on the model's device; refuses one of another width or
    trained on another backbone.
    """
    raw = read_part(ROUTER, folder)
    reject_unknown(
        raw, [*names(RouterConfig), "backbone", "training"], f"key of {folder / CONFIG}:"
    )
    check_part(ROUTER, raw, folder, model)
    try:
        config = build(RouterConfig, raw)
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG}: {error}") from None
    with torch.device("meta"):
        router = Router(config)
    check_blocks(router, model.config.n_layers)
    return fill_part(ROUTER, router, folder, model)
