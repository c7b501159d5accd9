"""Rows of block diffusion: noisy copies of a text beside its clean tokens, for one forward.

A block-causal model predicts a block from the clean blocks before it (BD3LM, arXiv
2503.09573, section 3.3; SDAR, arXiv 2510.06303). One forward does so for all blocks of a
row. Training and likelihoods both lay their rows out here, so the rule is in one place:

    a noisy column sees   its own block of its own copy, and the clean blocks before it
    a clean column sees   the clean blocks up to its own

Blocks and positions are counted from a row's own first token, prompt included, so that
neither padding nor neighbours change what a row's model sees.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# number of a column's copy: clean tokens, a place without a token; noisy copies from 1 up
CLEAN, ABSENT = 0, -1


class Layout(NamedTuple):
    """Where the columns of a batch stand in their texts, and who sees whom."""

    position_ids: Tensor  # (B, C) from 0 at the row's, or its document's, first token
    visible: Tensor  # (B, C, C) bool: may the row's column attend to the column's?
    # (B, C) the column just before in the text, as this one sees it: where a shifted model's
    # logits of this token are. The first token of a text has but its own.
    before: Tensor

    def repeat(self, times: int) -> Layout:
        """That of as many copies of the batch, one after the other."""
        return Layout(*(torch.cat([each] * times) for each in self))


def layout(
    copy: Tensor, position_ids: Tensor, width: int, document: Tensor | None = None
) -> Layout:
    """The layout of columns by their copy and position, (B, C) each.

    width: tokens of a block. document: (B, C) number of a column's text, where a row holds
    several, each with positions of its own. An absent column is seen by absent ones alone,
    and sees those, so that its attention is over something.
    """
    block = position_ids // width
    same_copy = copy[:, :, None] == copy[:, None]  # (B, C, C)
    clean = (copy == CLEAN)[:, None]  # (B, 1, C)
    own_block = same_copy & (block[:, :, None] == block[:, None])
    visible = own_block | (clean & (block[:, :, None] > block[:, None]))
    if document is not None:
        visible &= document[:, :, None] == document[:, None]
    # of all that it sees, one column stands at the position before its own
    step = position_ids[:, :, None] == position_ids[:, None] + 1
    found, column = (visible & step).max(-1)
    own = torch.arange(copy.shape[1], device=copy.device).expand_as(copy)
    return Layout(position_ids, visible, torch.where(found, column, own))


class Texts(NamedTuple):
    """Where the tokens of rows (B, L) stand in texts, as an attention mask says."""

    position_ids: Tensor  # (B, L)
    real: Tensor  # (B, L) bool
    document: Tensor | None = None  # (B, L), where rows hold several texts

    def block(self, width: int) -> Tensor:
        """Number of each token's block in its row, (B, L), different in every document."""
        number = self.position_ids // width
        if self.document is None:
            return number
        begins = number.diff(dim=1, prepend=number[:, :1] - 1) != 0
        begins |= self.document.diff(dim=1, prepend=self.document[:, :1]) != 0
        return begins.cumsum(-1) - 1


def texts(tokens: Tensor, attention_mask: Tensor | None = None) -> Texts:
    """Where tokens (B, L) stand, by a mask as `LLaDA.forward` takes it.

    None: each row is a text. (B, L): nonzero at its tokens, in one run. (B, L, L): each of
    the documents that it keeps apart is a text.
    """
    length = tokens.shape[1]
    column = torch.arange(length, device=tokens.device).expand_as(tokens)
    if attention_mask is None:
        return Texts(column, torch.ones_like(tokens, dtype=torch.bool))
    mask = attention_mask.bool()
    if mask.dim() == 2:
        return Texts((mask.cumsum(-1) - 1).clamp(min=0), mask)
    first = mask.byte().argmax(-1)  # (B, L) column of the document's first token
    return Texts(column - first, mask.any(-1), first)


class NoisyAndClean(NamedTuple):
    """Rows [noisy | clean] of C columns."""

    tokens: Tensor  # (B, C)
    layout: Layout
    first: int  # the text's column that is the first noisy one
    num_noisy: int  # columns

    def of_text(self, values: Tensor) -> Tensor:
        """Values (B, C) at noisy columns as (B, L), 0 before the first."""
        noisy = values[:, : self.num_noisy]
        return torch.cat([noisy.new_zeros(len(noisy), self.first), noisy], 1)

    def columns(self, at: Tensor) -> tuple[Tensor, Tensor]:
        """Rows and columns (N,) of the noisy tokens `at`, bool (B, L), N in order of rows."""
        rows, column = at[:, self.first :].nonzero(as_tuple=True)
        return rows, column


def noisy_and_clean(
    noisy: Tensor,
    clean: Tensor,
    width: int,
    attention_mask: Tensor | None = None,
    first: int = 0,
) -> NoisyAndClean:
    """[noisy | clean] rows of a noisy copy of clean tokens, (B, L) each.

    first: no token before it is noisy in any row; whole blocks before it get no noisy
    copy. Where rows are texts without padding, the last block gets no clean one, since
    nothing sees that.
    """
    length = clean.shape[1]
    found = texts(clean, attention_mask)
    begin, end = 0, length
    if attention_mask is None:
        begin, end = first // width * width, (length - 1) // width * width

    def beside(values: Tensor, other: Tensor) -> Tensor:
        return torch.cat([values[:, begin:], other[:, :end]], 1)  # (B, C)

    real = found.real
    copy = beside(torch.where(real, 1, ABSENT), torch.where(real, CLEAN, ABSENT))
    document = None if found.document is None else beside(found.document, found.document)
    positions = beside(found.position_ids, found.position_ids)
    tokens = beside(noisy, clean)
    return NoisyAndClean(tokens, layout(copy, positions, width, document), begin, length - begin)
