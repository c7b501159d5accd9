"""How the model that trains reads noisy rows, and which of its columns predict their tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from llada_plugins.diffusion.noisy_clean import NoisyAndClean, noisy_and_clean, texts


def predicting(
    at: Tensor, shifted: bool, attention_mask: Tensor | None = None
) -> Tensor | tuple[Tensor, Tensor]:
    """An index of the columns (B, L) whose logits predict the tokens `at`, bool (B, L).

    shifted: a column's logits are of the next one's token; the first token of a row, or of
    a document that attention_mask (B, L, L) keeps apart, has but its own column.
    """
    if not shifted:
        return at
    rows, columns = at.nonzero(as_tuple=True)
    left = (columns - 1).clamp(min=0)
    if attention_mask is not None and attention_mask.dim() == 3:
        left = torch.where(attention_mask[rows, columns, left].bool(), left, columns)
    return rows, left


class Given(NamedTuple):
    """What a model is called with for noisy rows of L columns."""

    tokens: Tensor  # (B, C)
    options: dict[str, Tensor]  # further arguments of its forward, by name
    shifted: bool
    beside: NoisyAndClean | None = None  # where clean tokens stand beside the noisy ones

    def predicting(self, at: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """An index of the columns (B, C) whose logits predict the noisy tokens `at`, (B, L)."""
        if self.beside is None:
            return predicting(at, self.shifted, self.options.get("attention_mask"))
        rows, columns = self.beside.columns(at)
        if self.shifted:
            columns = self.beside.layout.before[rows, columns]
        return rows, columns

    def of_noisy(self, values: Tensor) -> Tensor:
        """Values (B, C) of the noisy tokens, (B, L); 0 of clean ones that have no noisy copy."""
        return values if self.beside is None else self.beside.of_text(values)


@dataclass(frozen=True)
class Reading:
    """What sets models apart here.

    shifted: are logits of the next column? block_length: tokens of a block of a block-causal
    model, which reads clean tokens beside the noisy ones; None = full attention.
    """

    shifted: bool = False
    block_length: int | None = None

    def blocks(self, tokens: Tensor, attention_mask: Tensor | None = None) -> Tensor | None:
        """The number in its row of each token's block, (B, L); None: a row has one noise."""
        if self.block_length is None:
            return None
        return texts(tokens, attention_mask).block(self.block_length)

    def given(
        self,
        noisy: Tensor,
        clean: Tensor,
        maskable: Tensor,
        attention_mask: Tensor | None = None,
    ) -> Given:
        """What a model is called with for a noisy copy of clean tokens, (B, L) each.

        maskable: bool (B, L); other tokens are never noisy.
        """
        if self.block_length is None:
            options = {} if attention_mask is None else {"attention_mask": attention_mask}
            return Given(noisy, options, self.shifted)
        first = int(maskable.any(0).byte().argmax())
        rows = noisy_and_clean(noisy, clean, self.block_length, attention_mask, first)
        options = {
            "attention_mask": rows.layout.visible,
            "position_ids": rows.layout.position_ids,
        }
        return Given(rows.tokens, options, self.shifted, rows)


PLAIN = Reading()  # full attention, logits in their own columns
