"""One layer of the transformer: attention with rotary positions, then an MLP or experts."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .features import compute_all, compute_moved
from .joint import Joint
from .layer import Layer, LayerFeatures, attend, write
from .llada_config import LLaDAConfig
from .mixture import Mixture
from .rotary import rotate

QKV = ("q_proj", "k_proj", "v_proj")
GATE_UP = ("ff_proj", "up_proj")


class RMSNorm(nn.Module):
    """x / rms(x) in fp32, cast back *before* the weight is applied.

    So does most published code; F.rms_norm rounds differently in bf16. casts_last: the
    weight is applied in fp32 too, as by the kernel that SDAR calls.
    """

    def __init__(self, width: int, eps: float, casts_last: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps, self.casts_last = eps, casts_last

    def forward(self, x: Tensor) -> Tensor:
        scaled = x.float()
        scaled = scaled * torch.rsqrt(scaled.pow(2).mean(-1, keepdim=True) + self.eps)
        if self.casts_last:
            return (self.weight.float() * scaled).to(x.dtype)
        return self.weight * scaled.to(x.dtype)


def rms_norm(width: int, config: LLaDAConfig) -> RMSNorm:
    """A norm of the model's kind."""
    return RMSNorm(width, config.rms_norm_eps, config.norm_casts_last)


class Block(Layer):
    """One pre-norm layer.

    ff_proj is the gate (through SiLU), up_proj multiplies it, ff_out projects down. A
    mixture of experts takes their place where the config has one.
    """

    def __init__(self, config: LLaDAConfig, layer: int = 0) -> None:
        """layer: the first ones of some mixtures have an MLP each."""
        super().__init__()
        width, hidden = config.d_model, config.mlp_hidden_size
        q_width, kv_width = config.n_heads * config.head_dim, config.num_kv_heads * config.head_dim
        qkv_bias = config.include_bias or config.include_qkv_bias
        self.config = config
        self.attn_norm = rms_norm(width, config)
        if config.fused_qkv:
            self.qkv_proj = nn.Linear(width, q_width + 2 * kv_width, bias=qkv_bias)
        else:
            self.q_proj = nn.Linear(width, q_width, bias=qkv_bias)
            self.k_proj = nn.Linear(width, kv_width, bias=qkv_bias)
            self.v_proj = nn.Linear(width, kv_width, bias=qkv_bias)
        if config.qk_norm:
            self.q_norm = rms_norm(config.head_dim, config)
            self.k_norm = rms_norm(config.head_dim, config)
        self.attn_out = nn.Linear(q_width, width, bias=config.include_bias)
        self.ff_norm = rms_norm(width, config)
        self.has_experts = config.num_experts > 0 and layer >= config.num_dense_layers
        if self.has_experts:
            self.mixture = Mixture(config)
        else:
            self.ff_proj = nn.Linear(width, hidden, bias=config.include_bias)
            self.up_proj = nn.Linear(width, hidden, bias=config.include_bias)
            self.ff_out = nn.Linear(hidden, width, bias=config.include_bias)
        self.same_input = tuple(names for names in (QKV, GATE_UP) if hasattr(self, names[0]))

    def projections(
        self, h: Tensor, cos: Tensor, sin: Tensor, joint: Joint | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries and keys, and values, each (B, H, L, head_dim), of normed h (B, L, D)."""
        if self.config.fused_qkv:
            q, k, v = self.qkv_proj(h).split(self._fused_widths, -1)
        else:
            q, k, v = self.outputs_of(QKV, h, joint)
        return *self._rotated(q, k, cos, sin), self._heads(v)

    def queries_and_keys(self, h: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Of `projections` the first two."""
        if self.config.fused_qkv:
            q, k, _ = self.qkv_proj(h).split(self._fused_widths, -1)
        else:
            q, k = self.q_proj(h), self.k_proj(h)
        return self._rotated(q, k, cos, sin)

    def values_of(self, h: Tensor) -> Tensor:
        """Of `projections` the last one."""
        if self.config.fused_qkv:
            return self._heads(self.qkv_proj(h).split(self._fused_widths, -1)[-1])
        return self._heads(self.v_proj(h))

    @property
    def _fused_widths(self) -> list[int]:
        """Of all queries, all keys, all values."""
        config = self.config
        heads = (config.n_heads, config.num_kv_heads, config.num_kv_heads)
        return [each * config.head_dim for each in heads]

    def _heads(self, projected: Tensor) -> Tensor:
        """(B, L, H * head_dim) as (B, H, L, head_dim)."""
        heads: Tensor = projected.unflatten(-1, (-1, self.config.head_dim))
        return heads.transpose(1, 2)

    def _rotated(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        q, k = self._heads(q), self._heads(k)
        if self.config.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        precise = self.config.rope_full_precision
        return rotate(q, cos, sin, precise), rotate(k, cos, sin, precise)

    def compute(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        visible: Tensor | None,
        keys: Tensor | None,
        values: Tensor | None,
        columns: Tensor | None,
        joint: Joint | None = None,
    ) -> Tensor:
        h = self.attn_norm(x)
        x = x + self.from_attention(h, cos, sin, visible, keys, values, columns, joint)
        return x + self.from_mlp(x, joint)

    def compute_in_part(
        self, features: LayerFeatures, order: Tensor | None, number: int | None, *given: Any
    ) -> Tensor:
        if order is None or number is None:
            return compute_all(self, features, *given)
        return compute_moved(self, features, order, number, *given)

    def from_attention(
        self,
        h: Tensor,
        cos: Tensor,
        sin: Tensor,
        visible: Tensor | None,
        keys: Tensor | None,
        values: Tensor | None,
        columns: Tensor | None,
        joint: Joint | None = None,
    ) -> Tensor:
        """What attention adds to the columns in work, (B, W, D), of their normed h (B, W, D)."""
        q, k, v = self.projections(h, cos, sin, joint)
        if keys is not None:
            assert values is not None and columns is not None
            write(keys, columns, k)
            write(values, columns, v)
            k, v = keys, values
        return self.gathered(attend(q, k, v, visible))

    def gathered(self, heads: Tensor) -> Tensor:
        """What heads (B, H, W, head_dim) have attended to, as (B, W, D) to be added."""
        output: Tensor = self.attn_out(heads.transpose(1, 2).flatten(2))
        return output

    def from_mlp(self, x: Tensor, joint: Joint | None = None) -> Tensor:
        """What the MLP or the experts add to x (B, W, D)."""
        h = self.ff_norm(x)
        if self.has_experts:
            output: Tensor = self.mixture(h)
            return output
        gate, up = self.outputs_of(GATE_UP, h, joint)
        output = self.ff_out(F.silu(gate) * up)
        return output
