"""What a process reward model is asked while answers are decoded, and how long all of it takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from llada_plugins.methods.prepared import Judge
from llada_plugins.models import text
from llada_plugins.models.special_tokens import SpecialTokens
from llada_plugins.rewards.block_review import BlockReview
from llada_plugins.rewards.steps import block_scorer
from llada_plugins.sampling.config import SamplerConfig
from llada_plugins.sampling.decode import Draft, Filled, Review

from .request import Request

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TimedReview:
    """A review whose time is shared equally by the rows that it fills."""

    def __init__(self, review: Review, judge: Judge | None, num_rows: int) -> None:
        self.review = review
        self.judge = judge
        self.seconds = [0.0] * num_rows
        self.prm_seconds = [0.0] * num_rows  # of them, in the process reward model

    def __call__(self, draft: Draft) -> Filled:
        """What the review says; its time goes to the draft's rows."""
        began, before = time.perf_counter(), self._in_prm()
        filled = self.review(draft)
        filled.forwards.tolist()  # waits for the device
        seconds, prm_seconds = time.perf_counter() - began, self._in_prm() - before
        for row in draft.rows.tolist():
            self.seconds[row] += seconds / len(draft.rows)
            self.prm_seconds[row] += prm_seconds / len(draft.rows)
        return filled

    def _in_prm(self) -> float:
        return self.judge.scorer.seconds if self.judge else 0.0


def question_of(request: Request, judge: Judge | None, tokenizer: PreTrainedTokenizerBase) -> str:
    """What a process reward model is told was asked; "" where none judges."""
    if judge is None:
        return ""
    if request.question is not None and judge.question_pattern is None:
        return request.question
    return judge.question(text.without_special_tokens(tokenizer, request.prompt))


def block_review(
    judge: Judge,
    sampler: SamplerConfig,
    questions: Sequence[str],
    *,
    tokenizer: PreTrainedTokenizerBase,
    special: SpecialTokens,
    shorten: Callable[[int], None] | None,
) -> BlockReview:
    """The judge's review of answers to these questions; shorten: see `block_scorer`."""

    def decode(ids: Sequence[int]) -> str:
        return text.without_special_tokens(tokenizer, text.decode(tokenizer, ids, ()))

    score = block_scorer(
        judge.scorer,
        questions,
        block=sampler.block,
        ends=special.ends,
        by=judge.step_split,
        shorten=shorten,
        decode=decode,
    )
    return BlockReview(judge.review, sampler, score, special.mask)
