"""Answers on their way: what was drawn for each, and what the model said of it so far."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
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
    """The rows that one round drew for a request."""

    masks: Masks
    log_p: Tensor  # (S, n) float64, 0 where not scored
    missing: int  # rows still to run


@dataclass(eq=False)
class Request:
    """One answer to score."""

    number: int  # its place among the pairs
    prompt: list[int]
    answer: list[int]
    rounds: list[Round] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Tokens of prompt and answer."""
        return len(self.prompt) + len(self.answer)

    @property
    def is_choice(self) -> bool:
        """May it be one of a question's choices, which share their masks?

        Not so after a lone BOS or the last token of a window before: such answers have
        nothing to do with each other.
        """
        return len(self.prompt) > 1

    @property
    def exact(self) -> bool:
        """Was nothing left to chance?"""
        return bool(self.rounds) and self.rounds[-1].masks.exact

    @property
    def num_rows(self) -> int:
        """Different rows that its estimate rests on."""
        return sum(len(each.masks.masked.unique(dim=0)) for each in self.rounds)

    def stream(self, seed: int) -> int:
        """The key of the random stream that draws its masks."""
        if self.is_choice:
            return request_key(seed, self.prompt)
        return request_key(seed, self.prompt, self.answer)

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

    def value_and_error(self) -> tuple[float, float]:
        """The estimate and its standard error, nats."""
        value, stderr = mean_and_error(self.series(), self.rounds[-1].masks.sweep)
        return value, 0.0 if self.exact else stderr

    def forget(self) -> None:
        """Free the rows: 40 KB for 128 rows of 40 tokens, of maybe 40,000 requests."""
        self.rounds.clear()


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
    num_rows = [len(each.log_p) for each in drawn.rounds]
    choices = []
    for request in question:
        if request.exact:
            value, _ = request.value_and_error()
            choices.append([torch.full((rows,), value).double() for rows in num_rows])
        else:
            choices.append(request.series())
    lengths = [len(request.answer) for request in question]
    return is_settled(choices, lengths, confidence, num_rounds)
