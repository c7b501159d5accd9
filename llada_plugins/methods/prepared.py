"""What a method makes of a loaded model, and the row that a method is."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from llada_plugins.diffusion.denoiser import Denoiser, model_denoiser
from llada_plugins.models.llada import LLaDA
from llada_plugins.rewards.review_config import ReviewConfig
from llada_plugins.rewards.step_scorer import StepScorer
from llada_plugins.rewards.steps import StepSplit
from llada_plugins.sampling.config import ADAPTIVE_RULES

logger = logging.getLogger(__name__)
# alternatives: who names one gets no other by default
COUNT_RULES = (*ADAPTIVE_RULES, "remask_ratio", "revise")


class Judge(NamedTuple):
    """A process reward model and what its verdicts are used for."""

    scorer: StepScorer
    review: ReviewConfig
    step_split: StepSplit
    question_pattern: str | None = None

    def question(self, prompt: str) -> str:
        """What was asked: the last match of question_pattern's first group in the
        prompt, without one the whole prompt.
        """
        if self.question_pattern is None:
            return prompt.strip()
        found = list(re.finditer(self.question_pattern, prompt, re.DOTALL))
        if not found:
            raise ValueError(
                f"question_pattern={self.question_pattern!r} is not in the prompt that begins "
                f"{prompt[:40]!r}: "
                "give a regular expression whose first group is the question"
            )
        return found[-1][1].strip()


class Prepared(NamedTuple):
    """A method on a model."""

    model: LLaDA
    denoise: Denoiser
    policy: str | None = None  # which unmasking-policy stream it has, in words for results
    # sampler options in addition to the given ones
    defaults: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda given: {}
    judge: Judge | None = None  # reviews every block
    max_answer: int | None = None  # tokens of the longest answer that it knows, if not the context


class Method(NamedTuple):
    """A row of METHODS."""

    options: type  # dataclass of the method's own options
    # loads the model, its folder, the options
    prepare: Callable[[Callable[[], LLaDA], Path, Any], Prepared]
    # whose likelihoods it gives, in words for results
    likelihood: str = "the checkpoint's own: this method changes decoding only"


@dataclass(frozen=True, kw_only=True)
class NoOptions:
    """The baseline has none of its own."""


def baseline(load: Callable[[], LLaDA], folder: Path, options: NoOptions) -> Prepared:
    """The published sampler on the plain model; of a RemeDi checkpoint, its own policy
    stream remains available.
    """
    model = load()
    return Prepared(model, model_denoiser(model), _own_stream(model))


def _own_stream(model: LLaDA) -> str | None:
    return (
        "RemeDi's bi-tower: 'ups' is the paper's rule, h at every position"
        if model.own_stream
        else None
    )
