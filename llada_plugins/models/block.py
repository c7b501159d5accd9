"""One layer of the transformer: attention with rotary positions, then an MLP or experts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layer import Layer, attend
from .llada_config import LLaDAConfig
from .mixture import Mixture


class RMSNorm(nn.Module):
    """x / rms(x) in fp32, cast back *before* the weight is applied.

    So does the published code; F.rms_norm rounds differently in bf16.
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        scaled = x.float()
        scaled = scaled * torch.rsqrt(scaled.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * scaled.to(x.dtype)


def rotary_table(length: int, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin, each (length, head_dim), fp32 on the CPU.

    The published code makes them there, and bf16 tables break the model.
    """
    frequency = 1.0 / (theta ** (torch.arange(0, head_dim, 2, dtype=torch.float) / head_dim))
    angle = torch.outer(torch.arange(length, dtype=torch.float), frequency)
    angle = torch.cat([angle, angle], -1)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor, full_precision: bool) -> Tensor:
    """Apply rotary positions to (B, H, L, head_dim), half-rotated layout."""
    y = x.float() if full_precision else x
    first, second = y.chunk(2, -1)
    return (y * cos.to(y.dtype) + torch.cat([-second, first], -1) * sin.to(y.dtype)).to(x.dtype)


class Block(Layer):
    """One pre-norm layer.

    ff_proj is the gate (through SiLU), up_proj multiplies it, ff_out projects down. A
    mixture of experts takes their place where the config has one.
    """

    def __init__(self, config: LLaDAConfig) -> None:
        super().__init__()
        width, hidden = config.d_model, config.mlp_hidden_size
        q_width, kv_width = (
            heads * config.head_dim for heads in (config.n_heads, config.num_kv_heads)
        )
        qkv_bias = config.include_bias or config.include_qkv_bias
        self.config = config
        self.attn_norm = RMSNorm(width, config.rms_norm_eps)
        self.q_proj = nn.Linear(width, q_width, bias=qkv_bias)
        self.k_proj = nn.Linear(width, kv_width, bias=qkv_bias)
        self.v_proj = nn.Linear(width, kv_width, bias=qkv_bias)
        if config.qk_norm:
            self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
            self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
        self.attn_out = nn.Linear(q_width, width, bias=config.include_bias)
        self.ff_norm = RMSNorm(width, config.rms_norm_eps)
        if config.num_experts:
            self.mixture = Mixture(config)
        else:
            self.ff_proj = nn.Linear(width, hidden, bias=config.include_bias)
            self.up_proj = nn.Linear(width, hidden, bias=config.include_bias)
            self.ff_out = nn.Linear(hidden, width, bias=config.include_bias)

    def projections(self, h: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries and keys, and values, each (B, H, L, head_dim), of normed h (B, L, D)."""
        config = self.config
        q, k, v = (
            proj(h).view(*h.shape[:2], -1, config.head_dim).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        if config.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        precise = config.rope_full_precision
        return rotate(q, cos, sin, precise), rotate(k, cos, sin, precise), v

    def compute(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        visible: Tensor | None,
        keys: Tensor | None,
        values: Tensor | None,
        columns: Tensor | None,
    ) -> Tensor:
        config, (batch, length, _) = self.config, x.shape
        q, k, v = self.projections(self.attn_norm(x), cos, sin)
        if keys is not None:
            assert values is not None and columns is not None
            # not index_copy_: compiled, that copies all of keys, and back (torch 2.13)
            keys[:, :, columns], values[:, :, columns] = k, v
            k, v = keys, values
        # (B, L, D)
        attended = attend(q, k, v, visible).transpose(1, 2).reshape(batch, length, -1)
        x = x + self.attn_out(attended)
        h = self.ff_norm(x)
        if config.num_experts:
            x = x + self.mixture(h)
        else:
            x = x + self.ff_out(F.silu(self.ff_proj(h)) * self.up_proj(h))
        return x
