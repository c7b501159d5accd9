"""What a Review sees of unfinished answers, and what it must do with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from .config import SamplerConfig


class Sample(NamedTuple):
    """A decoded answer.

    num_forwards: forward passes that worked on this row, candidates included; a guided
    pass counts one.
    """

    answer: list[int]  # token ids without the prompt; gen_length of them unless stopped early
    num_forwards: int
    num_scored: int = 0  # unfinished answers that a Review had scored
    num_branches: int = 0  # further rows that it had in these passes, where steps branch


class Fill(Protocol):
    """Unmask `blocks` of tokens (N, L) in place; returns the forwards of each row, (N,).

    rows: (N,) which of the prompts. keys: (N,) random streams. blocks: neighbours, filled
    together. config: default that of the answer. steps: of a fixed schedule, default
    those of one block.
    """

    def __call__(
        self,
        tokens: Tensor,
        rows: Tensor,
        keys: Tensor,
        blocks: range,
        config: SamplerConfig | None = None,
        steps: int | None = None,
    ) -> Tensor: ...


class Draft(NamedTuple):
    """A batch of unfinished answers whose block `number` is to be filled, or several from there.

    Blocks before it are filled, later ones masked, as far as they exist. A batch whose rows
    are at different blocks has the number of the furthest: column `start` then is that
    row's. Under a Review all rows are at the same.
    """

    number: int
    tokens: Tensor  # (B, L); a Review writes here what it accepts
    rows: Tensor  # (B,) which of the prompts
    keys: Tensor  # (B,) random streams
    forwards: Tensor  # (B,) spent on earlier blocks
    num_scored: Tensor  # (B,) by a Review on earlier blocks
    start: int  # column at which block 0 of the answer begins
    # of each row, which places from there on hold tokens of its answer: not its prompt's end
    in_answer: list[range]
    num_blocks: list[int]  # of each row's answer
    blocks: range  # to be filled together: more than one only in plain decoding
    fill: Fill
    ended: Callable[[list[int]], bool]  # is an answer complete that fills its blocks so far?


class Filled(NamedTuple):
    """What filling a block has cost, by row."""

    forwards: Tensor  # (B,)
    num_scored: Tensor  # (B,)
    # (B,) tokens that the review masked again before it filled; None: it masks none
    num_revised: Tensor | None = None


class Review(Protocol):
    """Fill block `draft.number` of draft.tokens in place.

    It may fill it several times, compare, and mask earlier blocks again. Later blocks
    stay masked. Deterministic, and a row's result does not depend on other rows: random
    numbers from draft.keys only.
    """

    def __call__(self, draft: Draft) -> Filled: ...


def unreviewed(draft: Draft) -> Filled:
    """The review that looks at nothing: plain decoding."""
    forwards = draft.fill(draft.tokens, draft.rows, draft.keys, draft.blocks)
    return Filled(forwards, torch.zeros_like(forwards))
