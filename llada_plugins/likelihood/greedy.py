"""Would greedy decoding give these answers?"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from llada_plugins.diffusion.batch_limit import in_halves
from llada_plugins.diffusion.denoiser import log_total

from .requests import Request
from .rows import Row, RowRunner


class GreedyMatch(NamedTuple):
    """What decoding one token at a time makes of a request."""

    matches: bool  # is its result the answer?
    num_forwards: int


@dataclass(eq=False)
class _Decoding:
    """A request whose answer is decoded; what is committed so far is the answer's own tokens."""

    request: Request
    hidden: list[int]  # positions of the answer still masked
    num_forwards: int = 0

    def row(self, runner: RowRunner) -> Row:
        masked = [position in self.hidden for position in range(len(self.request.answer))]
        return runner.masked_row(self.request, masked, list(self.hidden))

    def commit(self, number: int, token: int) -> bool:
        """Unmask the hidden position `number`, if the token is the answer's own."""
        self.num_forwards += 1
        if token != self.request.answer[self.hidden[number]]:
            return False
        del self.hidden[number]
        return True


def greedy_matches(runner: RowRunner, requests: Sequence[Request]) -> list[GreedyMatch]:
    """For each request: does decoding the most confident token at a time give the answer?

    LLaDA's suffix_greedy_prediction. A request leaves at the first token that is not the
    answer's.
    """
    decodings = [_Decoding(each, list(range(len(each.answer)))) for each in requests]
    active = sorted(decodings, key=lambda decoding: -decoding.request.length)
    while active:
        following = []
        for batch in runner.batches(active, lambda decoding: decoding.request.length):
            step = functools.partial(_step, runner)
            committed = in_halves(step, batch, runner.at_once, batch[0].request.length)
            following += [
                decoding for decoding, went in zip(batch, committed) if went and decoding.hidden
            ]
        active = following
    return [GreedyMatch(not each.hidden, each.num_forwards) for each in decodings]


def _step(runner: RowRunner, batch: Sequence[_Decoding]) -> list[bool]:
    """Decode one token of each; was it the answer's?"""
    rows = [decoding.row(runner) for decoding in batch]
    logits, begins = runner.logits(rows)
    total = log_total(logits)
    logits[..., runner.mask_id] = -torch.inf  # as in the sampler: the mask is no answer
    best, proposal = logits.max(-1)
    certain, tokens = (best - total).cpu(), proposal.tolist()
    committed = []
    for decoding, begin in zip(batch, begins):
        number = int(certain[begin : begin + len(decoding.hidden)].argmax())
        committed.append(decoding.commit(number, tokens[begin + number]))
    return committed
