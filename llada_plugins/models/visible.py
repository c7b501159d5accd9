"""What a token sees: every token, or under block-causal attention its block and those before."""

from __future__ import annotations

import torch
from torch import Tensor

from .llada_config import LLaDAConfig


def visible_columns(
    config: LLaDAConfig,
    given: Tensor,
    attention_mask: Tensor | None,
    position_ids: Tensor | None = None,
) -> Tensor | None:
    """What may be attended to among given (B, L, ...), bool (B, L) or (B, L, L); None: all.

    attention_mask: (B, L), which tokens are real, or (B, L, L), which of them each sees,
    whatever the model's own attention is.
    """
    real = None if attention_mask is None else attention_mask.bool()
    if config.attention == "full" or (real is not None and real.dim() == 3):
        return real
    assert config.block_length is not None
    columns = torch.arange(given.shape[1], device=given.device)
    positions = None if position_ids is None else position_ids.to(given.device)
    return block_causal(columns[None], config.block_length, real, positions)


def block_causal(
    columns: Tensor, block_length: int, real: Tensor | None = None, positions: Tensor | None = None
) -> Tensor:
    """Which columns each of columns (1, L) sees, bool (B, L, L); B = 1 where rows are alike.

    Blocks are counted from 0 by positions (B, L), by default from each row's first real
    token. real: (B, L), False = padding, which no token sees. Padding itself sees the
    first block: attention to nothing gives no number.
    """
    if positions is None:
        positions = columns
        if real is not None:
            positions = columns - real.int().argmax(-1, keepdim=True)
    block = positions.clamp(min=0) // block_length
    visible = block[:, None, :] <= block[:, :, None]
    return visible if real is None else visible & real[:, None]
