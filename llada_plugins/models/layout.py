"""Under which names, and in how many pieces, checkpoints store the tensors of our modules.

Names of modules are compared with N in the place of each whole number.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

NUMBER = r"(?<![^.])\d+(?![^.])"  # a whole part of a name
ANY_NUMBER = r"(?<![^.])N(?![^.])"


class Part(NamedTuple):
    """The place of a stored module in one of ours."""

    name: str  # of our module, with N for its numbers
    # The stored name has a number more, the last one: of a matrix of ours (E, rows, columns).
    numbered: bool = False
    share: tuple[int, int] = (0, 1)  # (k, n): the k-th of n equal shares of its rows


class Piece(NamedTuple):
    """A stored tensor, and its place in one of ours."""

    stored: str
    number: int | None = None  # of the matrix of a stack; None = all
    share: tuple[int, int] = (0, 1)

    @property
    def is_whole(self) -> bool:
        return self.number is None and self.share == (0, 1)

    def of(self, tensor: Tensor) -> Tensor:
        """The place, a view of our tensor or of one with as many rows, such as an adapter's B."""
        matrix = tensor if self.number is None else tensor[self.number]
        k, n = self.share
        return matrix if n == 1 else matrix.chunk(n, -2)[k]


class Layout(NamedTuple):
    """How a family's tensors are stored."""

    # module names, stored -> ours; one that is not listed is the same in both
    names: Mapping[str, str] = {}
    # full names of stored tensors -> where they stand in one of ours, whose name is given in full
    parts: Mapping[str, Part] = {}

    def our_name(self, stored: str) -> str:
        """Our name of a stored tensor; of one that is a part, the name of ours that has it."""
        form, numbers = numbers_apart(stored)
        if form in self.parts:
            return _filled(self.parts[form].name, numbers)
        return _renamed(stored, self.names)

    def stored_name(self, ours: str) -> str:
        """The stored name of a tensor of ours that is stored whole."""
        return _renamed(ours, {mine: stored for stored, mine in self.names.items()})

    def pieces(self, ours: str, tensor: Tensor) -> list[Piece]:
        """The stored tensors that make one of ours; one that is whole, for most."""
        form, numbers = numbers_apart(ours)
        parts = {stored: part for stored, part in self.parts.items() if part.name == form}
        if not parts:
            return [Piece(self.stored_name(ours))]
        return [
            Piece(_filled(stored, [*numbers, str(each)]), number=each, share=part.share)
            if part.numbered
            else Piece(_filled(stored, numbers), share=part.share)
            for stored, part in parts.items()
            for each in range(len(tensor) if part.numbered else 1)
        ]


SAME_NAMES = Layout()


def _renamed(tensor: str, names: Mapping[str, str]) -> str:
    """The name of a tensor after its module is renamed; numbers keep their order."""
    module, _, leaf = tensor.rpartition(".")
    form, numbers = numbers_apart(module)
    return f"{_filled(names[form], numbers)}.{leaf}" if form in names else tensor


def numbers_apart(name: str) -> tuple[str, list[str]]:
    """A name with N for each number, and the numbers."""
    return re.sub(NUMBER, "N", name), re.findall(NUMBER, name)


def _filled(form: str, numbers: list[str]) -> str:
    """The name of a form, with its numbers; those beyond its own are left out."""
    rest = iter(numbers)
    return re.sub(ANY_NUMBER, lambda _: next(rest), form)
