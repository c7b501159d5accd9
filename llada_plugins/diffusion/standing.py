"""Where rows of a canvas stand in slots: the columns' places there, and what they see.

A slot has the columns of one request's row in their order. Candidates of a request share
it: what is before their blocks stands there once, then a tail for each of them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from llada_plugins.models.slots import Seated

from .denoiser import PADDING, Canvas, num_left_of_row

NOWHERE = -1  # canvas column of a place that a row has no part in


class Sharing(NamedTuple):
    """How the rows of one id share a slot, the same in all slots."""

    begin: int  # canvas column before which they are alike; a block begins there
    # columns before it that each computes, for the logits to their right: nobody sees them
    num_left: int
    most: int  # rows of a slot
    stop: int  # canvas column after their blocks

    @property
    def tail(self) -> int:
        """Columns of a slot that a row has for itself."""
        return self.stop - self.begin + self.num_left

    @property
    def length(self) -> int:
        """Columns of a slot for all of its rows, at most."""
        return self.begin + self.most * self.tail


class Tails(NamedTuple):
    """Where the rows' own columns stand, after those that all of a slot's share."""

    begin: int  # see Sharing
    num_shared: Tensor  # (B,) columns of the slot before all tails
    offset: Tensor  # (B,) from a column of the canvas to its place in the row's tail


class Standing(NamedTuple):
    """Where B rows stand on a canvas, each number (B,)."""

    first: Tensor  # column of the row's first token
    edge: Tensor  # column where the block of that token begins
    end: Tensor  # column after the row's last token
    tails: Tails | None = None  # None: every row has a slot of its own

    @classmethod
    def of(cls, canvas: Canvas, stop: int) -> Standing:
        """Of the canvas's rows, as far as column `stop`."""
        tokens, width = canvas.tokens[:, :stop], canvas.blocks
        assert width is not None
        zero = tokens.new_zeros(len(tokens))
        if not canvas.padded:
            return cls(zero, zero, zero + stop)
        first = num_left_of_row(tokens)
        return cls(first, first // width * width, first + (tokens != PADDING).sum(-1))

    def of_rows(self, numbers: Tensor | slice) -> Standing:
        """Of some rows."""
        first, edge, end = (each[numbers] for each in (self.first, self.edge, self.end))
        tails = self.tails
        if tails is not None:
            tails = Tails(tails.begin, tails.num_shared[numbers], tails.offset[numbers])
        return Standing(first, edge, end, tails)

    def with_tails(self, sharing: Sharing) -> Standing:
        """Of rows that share slots, `sharing.most` neighbours each."""
        shared = (sharing.begin - self.edge).clamp(min=0)
        number = torch.arange(len(shared), device=shared.device) % sharing.most
        first_column = sharing.begin - sharing.num_left
        offset = shared + number * sharing.tail - first_column
        return self._replace(tails=Tails(sharing.begin, shared, offset))

    def seated(self, slots: slice, columns: slice, length: int, width: int, padded: bool) -> Seated:
        """These columns in work of the rows in these slots; rows of a slot are side by side.

        length: columns of a slot that are looked at. width: of a block. padded: may a row have
        fewer columns than the canvas?
        """
        column = torch.arange(columns.start, columns.stop, device=self.first.device)
        num_slots = slots.stop - slots.start
        places, positions = (
            each.reshape(num_slots, -1)
            for each in (self._places(column), (column - self.first[:, None]).clamp(min=0))
        )
        one_block = columns.start // width == (columns.stop - 1) // width
        if one_block and not padded and self.tails is None:
            return Seated(slots, length, places, positions, None)
        visible = self._visible(column, length)  # (B, 1, length)
        if not one_block:
            visible = visible & self._earlier(column, length, width)
        if num_slots < len(self.first):
            visible = visible.expand(-1, len(column), -1).reshape(num_slots, -1, length)
        return Seated(slots, length, places, positions, visible)

    def _visible(self, column: Tensor, length: int) -> Tensor:
        """Which places of its slot hold tokens of the row, (B, 1, L), up to these columns."""
        stands = self._columns_at(length)
        in_row = (stands >= self.first[:, None]) & (stands < self.end[:, None])
        return (in_row & (stands <= column[-1]))[:, None]

    def _earlier(self, column: Tensor, length: int, width: int) -> Tensor:
        """Which places hold a column's own block or one before it, (B, W, L).

        What stands left of a row's first token sees what that one does: it must see some.
        """
        own_block = torch.maximum(column, self.first[:, None]) // width  # (B, W)
        return self._columns_at(length)[:, None] // width <= own_block[..., None]

    def num_held(self, stop: int, num_slots: int) -> Tensor:
        """Columns (S,) of each slot that count after a forward up to column `stop`.

        What stands in tails is of one try of a block, and counts no longer than that.
        """
        held = stop - self.edge if self.tails is None else self.tails.num_shared
        return held.view(num_slots, -1)[:, 0]

    def _places(self, column: Tensor) -> Tensor:
        """The place (B, W) of these canvas columns (W,) in each row's slot.

        A column left of a row's first block belongs nowhere: it goes to the right of all
        that the row has, where it is written over before anything sees it.
        """
        if self.tails is not None:
            return column + self.tails.offset[:, None]
        places = column - self.edge[:, None]
        return torch.where(places < 0, places + len(column), places)

    def _columns_at(self, length: int) -> Tensor:
        """The canvas columns (B, L) that stand at the first L places of each row's slot."""
        place = torch.arange(length, device=self.edge.device)
        column = place + self.edge[:, None]
        if self.tails is None:
            return column
        own = place - self.tails.offset[:, None]
        own = torch.where(own < self.tails.begin, NOWHERE, own)
        return torch.where(place < self.tails.num_shared[:, None], column, own)


class Order:
    """Rows of a canvas in the order of their slots.

    slots: of each row, from 0. Every slot gets as many places as the one with most rows
    needs: the last row of another has several.
    """

    def __init__(self, slots: list[int], device: torch.device) -> None:
        members: list[list[int]] = [[] for _ in set(slots)]
        for row, slot in enumerate(slots):
            members[slot].append(row)
        self.per_slot = max(map(len, members))
        rows = [
            each[min(number, len(each) - 1)] for each in members for number in range(self.per_slot)
        ]
        self.is_that_of_rows = rows == list(range(len(slots)))
        self.rows = torch.tensor(rows, device=device)  # at each place
        # (N,) a place of each row
        self.places = torch.tensor([rows.index(row) for row in range(len(slots))], device=device)
