"""Keys and values of rows that come and go: a slot for each row, for as long as it is decoded.

A row's keys and values stand where its own first block begins, wherever the row stands on a
canvas. So nothing moves when its neighbours change, and there is room to the right for what
comes. Only for models whose tokens never attend to a later block.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .layer import View
from .past import LayerPast, Past

NO_TOKEN = -1  # where a slot holds no keys and values that count


class Seated(NamedTuple):
    """The W columns in work of each of B neighbouring slots, and what they see.

    Where several rows share a slot, their columns are side by side.
    """

    rows: slice  # of the slots
    length: int  # columns of a slot that are looked at
    places: Tensor  # (B, W) columns of the slot where keys and values of those in work belong
    positions: Tensor  # (B, W) in the row, from 0 at its first token
    # bool (B, W, length), or (B, 1, length) where all W see the same; None: all see all
    visible: Tensor | None


class Slots(Past):
    """A Past of S slots with room for C columns each.

    seated: what the next forward is of. tokens: (S, C) which token a column was computed
    from, after all that stand before it. So a row may use what is there as far as those
    are its own tokens.
    """

    seated: Seated

    def __init__(self) -> None:
        super().__init__()
        self.num_slots = self.capacity = 0
        self.tokens = torch.full((0, 0), NO_TOKEN)

    def reserve(self, num_slots: int, capacity: int, device: torch.device) -> None:
        """Have room for at least so many rows and columns; what there is stays.

        The first forward brings the memory itself: the model knows what it needs.
        """
        num_slots, capacity = max(num_slots, self.num_slots), max(capacity, self.capacity)
        if (num_slots, capacity) == (self.num_slots, self.capacity):
            return
        tokens = torch.full((num_slots, capacity), NO_TOKEN, device=device)
        tokens[: self.num_slots, : self.capacity] = self.tokens
        if self:
            self._move(num_slots, capacity)
        self.tokens, self.num_slots, self.capacity = tokens, num_slots, capacity

    def _move(self, num_slots: int, capacity: int) -> None:
        """Take memory for more, layer by layer, so that old and new are not held at once."""
        _, num_heads, _, head_dim = self[0].keys.shape
        shape = num_slots, capacity, num_heads, head_dim
        if self.lender is not None:
            self.lender.enlarge(self, shape)
            return
        for layer, each in enumerate(self):
            keys, values = (enlarged(memory, shape) for memory in each)
            self[layer] = LayerPast(keys, values)

    def fill(self, layers: list[LayerPast], num_rows: int, length: int) -> None:
        """Take the memory of all slots."""
        self.extend(layers)

    def room(self, num_rows: int, length: int) -> tuple[int, int]:
        """Of all slots, whatever the first forward is of."""
        return self.num_slots, self.capacity

    def seat(self, seated: Seated) -> None:
        """The next forward is of these rows and columns."""
        self.seated = seated
        self.num_rows, self.length = seated.rows.stop - seated.rows.start, seated.length

    def present(self) -> list[LayerPast]:
        """Views of the rows in work, (B, H, length, head_dim) each."""
        rows, columns = self.seated.rows, slice(self.length)
        return [LayerPast(*(each[rows, :, columns] for each in layer)) for layer in self]

    def copy_slots(self, sources: Sequence[int], targets: Sequence[int], length: int) -> None:
        """Put what the first slots hold into the others, all at once; columns up to length."""
        if not sources:
            return
        self.tokens[list(targets)] = self.tokens[list(sources)]
        for layer in self:
            for each in layer:
                columns = each[:, :, :length]
                columns[list(targets)] = columns[list(sources)]

    def record(self, tokens: Tensor, ends: Tensor) -> None:
        """The columns in work were computed from these tokens (B, W).

        ends: (B,) columns of each slot that count from here on.
        """
        kept = self.tokens[self.seated.rows]
        kept.scatter_(1, self.seated.places, tokens)
        column = torch.arange(self.capacity, device=kept.device)
        kept.masked_fill_(column >= ends[:, None], NO_TOKEN)

    def spoil(self, rows: slice, columns: slice) -> None:
        """Nothing that stands there counts any more."""
        self.tokens[rows, columns] = NO_TOKEN


def view_of(slots: Slots, cos: Tensor, sin: Tensor) -> View:
    """What the blocks share in a forward of rows in slots. cos, sin: (L, head_dim)."""
    seated = slots.seated
    positions = seated.positions[:, None]  # (B, 1, W)
    visible = None if seated.visible is None else seated.visible[:, None]
    return View(cos[positions], sin[positions], visible, seated.places, slots.present())


def enlarged(memory: Tensor, shape: tuple[int, int, int, int]) -> Tensor:
    """A larger copy of keys or values (B, H, L, head_dim). shape: rows, columns, heads, head_dim.

    Zeros where nothing is yet: what is hidden from attention must still be a number.
    """
    found = memory.new_zeros(shape).transpose(1, 2)
    found[: memory.shape[0], :, : memory.shape[2]] = memory
    return found
