"""Which columns of a window a step judges, and which of their masks it may unmask."""

from __future__ import annotations

import torch
from torch import Tensor

from .config import SamplerConfig
from .several_blocks import BlocksInWork


def to_judge(masked: Tensor, config: SamplerConfig, blocks: BlocksInWork | None) -> Tensor:
    """Columns (B, W) of which a step needs proposals, bool: masks, and what it may take back.

    blocks: where a window spans several of them; then those in work have such columns alone.
    """
    judged = torch.ones_like(masked) if config.revises else masked
    return judged if blocks is None else judged & blocks.in_work(masked.shape[1])


def next_to_unmask(masked: Tensor, config: SamplerConfig) -> Tensor:
    """Those masked positions (B, W) of the block that a step may unmask, bool."""
    width, length = masked.shape[1], config.sub_block_length
    eligible = masked
    if length is not None and length < width:
        part = torch.arange(width, device=masked.device) // length  # (W,)
        first = part.expand_as(masked).masked_fill(~masked, width).amin(-1, keepdim=True)
        eligible = masked & (part == first)
    if config.first_token_alone:
        opens = masked[:, :1]
        eligible = eligible & ~opens
        eligible[:, :1] |= opens
    return eligible
