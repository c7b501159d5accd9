"""Which slot of a decode's memory holds which row, and how much of it is still the row's."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from llada_plugins.models.slots import Slots


class Match(NamedTuple):
    """A slot that holds something of a row."""

    row: int
    slot: int
    num_columns: int  # computed from the row's tokens, from its first block on


class Seats(NamedTuple):
    """Where rows were seated."""

    slots: list[int]  # of each row: together the first ones there are
    num_columns: list[int]  # of each row's slot that hold what the row needs


class Assigned(NamedTuple):
    """Of each row that any slot holds something of."""

    own: dict[int, Match]  # the slot that it keeps; no two rows keep one
    best: dict[int, Match]  # the slot that holds most of it


def assigned(matches: Iterable[Match]) -> Assigned:
    """To every row a slot of its id, as far as there are, those with the most of it first."""
    own: dict[int, Match] = {}
    best: dict[int, Match] = {}
    taken: set[int] = set()
    for match in sorted(matches, key=lambda match: (-match.num_columns, match.slot)):
        best.setdefault(match.row, match)
        if match.row not in own and match.slot not in taken:
            own[match.row] = match
            taken.add(match.slot)
    return Assigned(own, best)


def has_less(own: Match | None, best: Match) -> bool:
    """Is there more of a row in another slot than in its own, if it has one?"""
    return own is None or own.num_columns < best.num_columns


class KeptRows:
    """Slots, by the ids of the rows that they are of.

    A row may have several, as candidates have. There are as many slots as rows were ever in
    work at once, so the memory is bounded by the largest batch.
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

    def matches(self, ids: Sequence[int], tokens: Tensor, edge: Tensor, width: int) -> list[Match]:
        """How much of each row the slots of its id hold, in whole blocks.

        tokens: (B, L) before the block in work, to column L, where a block begins. edge: (B,)
        column at which the row's first block begins. Waits for the device.
        """
        pairs = [
            (row, slot)
            for row, each in enumerate(ids)
            for slot, owner in enumerate(self.owners)
            if owner == each
        ]
        length = tokens.shape[1]
        if not pairs or not length:
            return [Match(row, slot, 0) for row, slot in pairs]
        row, slot = torch.tensor(pairs, device=tokens.device).unbind(1)  # (P,)
        column = edge[row, None] + torch.arange(length, device=tokens.device)  # (P, L)
        own = tokens[row].gather(1, column.clamp(max=length - 1))
        same = (own == self.slots.tokens[slot, :length]) & (column < length)
        whole = same.unflatten(1, (-1, width)).all(-1)  # (P, blocks)
        num_columns = width * whole.long().cumprod(1).sum(1)
        return [Match(*pair, number) for pair, number in zip(pairs, num_columns.tolist())]

    def seat(self, ids: Sequence[int], matches: Iterable[Match]) -> Seats:
        """Give every row a slot of its own: the one that holds most of it, or the oldest.

        A further row of an id begins with a copy of what another one of it has.
        """
        self.num_blocks += 1
        own, best = assigned(matches)
        rows = range(len(ids))
        slot_of = {row: match.slot for row, match in own.items()}
        newcomers = [row for row in rows if row not in own]
        empty = self._oldest_but(slot_of.values(), len(newcomers))
        slot_of |= dict(zip(newcomers, empty))
        moved = self.to_front([slot_of[row] for row in rows], empty)
        places = [moved[slot_of[row]] for row in rows]
        for slot in empty:
            self.slots.spoil(slice(moved[slot], moved[slot] + 1), slice(None))
        poorer = [row for row, match in best.items() if has_less(own.get(row), match)]
        self.slots.copy_slots(
            [moved[best[row].slot] for row in poorer],
            [places[row] for row in poorer],
            self.length,
        )
        for place, each in zip(places, ids):
            self.owners[place], self.last_used[place] = each, self.num_blocks
        return Seats(places, [best[row].num_columns if row in best else 0 for row in rows])

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
