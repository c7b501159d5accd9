"""What a method makes of a loaded model, and the row that a method is."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

from llada_plugins.diffusion.denoiser import Denoiser, model_denoiser
from llada_plugins.models.llada import LLaDA
from llada_plugins.rewards.review_config import ReviewConfig
from llada_plugins.rewards.step_scorer import StepScorer
from llada_plugins.rewards.steps import StepSplit
from llada_plugins.sampling.facts import ADAPTIVE_RULES

from .loading import Loading

# alternatives: who names one gets no other by default
COUNT_RULES = (*ADAPTIVE_RULES, "remask_ratio", "revise")


class Judge(NamedTuple):
    """A process reward model and what its verdicts are used for."""

    scorer: StepScorer
    review: ReviewConfig
    step_split: StepSplit
    question_pattern: str | None = None

    def question(self, prompt: str) -> str:
        """What was asked: the whole prompt, or what question_pattern finds in it.

        That is its first group, at its last match.
        """
        if self.question_pattern is None:
            return prompt.strip()
        found = list(re.finditer(self.question_pattern, prompt, re.DOTALL))
        if not found:
            raise ValueError(
                f"question_pattern={self.question_pattern!r} is not in the prompt that begins "
                f"{prompt[:40]!r}: give a regular expression whose first group is the question"
            )
        return found[-1][1].strip()


class Policy(str, Enum):
    """An unmasking-policy stream; its value says what it is, in words for results."""

    LIGHT_HEAD = "light head: 'ups' ranks visible tokens by sigmoid(h), masked ones by probability"
    OWN_STREAM = "RemeDi's bi-tower: 'ups' is the paper's rule, h at every position"


# from the sampler options that were given to those that are set in addition
Defaults = Callable[[Mapping[str, Any]], dict[str, Any]]


def no_defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    """Defaults of a method that leaves the sampler's as they are."""
    return {}


class Prepared(NamedTuple):
    """A method on a model."""

    model: LLaDA
    denoise: Denoiser
    policy: Policy | None = None
    defaults: Defaults = no_defaults
    judge: Judge | None = None  # reviews every block
    max_answer: int | None = None  # tokens of the longest answer that it knows, if not the context


def local_folder(value: str) -> Path:
    """The folder that an option names."""
    return Path(value).expanduser()


class Method(NamedTuple):
    """A row of METHODS."""

    options: type  # dataclass of the method's own options
    # loads the model and what is beside it; the model's folder, the options
    prepare: Callable[[Loading, Path, Any], Prepared]
    # whose likelihoods it gives, in words for results
    likelihood: str = "the checkpoint's own: this method changes decoding only"
    judges: bool = False  # does it load a process reward model, which reviews every block?
    # its options that name what it loads beside the checkpoint -> how that is found
    folders: Mapping[str, Callable[[str], Path]] = {}


@dataclass(frozen=True, kw_only=True)
class NoOptions:
    """The baseline has none of its own."""


def baseline(load: Loading, folder: Path, options: NoOptions) -> Prepared:
    """The published sampler on the plain model.

    The policy stream of a RemeDi checkpoint remains available.
    """
    model = load()
    return Prepared(model, model_denoiser(model), own_policy(model))


def own_policy(model: LLaDA) -> Policy | None:
    """The policy stream that is part of the checkpoint, if it has one."""
    return Policy.OWN_STREAM if model.own_stream else None
