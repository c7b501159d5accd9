"""Models of real shapes with random weights, and tokens for them: what benchmarks run on."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from llada_plugins import SpecialTokens
from llada_plugins.models.folder import known_special_tokens
from llada_plugins.models.initial import initialise
from llada_plugins.models.llada import LLaDA
from llada_plugins.models.llada_config import LLaDAConfig

DENSE: dict[str, Any] = dict(vocab_size=157_184, qk_norm=True)
MOE: dict[str, Any] = dict(**DENSE, num_experts=64, experts_per_token=8)
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": dict(d_model=32, n_layers=2, n_heads=2, mlp_hidden_size=64, vocab_size=101),
    "100m": dict(d_model=768, n_layers=12, n_heads=12, mlp_hidden_size=2048, vocab_size=126_464),
    # SDAR's kind: grouped queries, normed; small enough for a published loop on a CPU
    "40m-gqa": dict(
        d_model=512,
        n_layers=8,
        n_heads=8,
        n_kv_heads=2,
        mlp_hidden_size=1536,
        vocab_size=32_000,
        qk_norm=True,
    ),
    "tiny-gqa": dict(
        d_model=32,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        mlp_hidden_size=64,
        vocab_size=101,
        qk_norm=True,
    ),
    # Qwen3-8B's and SDAR-8B's
    "8b-gqa": dict(
        d_model=4096,
        n_layers=36,
        n_heads=32,
        n_kv_heads=8,
        mlp_hidden_size=12_288,
        vocab_size=151_936,
        qk_norm=True,
    ),
    "8b": dict(d_model=4096, n_layers=32, n_heads=32, mlp_hidden_size=12_288, vocab_size=126_464),
    # LLaDA-MoE's; NAME-active is dense, with as many weights as a token of it meets
    "7b-moe": dict(d_model=2048, n_layers=16, n_heads=16, mlp_hidden_size=1024, **MOE),
    # LLaDA2.0-mini's
    "16b-moe": dict(
        d_model=2048,
        n_layers=20,
        n_heads=16,
        n_kv_heads=4,
        mlp_hidden_size=5120,
        vocab_size=157_184,
        qk_norm=True,
        fused_qkv=True,
        rotary_share=0.5,
        num_experts=256,
        experts_per_token=8,
        expert_hidden_size=512,
        num_shared_experts=1,
        num_dense_layers=1,
        router="sigmoid",
        normalised_experts=True,
        expert_groups=8,
        groups_per_token=4,
        expert_scale=2.5,
    ),
    "7b-moe-active": dict(d_model=2048, n_layers=16, n_heads=16, mlp_hidden_size=8192, **DENSE),
    "300m-moe": dict(d_model=768, n_layers=12, n_heads=12, mlp_hidden_size=128, **MOE),
    "300m-moe-active": dict(d_model=768, n_layers=12, n_heads=12, mlp_hidden_size=1024, **DENSE),
}


def model_config(shape: str, length: int, block_length: int | None = None) -> LLaDAConfig:
    """A model of the shape for sequences up to `length`; its last id is the mask.

    block_length: of block-causal attention; None: every token sees all.
    """
    return LLaDAConfig(
        **SHAPES[shape],
        attention="full" if block_length is None else "block_causal",
        block_length=block_length,
        max_sequence_length=length,
        rope_theta=5e5,
        rms_norm_eps=1e-5,
        weight_tying=False,
        include_bias=False,
        include_qkv_bias=False,
        rope_full_precision=True,
        mask_token_id=SHAPES[shape]["vocab_size"] - 1,
    )


def random_model(
    config: LLaDAConfig, device: torch.device, seed: int, dtype: torch.dtype = torch.float32
) -> LLaDA:
    """Random weights, ready for inference."""
    with torch.device("meta"):
        model = LLaDA(config).to(dtype)
    model.to_empty(device=device)
    special = known_special_tokens(model)
    initialise(model, torch.Generator(device).manual_seed(seed))
    # no trained head proposes the mask; ours rules it out, the published loop does not
    with torch.no_grad():
        head = cast(nn.Linear, model.transformer["ff_out"])
        head.weight[special.mask] = 0
    model.special_tokens = SpecialTokens(special.mask)
    return model.eval().requires_grad_(False)


def random_tokens(model: LLaDA, length: int, seed: int) -> Tensor:
    """(1, length) ids without the mask."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(known_special_tokens(model).mask, (1, length), generator=generator).to(
        model.device
    )
