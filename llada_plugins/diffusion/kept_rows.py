"""Which slot of a decode's memory holds which row, and how much of it is still the row's."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from llada_plugins.models.slots import Slots


class Seats(NamedTuple):
    """Where rows were seated."""

    slots: list[int]  # of each row: together the first ones there are
    num_columns: list[int]  # of each row's slot that hold what the row needs


class KeptRows:
    """Slots, by the ids of the rows that they are of; candidates of a request share one.

    There are as many slots as ids were ever in work at once, so the memory is bounded by the
    largest batch.
    """

    exact: ClassVar = True

    def __init__(self) -> None:
        self.slots = Slots()
        self.owners: list[int | None] = []  # id of each slot's row; None: nobody's
        self.last_used: list[int] = []  # of each slot, number of the block in work
        self.num_blocks = 0  # in work so far
        self.length = 0  # columns of a slot that may hold something
        # columns left of a window that its logits need; known after the first prediction
        self.num_left = 1

    def forget(self, ids: Collection[int]) -> None:
        """The slots of these rows are nobody's, and the next to be given away."""
        for slot, owner in enumerate(self.owners):
            if owner in ids:
                self.owners[slot], self.last_used[slot] = None, 0

    def reserve(self, num_rows: int, length: int, longest: int, device: torch.device) -> None:
        """Have room for so many rows at once, of so many columns.

        longest: columns that a row will need at most. Memory grows by halves, so that little
        of it is moved, but not beyond that.
        """
        capacity = self.slots.capacity
        if length > capacity:
            capacity = max(length, min(longest, capacity * 3 // 2))
        self.slots.reserve(num_rows, capacity, device)
        num_new = self.slots.num_slots - len(self.owners)
        self.owners += [None] * num_new
        self.last_used += [0] * num_new
        self.length = max(self.length, length)

    def seat(self, ids: Sequence[int], tokens: Tensor, edge: Tensor, width: int) -> Seats:
        """Give every row a slot: its own, or the one that was not used for longest.

        ids: all different. tokens: (B, L) before the block in work, to column L, where a
        block begins. edge: (B,) column at which the row's first block begins. Of what a slot
        holds, whole blocks count that were computed from the row's tokens. Waits for the
        device.
        """
        self.num_blocks += 1
        slot_of_owner = {each: slot for slot, each in enumerate(self.owners)}
        own = {each: slot_of_owner[each] for each in ids if each in slot_of_owner}
        num_columns = self._num_held(ids, own, tokens, edge, width)
        empty = self._oldest_but(own.values(), len(ids) - len(own))
        slot_of = own | dict(zip((each for each in ids if each not in own), empty))
        moved = self.to_front([slot_of[each] for each in ids], empty)
        for slot in empty:
            self.slots.spoil(slice(moved[slot], moved[slot] + 1), slice(None))
        places = [moved[slot_of[each]] for each in ids]
        for place, each in zip(places, ids):
            self.owners[place], self.last_used[place] = each, self.num_blocks
        return Seats(places, num_columns)

    def _num_held(
        self,
        ids: Sequence[int],
        own: Mapping[int, int],
        tokens: Tensor,
        edge: Tensor,
        width: int,
    ) -> list[int]:
        """How many columns of each row its own slot holds, in whole blocks; see `seat`."""
        length = tokens.shape[1]
        pairs = [(row, own[each]) for row, each in enumerate(ids) if each in own]
        found = [0] * len(ids)
        if not pairs or not length:
            return found
        row, slot = torch.tensor(pairs, device=tokens.device).unbind(1)  # (P,)
        column = edge[row, None] + torch.arange(length, device=tokens.device)  # (P, L)
        expected = tokens[row].gather(1, column.clamp(max=length - 1))
        same = (expected == self.slots.tokens[slot, :length]) & (column < length)
        whole = same.unflatten(1, (-1, width)).all(-1)  # (P, blocks)
        num_columns = width * whole.long().cumprod(1).sum(1)
        for (number, _), held in zip(pairs, num_columns.tolist()):
            found[number] = held
        return found

    def _oldest_but(self, taken: Collection[int], number: int) -> list[int]:
        """So many slots that are not taken, those first that were not used for longest."""
        free = [slot for slot in range(len(self.owners)) if slot not in taken]
        return sorted(free, key=lambda slot: (self.last_used[slot], slot))[:number]

    def to_front(self, slots: Sequence[int], empty: Collection[int] = ()) -> dict[int, int]:
        """Let these N slots change places with others, so that they are the first N.

        empty: those of them whose contents nobody needs. Returns where each went.
        """
        behind = [slot for slot in slots if slot >= len(slots)]
        before = [slot for slot in range(len(slots)) if slot not in slots]
        sources, targets = [], []
        for one, other in [*zip(behind, before), *zip(before, behind)]:
            if one not in empty and self.owners[one] is not None:
                sources.append(one)
                targets.append(other)
        self.slots.copy_slots(sources, targets, self.length)
        moved = {slot: slot for slot in slots}
        for one, other in zip(behind, before):
            moved[one] = other
            owners, used = self.owners, self.last_used
            owners[one], owners[other] = owners[other], owners[one]
            used[one], used[other] = used[other], used[one]
        return moved
