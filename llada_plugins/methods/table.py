"""The METHODS table: what each model name of the harnesses is made of. A new method is a function, its options and a row.

A method turns a loaded model into a Denoiser and says which sampler options its users expect unless they choose others.
"""
from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, get_args

from llada_plugins.diffusion.denoiser import Denoiser, model_denoiser
from llada_plugins.models.bitower import BiTowerLLaDA
from llada_plugins.models.llada import LLaDA
from llada_plugins.options.fields import arg
from llada_plugins.rewards.block_review import ReviewConfig
from llada_plugins.rewards.process_reward_model import PRMConfig, StepScorer, open_prm
from llada_plugins.rewards.steps import StepSplit
from llada_plugins.sampling.confidence import POLICY_SOURCES
from llada_plugins.sampling.config import ADAPTIVE_RULES, SamplerConfig

from .policy_head import load_policy, policy_denoiser
from .router import load_router, routed

logger = logging.getLogger(__name__)

R3_BLOCK_LENGTH = 32
COUNT_RULES = (*ADAPTIVE_RULES, "remask_ratio", "revise")        # alternatives: who names one gets no other by default


class Judge(NamedTuple):
    """A process reward model and what its verdicts are used for."""

    scorer: StepScorer
    review: ReviewConfig
    step_split: StepSplit
    question_pattern: str | None = None

    def question(self, prompt: str) -> str:
        """What was asked: the last match of question_pattern's first group in the prompt, without one the whole prompt."""
        if self.question_pattern is None:
            return prompt.strip()
        found = list(re.finditer(self.question_pattern, prompt, re.DOTALL))
        if not found:
            raise ValueError(f"question_pattern={self.question_pattern!r} is not in the prompt that begins {prompt[:40]!r}: "
                             "give a regular expression whose first group is the question")
        return found[-1][1].strip()


class Prepared(NamedTuple):
    """A method on a model."""

    model: LLaDA
    denoise: Denoiser
    policy: str | None = None                                              # which unmasking-policy stream it has, in words for results
    defaults: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda given: {}    # sampler options in addition to the given ones
    judge: Judge | None = None                                             # reviews every block
    max_answer: int | None = None                                          # tokens of the longest answer that it knows, if not the context


class Method(NamedTuple):
    """A row of METHODS."""

    options: type                                                          # dataclass of the method's own options
    prepare: Callable[[Callable[[], LLaDA], Path, Any], Prepared]          # loads the model, its folder, the options
    likelihood: str = "the checkpoint's own: this method changes decoding only"        # whose likelihoods it gives, in words for results


@dataclass(frozen=True, kw_only=True)
class NoOptions:
    """The baseline has none of its own."""


@dataclass(frozen=True, kw_only=True)
class UPSOptions:
    """Where the unmasking-policy stream comes from."""

    ups: str | None = arg(None, "folder of a head made by training.remask_sft (default: 'ups' in the checkpoint's folder, if it is there)")


def baseline(load: Callable[[], LLaDA], folder: Path, options: NoOptions) -> Prepared:
    """The published sampler on the plain model; of a RemeDi checkpoint, its own policy stream remains available."""
    model = load()
    return Prepared(model, model_denoiser(model), _own_stream(model))


def learned_remasking(load: Callable[[], LLaDA], folder: Path, options: UPSOptions) -> Prepared:
    """RemeDi's dynamic remasking: a bi-tower checkpoint's own stream, or a light head beside the backbone."""
    beside, model = folder / "ups", load()
    head = Path(options.ups).expanduser() if options.ups else beside if beside.is_dir() else None
    if isinstance(model, BiTowerLLaDA):
        if options.ups:
            raise ValueError(f"ups={options.ups!r} has no effect: this checkpoint has RemeDi's own policy stream; leave ups out")
        return Prepared(model, model_denoiser(model), _own_stream(model), _revising("ups"))
    if head is None:
        logger.warning("no UPS head: none beside %s and no ups=FOLDER given; remasking falls back to confidence_source=tps_prob", folder)
        return Prepared(model, model_denoiser(model), None, _revising("tps_prob"))
    return Prepared(model, policy_denoiser(model, load_policy(head, model)),
                    "light head: 'ups' ranks visible tokens by sigmoid(h), masked ones by probability", _revising("ups"))


@dataclass(frozen=True, kw_only=True)
class ALAOptions:
    """Where the router comes from."""

    router: str | None = arg(None, "folder of a router made by training.router_sft (default: 'router' in the checkpoint's folder, if it is there)")


def routed_seeds(load: Callable[[], LLaDA], folder: Path, options: ALAOptions) -> Prepared:
    """ALA: prompt-conditioned seeds instead of one static mask embedding; all sampler options as for the baseline."""
    place = Path(options.router).expanduser() if options.router else folder / "router"
    if not place.is_dir():
        raise FileNotFoundError(f"llada_ala needs a router: {place} is not a folder; pass router=FOLDER, made by python -m training.router_sft")
    model = load()
    if model.special_tokens is None:
        raise ValueError(f"{folder}: llada_ala needs a checkpoint that names its mask token")
    router = load_router(place, model)
    denoise = routed(model_denoiser(model), router, model.embedding, model.special_tokens.mask, model.model["transformer"]["blocks"])
    return Prepared(model, denoise, _own_stream(model), max_answer=router.config.max_positions)


@dataclass(frozen=True, kw_only=True)
class PRMOptions(ReviewConfig, PRMConfig):
    """Which process reward model judges, what it reads, and what its verdicts are used for."""

    prm: str | None = arg(None, "folder or hub id of a process reward model (default: 'prm' in the checkpoint's folder, if it is there)")
    step_split: StepSplit | None = arg(None, "what a step is: block, line or blank_line (default: what the PRM's config.json says, else blank_line)")
    question_pattern: str | None = arg(None, "regular expression whose first group, at its last match in the prompt, is the question for the PRM "
                                             "(default: the whole prompt, special tokens removed)")

    def __post_init__(self) -> None:
        ReviewConfig.__post_init__(self)
        PRMConfig.__post_init__(self)
        if self.question_pattern is not None:
            try:
                groups = re.compile(self.question_pattern).groups
            except re.error as error:
                raise ValueError(f"question_pattern={self.question_pattern!r} is no regular expression: {error}") from None
            if not groups:
                raise ValueError(f"question_pattern={self.question_pattern!r} has no group: put the question in parentheses")


def judged_blocks(load: Callable[[], LLaDA], folder: Path, options: PRMOptions) -> Prepared:
    """LLaDA-R3: a process reward model chooses among candidates and has low blocks masked again."""
    beside = folder / "prm"
    if options.prm is None and beside.is_dir():
        options = replace(options, prm=str(beside))
    prm = open_prm(options)
    model = load()

    def defaults(given: Mapping[str, Any]) -> dict[str, Any]:
        return {} if given.get("block_length") else {"block_length": prm.config.get("block_length", R3_BLOCK_LENGTH)}
    step_split = options.step_split or prm.config.get("step_split", "blank_line")
    if step_split not in get_args(StepSplit):
        raise ValueError(f"{options.prm}: step_split in config.json is {step_split!r}, must be one of {', '.join(get_args(StepSplit))}: "
                         "pass step_split=")
    return Prepared(model, model_denoiser(model), _own_stream(model), defaults,
                    Judge(prm.load(model.device), options, step_split, options.question_pattern))


METHODS: dict[str, Method] = {
    "llada": Method(NoOptions, baseline, "the checkpoint's own"),
    "llada_ups": Method(UPSOptions, learned_remasking),
    "llada_ala": Method(ALAOptions, routed_seeds, "the routed model's, not the checkpoint's own"),
    "llada_prm": Method(PRMOptions, judged_blocks),
}


def check_policy(sampler: SamplerConfig, prepared: Prepared) -> None:
    """Raise ValueError where the sampler asks for a policy stream that the model lacks, or for one that could change nothing."""
    if sampler.source not in POLICY_SOURCES:
        return
    if prepared.policy is None:
        raise ValueError(f"confidence_source={sampler.source!r} needs an unmasking-policy stream, and there is none: use llada_ups with ups=FOLDER, "
                         "or a RemeDi checkpoint")
    if sampler.source == "ups" and prepared.policy.startswith("light") and not sampler.revises:
        raise ValueError("confidence_source='ups' ranks visible tokens, and with these options none is ever masked again: set revise=true, or "
                         "revise_below with threshold, factor or error_budget")


def _own_stream(model: LLaDA) -> str | None:
    return "RemeDi's bi-tower: 'ups' is the paper's rule, h at every position" if isinstance(model, BiTowerLLaDA) else None


def _revising(source: str) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """Defaults of learned remasking: the source, and RemeDi's schedule or, under an adaptive rule, revision below one half."""
    def defaults(given: Mapping[str, Any]) -> dict[str, Any]:
        if given.get("revise") is False and not any(given.get(rule) for rule in COUNT_RULES):
            return {}                                          # plain decoding, asked for by name
        chosen: dict[str, Any] = {} if given.get("confidence_source") or given.get("remasking") else {"confidence_source": source}
        named = [rule for rule in COUNT_RULES if given.get(rule)]
        if not named:
            return {**chosen, "revise": True}
        if "revise_below" not in given and named[0] in ADAPTIVE_RULES:
            return {**chosen, "revise_below": 0.5}
        return chosen
    return defaults
