"""Keys and values that blocks keep between forwards, and memory for them that stays in place."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


class LayerPast(NamedTuple):
    """Rotated keys and values of all columns in one block, which it writes in place."""

    keys: Tensor  # (B, H, L, head_dim)
    values: Tensor  # (B, H, L, head_dim)


class Past(list[LayerPast]):
    """Of every block; empty before the first forward of all columns.

    Lent memory has room for more rows and columns than there are; `present` leaves them
    out.
    """

    def __init__(self) -> None:
        super().__init__()
        self.num_rows, self.length = 0, 0  # that there are
        self.lender: Memory | None = None  # whose memory it is, if lent

    @property
    def is_lent(self) -> bool:
        """Is the memory a Memory's?"""
        return self.lender is not None

    def fill(self, layers: list[LayerPast], num_rows: int, length: int) -> None:
        """Take memory for that many rows and columns."""
        self.extend(layers)
        self.num_rows, self.length = num_rows, length

    def room(self, num_rows: int, length: int) -> tuple[int, int]:
        """Rows and columns of memory that a first forward of so many needs."""
        return num_rows, length

    def present(self) -> list[LayerPast]:
        """Keys and values of the rows and columns that there are."""
        if not self.is_lent:
            return self
        rows, columns = slice(self.num_rows), slice(self.length)
        return [LayerPast(*(each[rows, :, columns] for each in layer)) for layer in self]

    def keep_rows(self, take: Callable[[Tensor], Tensor]) -> None:
        """Forget all rows but those that `take` takes from a tensor of all.

        Layer by layer, so that old and new are not held at once.
        """
        num_rows = self.num_rows
        for layer, each in enumerate(self):
            taken = [take(memory[:num_rows]) for memory in each]
            self.num_rows = len(taken[0])
            if self.is_lent:
                for memory, rows in zip(each, taken):
                    memory[: len(rows)] = rows
                taken = [memory[: row_bucket(self.num_rows)] for memory in each]
            self[layer] = LayerPast(*taken)


def row_bucket(num_rows: int) -> int:
    """Rows of memory for so many: 1, 2, 3, 4, 6, 8, 12, 16, 24, 32 and so on."""
    power = 1 << (num_rows - 1).bit_length()
    between = power // 4 * 3
    return between if num_rows <= between else power


class Memory:
    """Keys and values of all blocks that are lent to one Past after another.

    A shape has the same place every time, until more is wanted than ever before: then
    before_move is called, so that nobody keeps the old place.
    """

    def __init__(self, before_move: Callable[[], None] = lambda: None) -> None:
        self.layers: list[LayerPast] = []  # one-dimensional
        self.before_move = before_move
        self._holder: weakref.ref[Past] | None = None

    @property
    def is_free(self) -> bool:
        """Does no Past hold it?"""
        return self._holder is None or self._holder() is None

    def is_held_by(self, past: Past) -> bool:
        """Is that where the past's keys and values are?"""
        return self._holder is not None and self._holder() is past

    def release(self) -> None:
        """Give the memory back, which no Past may hold."""
        self.before_move()
        self.layers = []

    def lend(
        self, past: Past, num_layers: int, shape: tuple[int, int, int, int], like: Tensor
    ) -> None:
        """Fill an empty past, from a new place where `fits` says that the old one is too small.

        shape: rows, columns, heads, head_dim. like: a tensor of the dtype and device.
        Never NaN: zeros at first, then keys and values of former blocks.
        """
        size = math.prod(shape)
        if not self.fits(num_layers, shape, like):
            self.release()  # goes before the new comes
            self.layers = [
                LayerPast(like.new_zeros(size), like.new_zeros(size)) for _ in range(num_layers)
            ]
        past.extend(self._lent(layer, shape) for layer in range(num_layers))
        past.lender = self
        self._holder = weakref.ref(past)

    def _lent(self, layer: int, shape: tuple[int, int, int, int]) -> LayerPast:
        """Of one layer, the first of what there is as such a shape."""
        size = math.prod(shape)
        return LayerPast(*(each[:size].view(shape).transpose(1, 2) for each in self.layers[layer]))

    def enlarge(self, past: Past, shape: tuple[int, int, int, int]) -> None:
        """Give the past that holds it more rows and columns, and what it holds with them."""
        if not self.fits(len(past), shape, past[0].keys):
            self.before_move()
        size = math.prod(shape)
        for layer, each in enumerate(past):
            held = LayerPast(*(memory.clone() for memory in each))
            if self.layers[layer].keys.numel() < size:
                past[layer] = held  # the old place goes before the new comes
                self.layers[layer] = LayerPast(*(memory.new_zeros(size) for memory in held))
            past[layer] = self._lent(layer, shape)
            for memory, former in zip(past[layer], held):
                memory[: former.shape[0], :, : former.shape[2]] = former

    def fits(self, num_layers: int, shape: tuple[int, int, int, int], like: Tensor) -> bool:
        """Is there memory of that kind for the shape?"""
        if len(self.layers) != num_layers:
            return False
        keys = self.layers[0].keys
        enough = keys.numel() >= math.prod(shape)
        return enough and (keys.dtype, keys.device) == (like.dtype, like.device)
