"""ALA, the router: prompt-conditioned seeds in place of one static mask embedding.

Nothing inside the transformer changes: only what masked answer positions look like
before its first block, or before each of several; routing.py puts them there. The
last-layer corrections of later public code that share the name are something else, and
not here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llada_plugins.files.json_files import FLAG, TEXT, number, whole
from llada_plugins.models.llada import LLaDA
from llada_plugins.models.llada_config import WIDTH
from llada_plugins.options.fields import arg, build, names, reject_unknown

from .addon import AddOn, check_addon, fill_addon, read_addon, write_addon

CONFIG, WEIGHTS = "router_config.json", "router.safetensors"
ROUTER = AddOn(
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
        self.attention: nn.MultiheadAttention | None = None
        if config.use_prompt:
            self.attention = nn.MultiheadAttention(config.d_model, config.heads, batch_first=True)
        self.mlp: nn.Sequential | None = None
        if config.mlp:
            self.mlp = nn.Sequential(
                nn.LayerNorm(config.d_model),
                nn.Linear(config.d_model, config.mlp),
                nn.GELU(),
                nn.Linear(config.mlp, config.d_model),
            )

    def forward(self, x: Tensor, prompt: Tensor, absent: Tensor) -> Tensor:
        """x: (B, W, D). prompt: (B, P, D). absent: (B, P) bool, True = no prompt token there."""
        if self.attention is not None:
            attended, _ = self.attention(
                self.norm(x), prompt, prompt, key_padding_mask=absent, need_weights=False
            )
            x = x + attended
        return x if self.mlp is None else x + self.mlp(x)


class Router(nn.Module):
    """Seeds (B, W, blocks, D) for W answer positions: mask queries attend to the prompt."""

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
        """Seeds of the first `width` positions of every answer.

        prompt: (B, P, D) embeddings, the answer follows column P - 1. present: (B, P) bool,
        where prompt tokens are. mask_embedding: (D,). The first block's seeds stand for
        embeddings, the others' are to be added to hidden states. A row without prompt gets
        the mask embedding at every position, and zeros.
        """
        if width > self.config.max_positions:
            raise ValueError(
                f"the router knows answers of {self.config.max_positions} tokens (max_positions), "
                f"got {width}: train a longer one"
            )
        positions = torch.arange(width, device=prompt.device)
        # distance from the answer, less one
        back = torch.arange(prompt.shape[1], 0, -1, device=prompt.device) - 1
        back = back.clamp(max=self.config.max_positions - 1)
        keys = self.prompt_norm(prompt + self.prompt_position(back))  # (B, P, D)
        query = mask_embedding + self.query_position(positions)  # (W, D)
        empty = ~present.any(-1)  # (B,)
        # attention over nothing is undefined; such rows are overwritten below
        absent = ~present & ~empty[:, None]
        x = query.expand(len(prompt), -1, -1)  # (B, W, D)
        for layer in self.stack:
            x = layer(x, keys, absent)
        seeds = self.out(self.norm(x)).unflatten(-1, (self.config.blocks, -1))  # (B, W, blocks, D)
        seeds = torch.cat([self.config.scale * seeds[:, :, :1], seeds[:, :, 1:]], 2)
        static = F.pad(mask_embedding[None], (0, 0, 0, self.config.blocks - 1))  # (blocks, D)
        if self.config.mode == "residual":
            seeds = static + seeds
        return torch.where(empty[:, None, None, None], static, seeds)


def check_blocks(router: Router, num_blocks: int) -> None:
    """Raise ValueError where a router seeds more blocks than there are."""
    if router.config.blocks > num_blocks:
        raise ValueError(
            f"this router seeds {router.config.blocks} blocks, and there are {num_blocks}: "
            "give the model's blocks, or another router"
        )


def save_router(
    router: Router, folder: Path, backbone: str, extra_config: Mapping[str, Any] | None = None
) -> None:
    """Write router_config.json and router.safetensors.

    backbone: fingerprint of the model that it was trained on. extra_config: further keys
    of the former, such as the training command.
    """
    description = {**asdict(router.config), "backbone": backbone, **(extra_config or {})}
    write_addon(ROUTER, router, folder, description)


def load_router(folder: Path, model: LLaDA) -> Router:
    """The router in `folder`, on the model's device.

    Refuses one of another width, or trained on another backbone.
    """
    raw = read_addon(ROUTER, folder)
    reject_unknown(
        raw, [*names(RouterConfig), "backbone", "training"], f"key of {folder / CONFIG}:"
    )
    check_addon(ROUTER, raw, folder, model)
    try:
        config = build(RouterConfig, raw)
        with torch.device("meta"):
            router = Router(config)
        check_blocks(router, model.config.n_layers)
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG}: {error}") from None
    return fill_addon(ROUTER, router, folder, model)
