"""Forward processes: how clean tokens become noisy ones. Shared by training and
likelihood; knows no model and no loss.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

EPS = 1e-3  # LLaDA: keeps 1 / p finite


class Noisy(NamedTuple):
    """Tokens after the forward process."""

    tokens: Tensor  # (B, L), mask_id where masked
    masked: Tensor  # (B, L) bool
    # (B, 1) fp32: the probability with which each maskable position of the row was
    # masked
    p_mask: Tensor


def mask_tokens(
    tokens: Tensor, maskable: Tensor, mask_id: int, generator: torch.Generator, eps: float = EPS
) -> Noisy:
    """Mask each maskable position with p = (1 - eps) t + eps, one t ~ U[0, 1] a row
    (LLaDA, arXiv 2502.09992, Algorithms 1 and 2).

    tokens: (B, L) clean ids. maskable: (B, L) bool; False (the prompt, in SFT) is never
    masked. A row may stay without a mask. The noise is drawn on the generator's device,
    so a CPU generator gives the same noise whatever device the tokens are on.
    """
    num_rows, length = tokens.shape
    t = torch.rand(num_rows, 1, generator=generator, device=generator.device)  # (B, 1)
    draw = torch.rand(num_rows, length, generator=generator, device=generator.device)  # (B, L)
    p_mask = (1 - eps) * t + eps
    masked = (draw < p_mask).to(tokens.device) & maskable
    return Noisy(tokens.masked_fill(masked, mask_id), masked, p_mask.to(tokens.device))


class RemaskNoise(NamedTuple):
    """Tokens after Remask SFT's two noises."""

    tokens: Tensor  # (B, L), mask_id where masked, another token than the clean one where incorrect
    masked: Tensor  # (B, L) bool
    incorrect: Tensor  # (B, L) bool, never where masked
    # (B, 1) fp32: the probability with which each answer position of the row was masked
    p_mask: Tensor


# noisy tokens (B, L), N chosen positions as (B, L) bool, clean tokens (B, L), generator
# -> N tokens to put there
Replace = Callable[[Tensor, Tensor, Tensor, torch.Generator], Tensor]


def remask_noise(
    tokens: Tensor,
    answer: Tensor,
    mask_id: int,
    generator: torch.Generator,
    *,
    r: float,
    replace: Replace,
    eps: float = EPS,
) -> RemaskNoise:
    """Mask noise p, then incorrect-token noise 4 r p (1 - p), at answer positions only
    (RemeDi, arXiv 2509.23653, section 4.1).

    The second is conditional, as in RemeDi's code: it falls on each answer token that
    was *not* masked, so an answer token is incorrect with probability 4 r p (1 - p)^2
    overall. r: 0-1, the peak of that rate, reached at p = 1/2. tokens, answer: (B, L)
    as in `mask_tokens`. A replacement that happens to equal the clean token is a clean
    token.
    """
    noisy = mask_tokens(tokens, answer, mask_id, generator, eps)
    # (B, L)
    draw = torch.rand(tokens.shape, generator=generator, device=generator.device).to(tokens.device)
    chosen = (draw < 4 * r * noisy.p_mask * (1 - noisy.p_mask)) & answer & ~noisy.masked
    corrupted = noisy.tokens.masked_scatter(
        chosen, replace(noisy.tokens, chosen, tokens, generator)
    )
    return RemaskNoise(corrupted, noisy.masked, chosen & (corrupted != tokens), noisy.p_mask)


def another_of(alphabet: Tensor) -> Replace:
    """Replacements uniform among the alphabet without the clean token: what drawing
    again until they differ gives, in one draw.

    alphabet: (A,) distinct sorted ids, at least two.
    """

    def replace(
        noisy: Tensor, chosen: Tensor, tokens: Tensor, generator: torch.Generator
    ) -> Tensor:
        clean, ids = tokens[chosen], alphabet.to(tokens.device)  # (N,), (A,)
        draw = torch.rand(
            len(clean), generator=generator, device=generator.device, dtype=torch.float64
        ).to(tokens.device)
        place = torch.searchsorted(ids, clean).clamp(max=len(ids) - 1)
        member = ids[place] == clean
        number = (draw * (len(ids) - member.long())).long()
        return ids[number + (member & (number >= place)).long()]

    return replace
