"""What a process reward model is asked while answers are decoded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from llada_plugins.methods.prepared import Judge
from llada_plugins.models import text
from llada_plugins.models.special_tokens import SpecialTokens
from llada_plugins.rewards.block_review import BlockReview, Scorer
from llada_plugins.rewards.steps import block_scorer
from llada_plugins.sampling.config import SamplerConfig

from .request import Request

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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
    tails: Sequence[int],
    observe: Callable[[Scorer], Scorer] = lambda score: score,
) -> BlockReview:
    """The judge's review of answers to these questions; shorten, tails: see `block_scorer`.

    observe: gets the scorer, and gives the one to ask.
    """

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
        tails=tails,
    )
    return BlockReview(judge.review, sampler, observe(score), special.mask)
