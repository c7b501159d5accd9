"""Which prompts are decoded together next.

Batches stay full while answers of different lengths end and others begin. What waits is
token ids, some kilobytes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol


class Waiting(Protocol):
    """Rows that wait for the block that each fills next. True while there are any."""

    lengths: Sequence[int]  # tokens of each row, prompt and answer

    def __bool__(self) -> bool: ...

    def put(self, number: int, rows: Sequence[int]) -> None:
        """These rows fill block `number` next."""

    def take(self) -> tuple[int, list[int]]:
        """The next batch, and the block that the furthest of its rows fills."""


class Queue:
    """All rows of a batch fill the same block.

    So they share their columns, and are padded for the lengths of their prompts only. A row
    that has filled a block waits until it is its turn again.

    lengths: tokens of each row, prompt and answer. at_once: how many rows of so many
    tokens make a batch (default: all).
    """

    def __init__(
        self, lengths: Sequence[int], num_blocks: int, at_once: Callable[[int], int] | None = None
    ) -> None:
        self.lengths = lengths
        self.at_once = at_once or (lambda longest: max(1, len(lengths)))
        self.waiting: list[list[int]] = [[] for _ in range(num_blocks)]
        self.waiting[0] = sorted(range(len(lengths)), key=self._rank)

    def __bool__(self) -> bool:
        return any(self.waiting)

    def put(self, number: int, rows: Sequence[int]) -> None:
        """These rows fill block `number` next."""
        self.waiting[number] = sorted([*self.waiting[number], *rows], key=self._rank)

    def take(self) -> tuple[int, list[int]]:
        """The next block to fill and its batch, longest first.

        The deepest block for which a full batch waits, so that answers end early and
        little waits; where none does, the shallowest, whose rows then join those that
        wait deeper. So only the last few batches are not full, at most one of each
        block.
        """
        number = self._next_block()
        rows = self.waiting[number]
        size = self.at_once(self.lengths[rows[0]])
        self.waiting[number] = rows[size:]
        return number, rows[:size]

    def _next_block(self) -> int:
        nonempty = [number for number, rows in enumerate(self.waiting) if rows]
        full = [number for number in nonempty if self._is_full(number)]
        return full[-1] if full else nonempty[0]

    def _is_full(self, number: int) -> bool:
        rows = self.waiting[number]
        return len(rows) >= self.at_once(self.lengths[rows[0]])

    def _rank(self, row: int) -> tuple[int, int]:
        return -self.lengths[row], row


class Refill:
    """Rows of a batch may be at different blocks: a waiting one takes the place of one that ends.

    For canvases that end with the block in work. lengths, at_once: as in `Queue`. Rows that
    have begun go before all others.
    """

    def __init__(self, lengths: Sequence[int], at_once: Callable[[int], int] | None = None) -> None:
        self.lengths = lengths
        self.at_once = at_once or (lambda longest: max(1, len(lengths)))
        self.numbers = [0] * len(lengths)  # of the block that each fills next
        self.waiting = deque(sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)))

    def __bool__(self) -> bool:
        return bool(self.waiting)

    def put(self, number: int, rows: Sequence[int]) -> None:
        """See `Waiting`."""
        for row in rows:
            self.numbers[row] = number
        self.waiting.extendleft(reversed(rows))

    def take(self) -> tuple[int, list[int]]:
        """See `Waiting`."""
        rows = [self.waiting.popleft()]
        longest = self.lengths[rows[0]]
        while self.waiting:
            longest = max(longest, self.lengths[self.waiting[0]])
            if len(rows) >= self.at_once(longest):
                break
            rows.append(self.waiting.popleft())
        return max(self.numbers[row] for row in rows), rows
