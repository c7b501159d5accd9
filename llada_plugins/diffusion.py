"""Forward processes: how clean tokens become noisy ones. Shared by training and likelihood; knows no model and no loss."""
from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

EPS = 1e-3        # LLaDA: keeps 1 / p finite


class Noisy(NamedTuple):
    """Tokens after the forward process."""

    tokens: Tensor        # (B, L), mask_id where masked
    masked: Tensor        # (B, L) bool
    p_mask: Tensor        # (B, 1) fp32: the probability with which each maskable position of the row was masked


def mask_tokens(tokens: Tensor, maskable: Tensor, mask_id: int, generator: torch.Generator, eps: float = EPS) -> Noisy:
    """Mask each maskable position with p = (1 - eps) t + eps, one t ~ U[0, 1] a row (LLaDA, arXiv 2502.09992, Algorithms 1 and 2).

    tokens: (B, L) clean ids. maskable: (B, L) bool; False (the prompt, in SFT) is never masked. A row may stay without a mask.
    The noise is drawn on the generator's device, so a CPU generator gives the same noise whatever device the tokens are on.
    """
    num_rows, length = tokens.shape
    t = torch.rand(num_rows, 1, generator=generator, device=generator.device)                 # (B, 1)
    draw = torch.rand(num_rows, length, generator=generator, device=generator.device)         # (B, L)
    p_mask = (1 - eps) * t + eps
    masked = (draw < p_mask).to(tokens.device) & maskable
    return Noisy(tokens.masked_fill(masked, mask_id), masked, p_mask.to(tokens.device))
