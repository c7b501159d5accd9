"""Masked rows of requests, run in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby, islice
from operator import attrgetter
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from llada_plugins.diffusion.batch_limit import BatchLimit, in_halves
from llada_plugins.diffusion.denoiser import Denoiser, log_total

from .estimators import Masks
from .laying import Row, lay_beside_clean, lay_out
from .requests import Part, Request

Item = TypeVar("Item")


class SharedRow(NamedTuple):
    """A row, and whose it is."""

    row: Row
    uses: list[tuple[Part, int]]  # parts of requests, and which of their rows this one is


class Sheet(NamedTuple):
    """What a forward runs as one row.

    A masked row, or of a block-causal model masked blocks of one text, beside its clean
    tokens.
    """

    rows: list[SharedRow]
    columns: int  # at most


class RowLogits(NamedTuple):
    """What the model said at the scored columns of a batch, row after row."""

    logits: Tensor  # (P, V) fp32
    begins: list[int]  # where each row's begin


class Scored(NamedTuple):
    """The log-probabilities of a row for one of the parts that share it."""

    part: Part
    sample: int  # which of the part's rows it is
    columns: list[int]  # tokens of the part
    log_p: Tensor  # of each column, float64, on the CPU


class Owned(NamedTuple):
    """A row, and the request whose text it is of."""

    request: Request
    shared: SharedRow
    longest: int  # tokens of the longest request that shares rows with it


@dataclass(frozen=True)
class RowRunner:
    """A model and the size of its batches."""

    denoise: Denoiser
    mask_id: int
    device: torch.device
    at_once: BatchLimit
    after: tuple[int, ...] = ()  # tokens that every row shows after its answer
    block_length: int | None = None  # tokens of a block of a block-causal model
    fill_to: int = 0  # tokens of a row up to which masks fill an answer's last block

    def columns(self, length: int) -> int:
        """At most so many does a forward compute for a text of `length` tokens as one row."""
        if self.block_length is None:
            return length
        return length + -(-length // self.block_length) * self.block_length

    def batches(self, items: Iterable[Item], length: Callable[[Item], int]) -> Iterator[list[Item]]:
        """Consecutive items in batches that fit their first, which is the longest.

        length: columns of an item.
        """
        items = iter(items)
        for first in items:
            yield [first, *islice(items, self.at_once(length(first)) - 1)]

    def masked_row(
        self, request: Request, part: Part, hidden: Sequence[bool], columns: list[int]
    ) -> Row:
        """A request with the `hidden` ones of a part's tokens masked."""
        masked = [
            self.mask_id if is_hidden else token for token, is_hidden in zip(part.answer, hidden)
        ]
        shown = request.text(part.shown)
        begin = 0
        if self.block_length is not None:
            begin = part.shown // self.block_length * self.block_length
        tokens = [*shown[begin:], *masked, *self.after]
        if self.block_length is not None:
            end = min(begin + self.block_length, self.fill_to)
            tokens += [self.mask_id] * (end - begin - len(tokens))
        return Row(tokens, part.shown - begin, columns, shown[:begin], len(request.prompt))

    def sheets(self, rows: Iterable[Owned]) -> Iterator[Sheet]:
        """Rows as a forward runs them.

        Of a block-causal model, those of one text next to each other share its clean
        tokens: as many as take up no more columns than these.
        """
        if self.block_length is None:
            yield from (Sheet([row], len(row.row.tokens)) for _, row, _ in rows)
            return
        for request, of_text in groupby(rows, attrgetter("request")):
            sheet, num_noisy = Sheet([], 0), 0
            for _, row, longest in of_text:
                num_noisy += len(row.row.tokens)
                if sheet.rows and num_noisy > request.length:
                    yield sheet
                    sheet, num_noisy = Sheet([], 0), len(row.row.tokens)
                sheet = Sheet([*sheet.rows, row], self.columns(longest))
            yield sheet

    def logits(self, sheets: Sequence[Sequence[Row]]) -> RowLogits:
        """Logits at the columns of the rows of all sheets, in one forward."""
        if self.block_length is None:
            laid = lay_out([row for (row,) in sheets], self.device)
        else:
            laid = lay_beside_clean(sheets, self.block_length, self.device)
        rows = [row for sheet in sheets for row in sheet]
        places = []  # row of the canvas and window column of every logit
        for row, (number, begin) in zip(rows, laid.begins):
            places += [(number, begin + column) for column in row.columns]
        which, column = _columns(places, self.device)  # (P,) each
        prediction = self.denoise(laid.canvas, laid.window)
        ends = accumulate((len(row.columns) for row in rows), initial=0)
        return RowLogits(prediction.logits_at(column, which).float(), list(ends)[:-1])

    def score(self, batch: Sequence[Sheet]) -> Iterator[Part]:
        """Run a batch and note log-probabilities; yields parts that miss no more rows."""
        longest = max(sheet.columns for sheet in batch)
        for part, sample, columns, log_p in in_halves(self._scored, batch, self.at_once, longest):
            if part.record(sample, columns, log_p):
                yield part

    def _scored(self, batch: Sequence[Sheet]) -> list[Scored]:
        """A batch's log-probabilities, row after row, for each part that shares the row."""
        logits, begins = self.logits([[row for row, _ in sheet.rows] for sheet in batch])
        shared = [row for sheet in batch for row in sheet.rows]
        uses = []  # a row, where its logits begin, a part, which of its rows
        for (row, sharing), begin in zip(shared, begins):
            uses += [(row, begin, part, sample) for part, sample in sharing]
        targets = []  # logit and answer token of everything to score
        for row, begin, part, _ in uses:
            targets += [
                (begin + number, part.answer[column]) for number, column in enumerate(row.columns)
            ]
        place, token = _columns(targets, self.device)  # (U,) each
        log_p = (logits[place, token] - log_total(logits)[place]).double().cpu()
        parts = log_p.split([len(row.columns) for row, *_ in uses])
        return [
            Scored(part, sample, row.columns, found)
            for (row, _, part, sample), found in zip(uses, parts)
        ]


def shared_rows(
    runner: RowRunner, sharing: Sequence[tuple[Request, Part]], masks: Masks
) -> list[Owned]:
    """The rows of parts with the same masks; the longest request is the first.

    Equal ones come once, such as wholly masked answers of different choices.
    """
    rows: dict[tuple[tuple[int, ...], tuple[int | None, ...]], Owned] = {}
    longest = sharing[0][0].length
    before = [tuple(request.answered(part.shown)) for request, part in sharing]
    for sample, (masked, scored) in enumerate(zip(masks.masked.tolist(), masks.scored.tolist())):
        columns = [position for position, counts in enumerate(scored) if counts]
        for (request, part), earlier in zip(sharing, before):
            shown = tuple(None if hidden else token for token, hidden in zip(part.answer, masked))
            if (earlier, shown) not in rows:
                row = SharedRow(runner.masked_row(request, part, masked, columns), [])
                rows[earlier, shown] = Owned(request, row, longest)
            rows[earlier, shown].shared.uses.append((part, sample))
    owned = list(rows.values())
    if runner.block_length is not None:  # those of one text share its clean tokens
        owned.sort(key=lambda each: each.request.number)
    return owned


def _columns(pairs: Sequence[tuple[int, int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Firsts and seconds of N pairs, (N,) each; in one copy to the device."""
    first, second = torch.tensor(pairs, dtype=torch.long, device=device).view(-1, 2).unbind(-1)
    return first, second
