"""The exact cache of block-causal models: finished blocks are computed once.

A token sees its own block and those before it, so keys and values of a finished block
never change. They stay for as long as the row is decoded. A block's first forward computes
the block before it as well, from that one's final tokens, and for a new row its prompt.
Later ones compute the block alone. Answers are those of forwards of the whole canvas.

What is kept is used only as far as it was computed from the very tokens that stand on the
canvas. So rows may leave, come back, be tried in several versions or be masked again.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from llada_plugins.models.slots import Seated

from .blocks import Blocks
from .denoiser import PADDING, Canvas, Denoiser, Prediction, num_left_of_row
from .kept_rows import KeptRows
from .memory import Memory, Rows

# columns, of all rows together, that are computed at once of what stands before a block
MOST_AT_ONCE = 16384


class Standing(NamedTuple):
    """Where rows stand on a canvas; all (B,)."""

    first: Tensor  # column of the row's first token
    edge: Tensor  # column where the block of that token begins
    end: Tensor  # column after the row's last token

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
        return Standing(*(each[numbers] for each in self))

    def seated(self, rows: slice, columns: slice, width: int, padded: bool) -> Seated:
        """These rows in the slots of the same numbers, with these columns in work.

        A column left of a row's first block belongs nowhere: it goes to the right of all
        that the row has, where it is written over before anything sees it.
        """
        first, edge, end = (each[rows, None] for each in self)  # (B, 1)
        column = torch.arange(columns.start, columns.stop, device=first.device)
        places = column - edge  # (B, W)
        places = torch.where(places < 0, places + len(column), places)
        positions = (column - first).clamp(min=0)
        length = columns.stop
        one_block = columns.start // width == (columns.stop - 1) // width
        if one_block and not padded:
            return Seated(rows, length, places, positions, None)
        key = torch.arange(length, device=first.device)
        end = end.clamp(max=columns.stop)
        visible = ((key >= first - edge) & (key < end - edge))[:, None]  # (B, 1, length)
        if not one_block:
            visible = visible & (key // width <= places[..., None] // width)
        return Seated(rows, length, places, positions, visible)


class InWork:
    """The N rows whose block is in work, in the first N slots. Made anew for each block."""

    kept: KeptRows | None = None

    def begin(self, kept: KeptRows, blocks: Blocks, canvas: Canvas, window: slice) -> None:
        """Seat the canvas's rows. blocks: they tell how long a row becomes."""
        assert canvas.ids is not None and canvas.blocks is not None
        self.width, self.padded = canvas.blocks, canvas.padded
        standing = Standing.of(canvas, window.stop)
        facts = canvas.ids, standing.edge, standing.first, canvas.answer_start
        ids, edges, firsts, starts = torch.stack(facts).tolist()
        longest = max(
            first - edge + blocks.row(start - first)
            for edge, first, start in zip(edges, firsts, starts)
        )
        longest = -(-longest // self.width) * self.width  # rounded up
        kept.reserve(len(ids), window.stop, longest, canvas.tokens.device)
        before = canvas.tokens[:, : window.start]
        seats = kept.seat(ids, kept.matches(ids, before, standing.edge, self.width))
        self.kept = kept
        self.slots = seats.slots  # of each row of the canvas
        order = sorted(range(len(ids)), key=seats.slots.__getitem__)  # row in each slot
        # by slot: the first column of the canvas that the slot does not hold
        self.needed = [edges[row] + seats.num_columns[row] for row in order]
        self.memory = Memory()  # of wrappers inside
        self._arrange(standing.of_rows(torch.tensor(order, device=standing.first.device)))

    def _arrange(self, standing: Standing) -> None:
        """Take over where the rows stand, by slot, after self.slots have changed."""
        self.standing = standing
        device = standing.first.device
        self.order: Tensor | None = None  # (N,) row in each slot; None: that of its number
        self.place = self.order  # (N,) slot of each row
        if self.slots != sorted(self.slots):
            self.place = torch.tensor(self.slots, device=device)
            self.order = self.place.argsort()

    def keep_rows(self, rows: Rows) -> None:
        """The others leave: their slots stay theirs, behind those of the rows in work."""
        if self.kept is None:
            return
        num_before = len(self.slots)
        numbers = rows.of(torch.arange(num_before, device=self.standing.first.device)).tolist()
        stay = [self.slots[number] for number in numbers]
        moved = self.kept.to_front(stay)
        self.slots = [moved[slot] for slot in stay]
        former = sorted(stay, key=moved.__getitem__)  # slot that each of the first ones was
        of_slots = torch.tensor(former, device=self.standing.first.device)
        self.memory.keep_rows(Rows(of_slots, num_before))
        self._arrange(self.standing.of_rows(of_slots))

    def in_slots(self, canvas: Canvas) -> Canvas:
        """The canvas with its rows in the order of their slots."""
        canvas = canvas._replace(memory=self.memory)
        if self.order is None:
            return canvas
        return canvas.of_rows(self.order)

    def first_columns(self, denoise: Denoiser, canvas: Canvas, window: slice) -> slice:
        """What the block's first forward computes; what it would be too much for is computed here.

        canvas: in the order of slots. Where some rows lack more than the block before, as new
        ones do, they get it alone; where all do, as in a first batch, it rides along.
        """
        assert self.kept is not None
        everyone = slice(0, len(self.needed))
        previous = max(0, window.start - self.width)
        lacking = [slot for slot, column in enumerate(self.needed) if column < previous]
        num_columns = len(self.needed) * (window.stop - min(self.needed))
        if len(lacking) < len(self.needed):
            for rows in neighbours(lacking):
                self._prefill(denoise, canvas, rows, previous)
        elif num_columns > MOST_AT_ONCE:
            self._prefill(denoise, canvas, everyone, previous)
        left = max(0, window.start - self.kept.num_left)
        return slice(min(left, *self.needed), window.stop)

    def _prefill(self, denoise: Denoiser, canvas: Canvas, rows: slice, stop: int) -> None:
        """Compute what these rows lack before column `stop`, where a block begins."""
        first = min(self.needed[rows])
        num_rows = rows.stop - rows.start
        at_once = max(1, MOST_AT_ONCE // (num_rows * self.width)) * self.width
        some = canvas.of_rows(rows)._replace(memory=None)
        for start in range(first, stop, at_once):
            columns = slice(start, min(start + at_once, stop))
            last_block = slice(columns.stop - self.width, columns.stop)
            self._compute(denoise, some, last_block, columns, rows)
        self.needed[rows] = [stop] * num_rows

    def _compute(
        self, denoise: Denoiser, canvas: Canvas, window: slice, columns: slice, rows: slice
    ) -> Prediction:
        """A forward of some columns of the rows in these slots, which keeps what it computes."""
        assert self.kept is not None
        slots = self.kept.slots
        slots.seat(self.standing.seated(rows, columns, self.width, self.padded))
        prediction = denoise(canvas._replace(columns=columns, past=slots), window)
        slots.record(canvas.tokens[:, columns], columns.stop - self.standing.edge[rows])
        return prediction

    def predict(
        self, denoise: Denoiser, canvas: Canvas, window: slice, columns: slice
    ) -> Prediction:
        """What the denoiser says of the window, by forwards of these columns.

        canvas: in the order of slots; the prediction is in the rows' own.
        """
        assert self.kept is not None
        everyone = slice(0, len(self.slots))
        prediction = self._compute(denoise, canvas, window, columns, everyone)
        self.kept.num_left = int(prediction.shifted)
        return prediction if self.place is None else prediction.of_rows(self.place)


def neighbours(slots: list[int]) -> list[slice]:
    """Ascending numbers of slots as runs of neighbours."""
    runs: list[slice] = []
    for slot in slots:
        if runs and runs[-1].stop == slot:
            runs[-1] = slice(runs[-1].start, slot + 1)
        else:
            runs.append(slice(slot, slot + 1))
    return runs


def keeping_finished_blocks(denoise: Denoiser, blocks: Blocks) -> Denoiser:
    """The denoiser with exact keys and values of finished blocks.

    Canvases whose blocks are not causal, or for whose rows nothing lasts, are denoised as
    they are. blocks: how the answers are cut.
    """

    def denoise_new(canvas: Canvas, window: slice) -> Prediction:
        memory, lasting = canvas.memory, canvas.lasting
        if canvas.blocks is None or canvas.ids is None or memory is None or lasting is None:
            return denoise(canvas, window)
        in_work, kept = memory.of(InWork), lasting.of(KeptRows)
        try:
            if in_work.kept is None:
                in_work.begin(kept, blocks, canvas, window)
                inner = in_work.in_slots(canvas)
                columns = in_work.first_columns(denoise, inner, window)
            else:
                inner = in_work.in_slots(canvas)
                columns = slice(max(0, window.start - kept.num_left), window.stop)
            return in_work.predict(denoise, inner, window, columns)
        except BaseException:
            lasting.drop(KeptRows)  # who knows what was written of the keys and values
            raise

    return denoise_new
