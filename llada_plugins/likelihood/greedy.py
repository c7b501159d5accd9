"""Would greedy decoding give these answers?"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from llada_plugins.diffusion.batch_limit import in_halves
from llada_plugins.diffusion.denoiser import log_total

from .laying import Row
from .requests import Part, Request
from .rows import RowRunner


class GreedyMatch(NamedTuple):
    """What decoding one token at a time makes of a request."""

    matches: bool  # is its result the answer?
    num_forwards: int


@dataclass(eq=False)
class _Decoding:
    """A request whose answer is decoded; what is committed so far is the answer's own tokens.

    All its parts are decoded at once: what is before a part is the answer's own, else the
    request would not be here.
    """

    request: Request
    hidden: dict[Part, list[int]]  # of each part the places still masked, of those that have any
    num_forwards: int = 0
    matches: bool = True  # so far

    @classmethod
    def of(cls, request: Request) -> _Decoding:
        """That of a request, with all its answer masked."""
        return cls(request, {part: list(range(len(part.answer))) for part in request.parts})

    def rows(self, runner: RowRunner) -> list[Row]:
        """A row for each part that is still masked."""
        return [
            runner.masked_row(
                self.request,
                part,
                [place in hidden for place in range(len(part.answer))],
                list(hidden),
            )
            for part, hidden in self.hidden.items()
        ]

    def commit(self, choices: Sequence[tuple[int, int]]) -> None:
        """Unmask one token of each part, in the order of `rows`, where it is the answer's own.

        choices: of each part, which of its hidden places, and the token.
        """
        self.num_forwards += 1
        for (part, hidden), (number, token) in zip(list(self.hidden.items()), choices):
            self.matches &= token == part.answer[hidden[number]]
            del hidden[number]
            if not hidden:
                del self.hidden[part]


def greedy_matches(runner: RowRunner, requests: Sequence[Request]) -> list[GreedyMatch]:
    """For each request: does decoding the most confident token at a time give the answer?

    LLaDA's suffix_greedy_prediction; of a block-causal model block after block, the most
    confident token of the block first. A request leaves at the first token that is not the
    answer's.
    """
    decodings = [_Decoding.of(each) for each in requests]
    active = sorted(decodings, key=lambda decoding: -decoding.request.length)

    def columns(decoding: _Decoding) -> int:
        return runner.columns(decoding.request.length)

    while active:
        for batch in runner.batches(active, columns):
            step = functools.partial(_step, runner)
            choices = in_halves(step, batch, runner.at_once, columns(batch[0]))
            for decoding, of_parts in zip(batch, choices):
                decoding.commit(of_parts)
        active = [each for each in active if each.matches and each.hidden]
    return [GreedyMatch(each.matches, each.num_forwards) for each in decodings]


def _step(runner: RowRunner, batch: Sequence[_Decoding]) -> list[list[tuple[int, int]]]:
    """Of each part of each, which of its hidden places is the surest, and with what token."""
    sheets = [decoding.rows(runner) for decoding in batch]
    logits, begins = runner.logits(sheets)
    total = log_total(logits)
    logits[..., runner.mask_id] = -torch.inf  # as in the sampler: the mask is no answer
    best, proposal = logits.max(-1)
    certain, tokens = (best - total).cpu(), proposal.tolist()
    begin = iter(begins)
    found = []
    for sheet in sheets:
        of_parts = []
        for row, first in zip(sheet, begin):
            number = int(certain[first : first + len(row.columns)].argmax())
            of_parts.append((number, tokens[first + number]))
        found.append(of_parts)
    return found
