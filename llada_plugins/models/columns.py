"""Some columns of a canvas: a slice that all rows have in common, or columns of each row."""

from __future__ import annotations

import torch
from torch import Tensor


def at_columns(values: Tensor, columns: slice | Tensor) -> Tensor:
    """Values (B, L, ...) of a slice of columns, or of columns (B, W) of each row."""
    if isinstance(columns, slice):
        return values[:, columns]
    rows = torch.arange(len(columns), device=columns.device)[:, None]
    return values[rows, columns]
