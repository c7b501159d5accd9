"""Rotary positions (RoFormer, arXiv 2104.09864), half-rotated layout."""

from __future__ import annotations

import torch
from torch import Tensor

from .columns import at_columns
from .llada_config import LLaDAConfig

FEWEST = 256  # positions of a table, so that it is not made anew for every longer text


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


class Rotations:
    """cos and sin of a model's positions, made when they are first asked for.

    No buffers: a model's .to(bfloat16) must never reach them.
    """

    def __init__(self, config: LLaDAConfig) -> None:
        self.config = config
        self.tables: dict[bool, tuple[Tensor, Tensor]] = {}  # for inference, and otherwise

    def first(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Those of the first positions, (length, rotary_width) each, fp32."""
        # Made under inference_mode they could never take part in a backward. Made
        # without, layers would be compiled once more: a slice of them is no inference
        # tensor, and columns picked from them are.
        inference = torch.is_inference_mode_enabled()
        table = self.tables.get(inference)
        if table is None or table[0].shape[0] < length or table[0].device != device:
            config = self.config
            cos, sin = rotary_table(max(length, FEWEST), config.rotary_width, config.rope_theta)
            table = self.tables[inference] = cos.to(device), sin.to(device)
        return table[0][:length], table[1][:length]

    def at(
        self,
        columns: slice | Tensor,
        length: int,
        device: torch.device,
        position_ids: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Those of columns of a canvas of so many, (W, rotary_width) each.

        (B, 1, W, rotary_width) where positions (B, L) are given. Raises ValueError where
        they reach the model's context.
        """
        if position_ids is None:  # those that have may hold a text twice
            self._check_fits(length)
            cos, sin = self.first(length, device)
            places = columns[:, None] if isinstance(columns, Tensor) else columns
            return cos[places], sin[places]
        places = at_columns(position_ids, columns)[:, None].to(device)  # (B, 1, W)
        length = int(places.max()) + 1
        self._check_fits(length)
        cos, sin = self.first(length, device)
        return cos[places], sin[places]

    def _check_fits(self, length: int) -> None:
        limit = self.config.max_sequence_length
        if length > limit:
            raise ValueError(
                f"{length} tokens exceed the model's context of {limit} (max_sequence_length of "
                "its config): give fewer"
            )
