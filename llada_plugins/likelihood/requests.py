"""Answers on their way: what was drawn for each, and what the model said of it so far."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TypeAlias

import torch
from torch import Tensor

from llada_plugins.diffusion.random_streams import request_key

from .control_variate import terms
from .estimators import Masks, joined
from .standard_error import is_settled, mean_and_error

Pair: TypeAlias = tuple[Sequence[int], Sequence[int]]  # ids of prompt and answer


@dataclass(eq=False)
class Round:
    """The rows that one round drew for a part."""

    masks: Masks
    log_p: Tensor  # (S, n) float64, 0 where not scored
    missing: int  # rows still to run


@dataclass(eq=False)
class Part:
    """Tokens of an answer that are masked together, given all before them.

    Of a model with full attention it is the whole answer, of a block-causal one its share
    of a block.
    """

    shown: int  # tokens of prompt and answer before it
    answer: list[int]
    key: int  # of the random stream that draws its masks
    rounds: list[Round] = field(default_factory=list)

    @property
    def exact(self) -> bool:
        """Was nothing left to chance?"""
        return bool(self.rounds) and self.rounds[-1].masks.exact

    @property
    def num_rows(self) -> int:
        """Different rows that its estimate rests on."""
        return sum(len(each.masks.masked.unique(dim=0)) for each in self.rounds)

    def begin_round(self, masks: Masks) -> None:
        """Take up rows to run; those of an exact estimate replace whatever was drawn before."""
        if masks.exact:
            self.rounds.clear()
        log_p = torch.zeros(masks.masked.shape, dtype=torch.float64)
        self.rounds.append(Round(masks, log_p, missing=len(masks.masked)))

    def record(self, row: int, columns: list[int], log_p: Tensor) -> bool:
        """Note log_p (P,) of a row of this round; was it the last one missing?"""
        current = self.rounds[-1]
        current.log_p[row, columns] = log_p
        current.missing -= 1
        return current.missing == 0

    def series(self) -> list[Tensor]:
        """The terms of every round."""
        masks = joined([each.masks for each in self.rounds])
        log_p = torch.cat([each.log_p for each in self.rounds])
        return list(terms(masks, log_p).split([len(each.log_p) for each in self.rounds]))


@dataclass(eq=False)
class Request:
    """One answer to score: the sum over its parts, the chain rule over blocks."""

    number: int  # its place among the pairs
    prompt: list[int]
    answer: list[int]
    parts: list[Part]

    @property
    def length(self) -> int:
        """Tokens of prompt and answer."""
        return len(self.prompt) + len(self.answer)

    def text(self, stop: int) -> list[int]:
        """The first tokens of prompt and answer."""
        return [*self.prompt, *self.answer][:stop]

    def answered(self, stop: int) -> list[int]:
        """Those of them that are the answer's."""
        return self.answer[: stop - len(self.prompt)]

    @property
    def is_choice(self) -> bool:
        """May it be one of a question's choices, which share their masks?"""
        return _is_choice(self.prompt)

    @property
    def exact(self) -> bool:
        """Was nothing left to chance?"""
        return all(part.exact for part in self.parts)

    @property
    def num_rows(self) -> int:
        """Different rows that its estimate rests on; one holds a masked copy of every part."""
        return max(part.num_rows for part in self.parts)

    def drawn(self) -> list[Part]:
        """The parts that chance decides."""
        return [part for part in self.parts if not part.exact]

    def series(self) -> list[Tensor]:
        """The terms of every round, of all parts together.

        Their masks are independent, so their variances add up.
        """
        constant = torch.tensor(self._exact_value(), dtype=torch.float64)
        drawn = [part.series() for part in self.drawn()]
        return [sum(of_round, constant) for of_round in zip(*drawn)]

    def value_and_error(self) -> tuple[float, float]:
        """The estimate and its standard error, nats."""
        if self.exact:
            return self._exact_value(), 0.0
        return mean_and_error(self.series(), self.drawn()[0].rounds[-1].masks.sweep)

    def _exact_value(self) -> float:
        """The sum over the parts that nothing is left to chance of."""
        return sum(mean_and_error(part.series())[0] for part in self.parts if part.exact)

    def forget(self) -> None:
        """Free the rows: 40 KB for 128 rows of 40 tokens, of maybe 40,000 requests."""
        for part in self.parts:
            part.rounds.clear()


def requests(pairs: Sequence[Pair], seed: int, block_length: int | None) -> list[Request]:
    """The pairs as requests, in their order.

    block_length: of a block-causal model. Blocks are counted from the row's first token, so
    the first part fills up the block that the prompt's last tokens are in.
    """
    return [
        Request(number, list(prompt), list(answer), _parts(prompt, answer, seed, block_length))
        for number, (prompt, answer) in enumerate(pairs)
    ]


def _parts(
    prompt: Sequence[int], answer: Sequence[int], seed: int, block_length: int | None
) -> list[Part]:
    start, stop = len(prompt), len(prompt) + len(answer)
    edges = [start, stop]
    if block_length is not None:
        first = (start // block_length + 1) * block_length
        edges = [start, *range(first, stop, block_length), stop]
    sequences = [prompt] if _is_choice(prompt) else [prompt, answer]
    return [
        Part(
            begin,
            list(answer[begin - start : end - start]),
            # the first has the stream of an answer in one part
            request_key(seed, *sequences, *([[number]] if number else [])),
        )
        for number, (begin, end) in enumerate(pairwise(edges))
    ]


def _is_choice(prompt: Sequence[int]) -> bool:
    """May answers to the prompt be the choices of a question?

    Not so after a lone BOS or the last token of a window before: such answers have
    nothing to do with each other.
    """
    return len(prompt) > 1


Question: TypeAlias = list[Request]  # the choices of one question


def questions(requests: Sequence[Request]) -> list[Question]:
    """Requests with the same prompt, together; in the order of their first ones."""
    together: dict[Hashable, Question] = defaultdict(list)
    for request in requests:
        key = tuple(request.prompt) if request.is_choice else request
        together[key].append(request)
    return list(together.values())


def best_is_settled(question: Question, confidence: float, num_rounds: int) -> bool:
    """Is it clear, with this probability, which of a question's choices is the best?"""
    if len(question) < 2 or confidence >= 1:
        return False
    # an exact value is compared with every row of the others
    drawn = next(request for request in question if not request.exact)
    num_rows = [len(each.log_p) for each in drawn.drawn()[0].rounds]
    choices = []
    for request in question:
        if request.exact:
            value, _ = request.value_and_error()
            choices.append([torch.full((rows,), value, dtype=torch.float64) for rows in num_rows])
        else:
            choices.append(request.series())
    lengths = [len(request.answer) for request in question]
    return is_settled(choices, lengths, confidence, num_rounds)
