"""What wrappers of a denoiser remember: between the steps of one block, and of rows in work.

A cache remembers keys and values, a router its seeds. Each declares a small class of its
own for that, and asks the canvas's memory for the one object of that class. So no wrapper
sees what another keeps, and every value has a type.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, ClassVar, Protocol, TypeVar

from torch import Tensor


class Rows:
    """Some rows of a batch: which of them, and how to take them from a tensor of all."""

    def __init__(self, numbers: Tensor, num_rows: int) -> None:
        self.numbers, self.num_rows = numbers, num_rows

    def of(self, values: Tensor) -> Tensor:
        """These rows of values, which has num_rows rows or a multiple of that.

        Under guidance a wrapper sees all rows twice, the second time with a blank prompt.
        """
        branches: Tensor = values.unflatten(0, (-1, self.num_rows))
        return branches[:, self.numbers].flatten(0, 1)


Thing = TypeVar("Thing")


def _one_of(kept: dict[type[Any], Any], kind: type[Thing]) -> Thing:
    """The object of this class, made when it is asked for the first time."""
    if kind not in kept:
        kept[kind] = kind()
    found = kept[kind]
    assert isinstance(found, kind)
    return found


class Remembered(Protocol):
    """What one wrapper keeps. Made without arguments at the first step of a block."""

    def keep_rows(self, rows: Rows) -> None:
        """Forget all other rows, in place."""


Kept = TypeVar("Kept", bound=Remembered)


class Memory:
    """One object of each class that a wrapper asks for, for the steps of one block."""

    def __init__(self) -> None:
        self._kept: dict[type[Any], Remembered] = {}

    def of(self, kind: type[Kept]) -> Kept:
        """The object of this class, made when it is asked for the first time."""
        return _one_of(self._kept, kind)

    def keep_rows(self, rows: Rows) -> None:
        """Forget all other rows, in place."""
        for kept in self._kept.values():
            kept.keep_rows(rows)


class RememberedOfRows(Protocol):
    """What one wrapper keeps of rows from block to block. Made without arguments.

    exact: would the rows' tokens bring it back as it was? Then no answer depends on it.
    """

    exact: ClassVar[bool]

    def forget(self, ids: Collection[int]) -> None:
        """Drop what is kept of rows with these ids, as far as anything is."""


KeptOfRows = TypeVar("KeptOfRows", bound=RememberedOfRows)


class Lasting:
    """One object of each class that a wrapper asks for, for all blocks of a decode."""

    def __init__(self) -> None:
        self._kept: dict[type[Any], RememberedOfRows] = {}

    def of(self, kind: type[KeptOfRows]) -> KeptOfRows:
        """The object of this class, made when it is asked for the first time."""
        return _one_of(self._kept, kind)

    def forget(self, ids: Iterable[int]) -> None:
        """Rows with these ids have ended; their guided branches, whose ids are ~id, as well."""
        ended = [each for number in ids for each in (number, ~number)]
        for kept in self._kept.values():
            kept.forget(ended)

    def drop(self, kind: type[RememberedOfRows]) -> None:
        """Nothing of this class is kept of any row from here on."""
        self._kept.pop(kind, None)

    def release(self) -> None:
        """Give memory back that was too small: what is exact will be computed again."""
        for kind, kept in list(self._kept.items()):
            if kept.exact:
                self.drop(kind)
