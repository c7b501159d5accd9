"""Masked rows of requests, run in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from llada_plugins.diffusion.batch_limit import BatchLimit, in_halves
from llada_plugins.diffusion.denoiser import Canvas, Denoiser, align, log_total

from .estimators import Masks
from .requests import Request

Item = TypeVar("Item")


class Row(NamedTuple):
    """A masked sequence to run."""

    tokens: list[int]  # prompt and answer, mask ids in place, and what is shown after it
    start: int  # where the answer begins
    columns: list[int]  # answer tokens to score


class SharedRow(NamedTuple):
    """A row, and whose it is."""

    row: Row
    uses: list[tuple[Request, int]]  # requests, and which of their rows this one is


class RowLogits(NamedTuple):
    """What the model said at the scored columns of a batch, row after row."""

    logits: Tensor  # (P, V) fp32
    begins: list[int]  # where each row's begin


class Scored(NamedTuple):
    """The log-probabilities of a row for one of the requests that share it."""

    request: Request
    sample: int  # which of the request's rows it is
    columns: list[int]  # answer tokens
    log_p: Tensor  # of each column, float64, on the CPU


@dataclass(frozen=True)
class RowRunner:
    """A model and the size of its batches."""

    denoise: Denoiser
    mask_id: int
    device: torch.device
    at_once: BatchLimit
    after: tuple[int, ...] = ()  # tokens that every row shows after its answer

    def batches(self, items: Iterable[Item], length: Callable[[Item], int]) -> Iterator[list[Item]]:
        """Consecutive items in batches that fit their first, which is the longest.

        length: tokens of an item's row.
        """
        items = iter(items)
        for first in items:
            yield [first, *islice(items, self.at_once(length(first)) - 1)]

    def masked_row(self, request: Request, hidden: Sequence[bool], columns: list[int]) -> Row:
        """A request with the `hidden` ones of its answer's tokens masked."""
        answer = [
            self.mask_id if is_hidden else token for token, is_hidden in zip(request.answer, hidden)
        ]
        return Row([*request.prompt, *answer, *self.after], len(request.prompt), columns)

    def logits(self, rows: Sequence[Row]) -> RowLogits:
        """Logits at the columns of the rows, in one forward."""
        tokens, padded = align([row.tokens for row in rows], self.device)  # (B, L), ends aligned
        lengths = [len(row.tokens) - row.start for row in rows]
        width, total = max(lengths), tokens.shape[1]
        places = []  # row and window column of every logit
        for number, row in enumerate(rows):
            shift = width - lengths[number]
            places += [(number, shift + column) for column in row.columns]
        which, column = _columns(places, self.device)  # (P,) each
        start = torch.tensor([total - length for length in lengths], device=self.device)
        prediction = self.denoise(Canvas(tokens, start, padded), slice(total - width, total))
        ends = accumulate((len(row.columns) for row in rows), initial=0)
        return RowLogits(prediction.logits_at(column, which).float(), list(ends)[:-1])

    def score(self, batch: Sequence[SharedRow]) -> Iterator[Request]:
        """Run a batch and note log-probabilities; yields requests that miss no more rows."""
        longest = max(len(shared.row.tokens) for shared in batch)
        for request, sample, columns, log_p in in_halves(
            self._scored, batch, self.at_once, longest
        ):
            if request.record(sample, columns, log_p):
                yield request

    def _scored(self, batch: Sequence[SharedRow]) -> list[Scored]:
        """A batch's log-probabilities, row after row, for each request that shares the row."""
        logits, begins = self.logits([row for row, _ in batch])
        uses = []  # a row, where its logits begin, a request, which of its rows
        for (row, sharing), begin in zip(batch, begins):
            uses += [(row, begin, request, sample) for request, sample in sharing]
        targets = []  # logit and answer token of everything to score
        for row, begin, request, _ in uses:
            targets += [
                (begin + number, request.answer[column])
                for number, column in enumerate(row.columns)
            ]
        place, token = _columns(targets, self.device)  # (U,) each
        log_p = (logits[place, token] - log_total(logits)[place]).double().cpu()
        parts = log_p.split([len(row.columns) for row, *_ in uses])
        return [
            Scored(request, sample, row.columns, part)
            for (row, _, request, sample), part in zip(uses, parts)
        ]


def shared_rows(runner: RowRunner, sharing: Sequence[Request], masks: Masks) -> list[SharedRow]:
    """The rows of requests with the same masks.

    Equal ones come once, such as wholly masked answers of different choices.
    """
    rows: dict[tuple[int | None, ...], SharedRow] = {}
    for sample, (masked, scored) in enumerate(zip(masks.masked.tolist(), masks.scored.tolist())):
        columns = [position for position, counts in enumerate(scored) if counts]
        for request in sharing:
            shown = tuple(
                None if hidden else token for token, hidden in zip(request.answer, masked)
            )
            if shown not in rows:
                rows[shown] = SharedRow(runner.masked_row(request, masked, columns), [])
            rows[shown].uses.append((request, sample))
    return list(rows.values())


def _columns(pairs: Sequence[tuple[int, int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Firsts and seconds of N pairs, (N,) each; in one copy to the device."""
    first, second = torch.tensor(pairs, dtype=torch.long, device=device).view(-1, 2).unbind(-1)
    return first, second
