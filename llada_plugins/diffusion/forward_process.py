"""Forward processes: how clean tokens become noisy ones.

Shared by training and likelihood; knows no model and no loss.
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
    # (B, 1) fp32: with what probability a maskable position was masked; (B, L) where a row's
    # blocks differ
    p_mask: Tensor


def mask_tokens(
    tokens: Tensor,
    maskable: Tensor,
    mask_id: int,
    generator: torch.Generator,
    eps: float = EPS,
    block: Tensor | None = None,
) -> Noisy:
    """Mask positions at random (LLaDA, arXiv 2502.09992, Algorithms 1 and 2).

    Each maskable position with p = (1 - eps) t + eps, one t ~ U[0, 1] a row. tokens:
    (B, L) clean ids. maskable: (B, L) bool; False (the prompt, in SFT) is never
    masked. A row may stay without a mask. The noise is drawn on the generator's device,
    so a CPU generator gives the same noise whatever device the tokens are on. block: (B, L)
    number of each token's block in its row, below L; each then has a t of its own, as in
    block diffusion (BD3LM, arXiv 2503.09573).
    """
    num_rows, length = tokens.shape
    num_blocks = 1 if block is None else length  # at most
    t = torch.rand(num_rows, num_blocks, generator=generator, device=generator.device)
    if block is not None:
        t = t.gather(1, block.to(t.device))  # (B, L)
    draw = torch.rand(num_rows, length, generator=generator, device=generator.device)  # (B, L)
    p_mask = (1 - eps) * t + eps  # (B, 1 or L)
    masked = (draw < p_mask).to(tokens.device) & maskable
    return Noisy(tokens.masked_fill(masked, mask_id), masked, p_mask.to(tokens.device))


class RemaskNoise(NamedTuple):
    """Tokens after Remask SFT's two noises."""

    tokens: Tensor  # (B, L), mask_id where masked, not the clean token where incorrect
    masked: Tensor  # (B, L) bool
    incorrect: Tensor  # (B, L) bool, never where masked
    p_mask: Tensor  # as of Noisy, of answer positions


# From noisy tokens (B, L), N chosen positions as (B, L) bool, clean tokens (B, L) and a
# generator to the N tokens to put there.
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
    block: Tensor | None = None,
) -> RemaskNoise:
    """Remask SFT's two noises, at answer positions only (RemeDi, arXiv 2509.23653, section 4.1).

    Mask noise p, then incorrect-token noise 4 r p (1 - p). The second is conditional, as
    in RemeDi's code: it falls on each answer token that was *not* masked, so an answer
    token is incorrect with probability 4 r p (1 - p)^2 overall. r: 0-1, the peak of that
    rate, reached at p = 1/2. tokens, answer, block: as in `mask_tokens`. A replacement
    that happens to equal the clean token is a clean token.
    """
    noisy = mask_tokens(tokens, answer, mask_id, generator, eps, block)
    draw = torch.rand(tokens.shape, generator=generator, device=generator.device)  # (B, L)
    p_incorrect = 4 * r * noisy.p_mask * (1 - noisy.p_mask)
    chosen = (draw.to(tokens.device) < p_incorrect) & answer & ~noisy.masked
    replacements = replace(noisy.tokens, chosen, tokens, generator)
    corrupted = noisy.tokens.masked_scatter(chosen, replacements)
    return RemaskNoise(corrupted, noisy.masked, chosen & (corrupted != tokens), noisy.p_mask)


def another_of(alphabet: Tensor) -> Replace:
    """Replacements uniform among the alphabet without the clean token, in one draw.

    alphabet: (A,) distinct sorted ids, at least two. Drawing until the token differs
    from the clean one has the same distribution: where the clean token is in the
    alphabet, A - 1 tokens are left, numbered 0 to A - 2; the numbers from the clean
    token's place on belong to the tokens one place further.
    """

    def replace(
        noisy: Tensor, chosen: Tensor, tokens: Tensor, generator: torch.Generator
    ) -> Tensor:
        ids = alphabet.to(tokens.device)  # (A,)
        clean = tokens[chosen]  # (N,)
        draw = torch.rand(
            len(clean), generator=generator, device=generator.device, dtype=torch.float64
        ).to(tokens.device)
        place = torch.searchsorted(ids, clean).clamp(max=len(ids) - 1)
        member = ids[place] == clean
        number = (draw * (len(ids) - member.long())).long()
        further = member & (number >= place)
        return ids[number + further.long()]

    return replace
