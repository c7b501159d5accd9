"""Rotary positions (RoFormer, arXiv 2104.09864), half-rotated layout."""

from __future__ import annotations

import torch
from torch import Tensor


def rotary_table(length: int, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin, each (length, head_dim), fp32 on the CPU.

    The published code makes them there, and bf16 tables break the model.
    """
    frequency = 1.0 / (theta ** (torch.arange(0, head_dim, 2, dtype=torch.float) / head_dim))
    angle = torch.outer(torch.arange(length, dtype=torch.float), frequency)
    angle = torch.cat([angle, angle], -1)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor, full_precision: bool) -> Tensor:
    """Apply rotary positions to (B, H, L, head_dim), half-rotated layout.

    Of a table narrower than a head, the dimensions beyond it pass as they are.
    """
    width = cos.shape[-1]
    y = x[..., :width]
    y = y.float() if full_precision else y
    first, second = y.chunk(2, -1)
    turned = y * cos.to(y.dtype) + torch.cat([-second, first], -1) * sin.to(y.dtype)
    turned = turned.to(x.dtype)
    return turned if width == x.shape[-1] else torch.cat([turned, x[..., width:]], -1)
