"""A forward over memory that stays in place, of a shape that serves many others.

Shapes come in buckets, so that few graphs serve all blocks, batches and prompts; what a
bucket has too much is hidden from attention, and cut off.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .captured import Captured
from .cuda_graph import Graph
from .layer import Streams, View
from .past import LayerPast, Past, row_bucket
from .slots import Slots

# Rows times columns of a small forward: on an H100 those of up to 512 columns took as long
# as one of 32, whatever they computed.
LARGEST = 1024
LENGTH_STEP = 64  # canvases are as long as a multiple of it

Compute = Callable[[Tensor, View], Streams]


class Shape(NamedTuple):
    """What one graph serves."""

    num_rows: int
    width: int  # columns in work
    length: int  # of the canvas
    has_past: bool
    given: torch.dtype  # of ids or embeddings
    capacity: int | None = None  # columns of a slot; None: rows are not in slots
    of_pairs: bool = False  # does each of the columns in work see columns of its own?
    sees_all: bool = False  # is nothing hidden? Attention takes less time without a mask
    by_row: bool = False  # do rows have positions of their own?


class ReplayedForward:
    """A forward of one shape over memory of its own, where inputs are put and outputs found."""

    def __init__(self, shape: Shape, given: Tensor, view: View, past: Past | None) -> None:
        rows, width, device = shape.num_rows, shape.width, given.device
        self.given = given.new_zeros(rows, width, *given.shape[2:])
        by_row = (rows, 1) if shape.by_row else ()
        cos, sin = (each.new_zeros(*by_row, width, each.shape[-1]) for each in (view.cos, view.sin))
        visible: Tensor | None = None
        if not shape.sees_all:
            seeing = width if shape.of_pairs else 1
            visible = torch.ones(rows, 1, seeing, shape.length, dtype=torch.bool, device=device)
        columns: Tensor | None = None
        if past is not None:
            of_slots = () if shape.capacity is None else (rows,)
            columns = torch.zeros(*of_slots, width, dtype=torch.long, device=device)
        self.places = torch.arange(width, device=device)
        self.view = View(cos, sin, visible, columns, _layers(past, shape))
        self.captured: Captured[Streams] = Captured()

    def load(self, given: Tensor, view: View, length: int) -> None:
        """Put in what is given, of at most so many rows and columns.

        Further rows keep what they had: any numbers will do that are not NaN.
        """
        num_rows, width = given.shape[:2]
        self.given[:num_rows, :width] = given
        for kept, new in ((self.view.cos, view.cos), (self.view.sin, view.sin)):
            place = kept[:width] if kept.dim() == 2 else kept[:num_rows, :, :width]
            place.copy_(new)
        if self.view.visible is not None:
            self._load_visible(self.view.visible[:num_rows], view.visible, length)
        columns = self.view.columns
        if columns is None:
            return
        assert view.columns is not None
        if columns.dim() == 2:
            columns[:num_rows] = view.columns
        else:
            torch.add(self.places, view.columns[0], out=columns)

    @staticmethod
    def _load_visible(kept: Tensor, visible: Tensor | None, length: int) -> None:
        """Put in what the rows see of a canvas of that length."""
        kept[..., length:] = False
        if visible is None:
            kept[..., :length] = True
            return
        width = visible.shape[2]
        kept[:, :, :width, :length] = visible
        if width < kept.shape[2]:  # one that sees nothing would be NaN
            kept[:, :, width:, :length] = True

    def spare(self, slots: Slots) -> None:
        """Let further rows write where nothing counts.

        Their slots may hold keys and values of rows that are not in work.
        """
        columns, visible = self.view.columns, self.view.visible
        assert columns is not None
        if slots.num_rows == len(columns):
            return
        assert visible is not None  # see shape_of
        rows = slice(slots.num_rows, len(columns))
        first = min(slots.length, visible.shape[-1] - columns.shape[1])
        columns[rows] = torch.arange(columns.shape[1], device=columns.device) + first
        slots.spoil(rows, slice(first, first + columns.shape[1]))

    def run(self, compute: Compute, make_graph: Callable[[], Graph]) -> Streams:
        """What the forward computes. Raises RuntimeError where it cannot be captured."""
        return self.captured.run(lambda: compute(self.given, self.view), make_graph)


def _layers(past: Past | None, shape: Shape) -> list[LayerPast] | None:
    """Keys and values that a forward of the shape reads and writes."""
    if past is None or shape.capacity is None:
        return None if past is None else list(past)
    rows, length = shape.num_rows, shape.length
    return [LayerPast(*(each[:rows, :, :length] for each in layer)) for layer in past]


def length_bucket(length: int) -> int:
    """Columns of memory for a canvas of that length."""
    return -(-length // LENGTH_STEP) * LENGTH_STEP  # rounded up


def slot_bucket(length: int) -> int:
    """Columns that a forward of rows in slots attends to, of which so many hold something.

    Few different numbers in the life of a row: each has graphs of its own.
    """
    return row_bucket(-(-length // LENGTH_STEP)) * LENGTH_STEP


def shape_of(
    given: Tensor, view: View, past: Past | None, to_the_end: bool, length: int
) -> Shape | None:
    """The bucket of a forward; None where it is too large, or its rows have no slots in front."""
    num_rows, width = given.shape[:2]
    of_pairs = view.visible is not None and view.visible.shape[2] > 1
    by_row = view.cos.dim() > 2
    if isinstance(past, Slots):
        if past.seated.rows.start > 0 or num_rows * width > LARGEST:
            return None
        rows = min(row_bucket(num_rows), past.num_slots)
        room = min(slot_bucket(length), past.capacity)
        # rows too many may see no columns but their own, which are written meanwhile
        sees_all = view.visible is None and (rows, room) == (num_rows, length)
        capacity = past.capacity
        return Shape(rows, width, room, True, given.dtype, capacity, of_pairs, sees_all, by_row)
    rows, room = row_bucket(num_rows), length_bucket(length)
    if to_the_end:
        width += room - length
    if rows * width > LARGEST:
        return None
    sees_all = view.visible is None and room == length  # rows too many may see anything
    has_past = past is not None
    return Shape(rows, width, room, has_past, given.dtype, None, of_pairs, sees_all, by_row)
