"""Token rows as callers give them: one tensor of them, and what they may not hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .denoiser import PADDING


class Aligned(NamedTuple):
    """Token rows that end together."""

    tokens: Tensor  # (B, L) with PADDING on the left of shorter rows
    padded: bool  # was any needed?


def align(rows: Sequence[Sequence[int]], device: torch.device, *, multiple: int = 1) -> Aligned:
    """Token rows as one tensor, with PADDING on the left of shorter ones.

    multiple: what their common length is rounded up to.
    """
    longest = max(len(row) for row in rows)
    longest = -(-longest // multiple) * multiple
    aligned = [[PADDING] * (longest - len(row)) + list(row) for row in rows]
    padded = any(len(row) < longest for row in rows)
    return Aligned(torch.tensor(aligned, dtype=torch.long, device=device), padded)


def check_unmasked(prompts: Sequence[Sequence[int]], mask_id: int) -> None:
    """Raise ValueError on a prompt with the mask token: only the answer after it is filled in."""
    for number, prompt in enumerate(prompts):
        if mask_id in prompt:
            place = list(prompt).index(mask_id)
            raise ValueError(
                f"prompt {number} holds the mask token (id {mask_id}) at position {place}: "
                "it would never be filled in, take it out"
            )
