"""The exact cache of block-causal models: finished blocks are computed once.

A token sees its own block and those before it, so keys and values of a finished block
never change. They stay for as long as the row is decoded. A block's first forward computes
the block before it as well, from that one's final tokens, and for a new row its prompt.
Later ones compute the block alone. Answers are those of forwards of the whole canvas.

What is kept is used only as far as it was computed from the very tokens that stand on the
canvas. So rows may leave, come back, be tried in several versions or be masked again.
Candidates of a request share what is before their block: they differ in that block alone.
"""

from __future__ import annotations

import torch

from .blocks import Blocks
from .denoiser import Canvas, Denoiser, Prediction
from .kept_rows import KeptRows
from .memory import Memory, Rows
from .standing import Order, Sharing, Standing

# columns, of all rows together, that are computed at once of what stands before a block
MOST_AT_ONCE = 16384


class InWork:
    """The N rows whose block is in work, in the first slots. Made anew for each block.

    Wrappers inside see the rows in the order of their slots.
    """

    kept: KeptRows | None = None

    def begin(self, kept: KeptRows, blocks: Blocks, canvas: Canvas, window: slice) -> None:
        """Seat the canvas's rows. blocks: they tell how long a row becomes."""
        assert canvas.ids is not None and canvas.blocks is not None
        self.width, self.padded = canvas.blocks, canvas.padded
        standing = Standing.of(canvas, window.stop)
        facts = canvas.ids, standing.edge, standing.first, canvas.answer_start
        ids, edges, firsts, starts = torch.stack(facts).tolist()
        sharing = self._sharing(canvas, window, ids, kept.num_left)
        self.length = window.stop if sharing is None else sharing.length  # columns of a slot
        longest = (
            self.length
            - window.stop
            + max(
                self._whole_blocks(first - edge + blocks.row(start - first))
                for edge, first, start in zip(edges, firsts, starts)
            )
        )
        kept.reserve(len(set(ids)), self.length, longest, canvas.tokens.device)
        leads = [row for row, each in enumerate(ids) if ids.index(each) == row]
        before = canvas.tokens[leads, : window.start]
        seats = kept.seat([ids[row] for row in leads], before, standing.edge[leads], self.width)
        self.kept = kept
        held = sorted(zip(seats.slots, leads, seats.num_columns))
        # by slot: the first column of the canvas that the slot does not hold
        self.needed = [edges[row] + number for _, row, number in held]
        slot_of = {ids[row]: slot for slot, row, _ in held}
        self.slots = [slot_of[each] for each in ids]  # of each row of the canvas
        self.memory = Memory()  # of wrappers inside
        self.order = Order(self.slots, canvas.tokens.device)
        self.standing = standing.of_rows(self.order.rows)
        if sharing is not None:
            self.standing = self.standing.with_tails(sharing)

    def _whole_blocks(self, length: int) -> int:
        return -(-length // self.width) * self.width  # rounded up

    def _sharing(
        self, canvas: Canvas, window: slice, ids: list[int], num_left: int
    ) -> Sharing | None:
        """How rows of one id share its slot; None where each row has an id of its own."""
        most = max(map(ids.count, ids))
        if most == 1:
            return None
        leads = torch.tensor([ids.index(each) for each in ids], device=canvas.tokens.device)
        before = canvas.tokens[:, : window.start]
        alike = (before == before[leads]).all(0)  # (L,)
        begin = int(alike.long().cumprod(0).sum()) // self.width * self.width
        return Sharing(begin, min(num_left, begin), most, window.stop)

    def keep_rows(self, rows: Rows) -> None:
        """The others leave: their slots stay theirs, behind those of the rows in work."""
        if self.kept is None:
            return
        device = self.standing.first.device
        stay = rows.of(torch.arange(len(self.slots), device=device))
        slots = [self.slots[number] for number in stay.tolist()]
        moved = self.kept.to_front(list(dict.fromkeys(slots)))
        self.slots = [moved[slot] for slot in slots]
        former, self.order = self.order, Order(self.slots, device)
        places = former.places[stay][self.order.rows]
        self.memory.keep_rows(Rows(places, len(former.rows)))
        self.standing = self.standing.of_rows(places)

    def in_slots(self, canvas: Canvas) -> Canvas:
        """The canvas with its rows in the order of their slots."""
        canvas = canvas._replace(memory=self.memory)
        if self.order.is_that_of_rows:
            return canvas
        return canvas.of_rows(self.order.rows)

    def first_columns(self, denoise: Denoiser, canvas: Canvas, window: slice) -> slice:
        """What the block's first forward computes; what it would be too much for is computed here.

        canvas: in the order of slots. Where some rows lack more than the block before, as new
        ones do, they get it alone; where all do, as in a first batch, it rides along. What
        candidates share is always computed alone.
        """
        assert self.kept is not None
        tails, num_left = self.standing.tails, self.kept.num_left
        previous = max(0, window.start - self.width) if tails is None else tails.begin
        lacking = [slot for slot, column in enumerate(self.needed) if column < previous]
        num_columns = len(self.needed) * (window.stop - min(self.needed))
        if tails is not None or len(lacking) < len(self.needed):
            for slots in neighbours(lacking):
                self._prefill(denoise, canvas, slots, previous)
        elif num_columns > MOST_AT_ONCE:
            self._prefill(denoise, canvas, slice(0, len(self.needed)), previous)
        if tails is not None:
            return slice(max(0, tails.begin - num_left), window.stop)
        return slice(min(max(0, window.start - num_left), *self.needed), window.stop)

    def _prefill(self, denoise: Denoiser, canvas: Canvas, slots: slice, stop: int) -> None:
        """Compute what these slots lack before column `stop`, where a block begins."""
        first = min(self.needed[slots])
        num_slots = slots.stop - slots.start
        at_once = max(1, MOST_AT_ONCE // (num_slots * self.width)) * self.width
        step = self.order.per_slot  # all rows of a slot are alike there
        rows = slice(slots.start * step, slots.stop * step, step)
        some = canvas.of_rows(rows)._replace(memory=None)
        standing = self.standing._replace(tails=None).of_rows(rows)
        for start in range(first, stop, at_once):
            columns = slice(start, min(start + at_once, stop))
            last_block = slice(columns.stop - self.width, columns.stop)
            self._compute(denoise, some, last_block, columns, slots, standing)
        self.needed[slots] = [stop] * num_slots

    def _compute(
        self,
        denoise: Denoiser,
        canvas: Canvas,
        window: slice,
        columns: slice,
        slots: slice,
        standing: Standing,
    ) -> Prediction:
        """A forward of some columns of the rows in these slots, which keeps what it computes."""
        assert self.kept is not None
        length = columns.stop if standing.tails is None else self.length
        past = self.kept.slots
        past.seat(standing.seated(slots, columns, length, self.width, self.padded))
        prediction = denoise(canvas._replace(columns=columns, past=past), window)
        num_slots = slots.stop - slots.start
        tokens = canvas.tokens[:, columns].reshape(num_slots, -1)
        past.record(tokens, standing.num_held(columns.stop, num_slots))
        return prediction

    def predict(
        self, denoise: Denoiser, canvas: Canvas, window: slice, columns: slice
    ) -> Prediction:
        """What the denoiser says of the window, by forwards of these columns.

        canvas: in the order of slots; the prediction is in the rows' own.
        """
        assert self.kept is not None
        everyone = slice(0, len(set(self.slots)))
        prediction = self._compute(denoise, canvas, window, columns, everyone, self.standing)
        self.kept.num_left = int(prediction.shifted)
        if self.order.is_that_of_rows:
            return prediction
        return prediction.of_rows(self.order.places)


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
