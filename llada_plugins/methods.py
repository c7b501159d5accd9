"""The METHODS table: what each model name of the harnesses is made of. A new method is a function, its options and a row.

A method turns a loaded model into a Denoiser and says which sampler options its users expect unless they choose others.
"""
from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from .bitower import BiTowerLLaDA
from .confidence import POLICY_SOURCES
from .config import arg
from .denoiser import Denoiser, model_denoiser
from .model import LLaDA
from .policy_stream import load_policy, policy_denoiser
from .router import load_router, routed
from .sampler_config import SamplerConfig

logger = logging.getLogger(__name__)

COUNT_RULES = ("threshold", "factor", "remask_ratio", "revise")        # alternatives: who names one gets no other by default


class Prepared(NamedTuple):
    """A method on a model."""

    denoise: Denoiser
    policy: str | None = None                                              # which unmasking-policy stream it has, in words for results
    defaults: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda given: {}    # sampler options in addition to the given ones


class Method(NamedTuple):
    """A row of METHODS."""

    options: type                                                          # dataclass of the method's own options
    prepare: Callable[[LLaDA, Path, Any], Prepared]                        # model, its folder, the options


@dataclass(frozen=True, kw_only=True)
class NoOptions:
    """The baseline has none of its own."""


@dataclass(frozen=True, kw_only=True)
class UPSOptions:
    """Where the unmasking-policy stream comes from."""

    ups: str | None = arg(None, "folder of a head made by training.remask_sft (default: 'ups' in the checkpoint's folder, if it is there)")


def baseline(model: LLaDA, folder: Path, options: NoOptions) -> Prepared:
    """The published sampler on the plain model; of a RemeDi checkpoint, its own policy stream remains available."""
    return Prepared(model_denoiser(model), _own_stream(model))


def learned_remasking(model: LLaDA, folder: Path, options: UPSOptions) -> Prepared:
    """RemeDi's dynamic remasking: a bi-tower checkpoint's own stream, or a light head beside the backbone."""
    beside = folder / "ups"
    head = Path(options.ups).expanduser() if options.ups else beside if beside.is_dir() else None
    if isinstance(model, BiTowerLLaDA):
        if options.ups:
            raise ValueError(f"ups={options.ups!r} has no effect: this checkpoint has RemeDi's own policy stream; leave ups out")
        return Prepared(model_denoiser(model), _own_stream(model), _revising("ups"))
    if head is None:
        logger.warning("no UPS head: none beside %s and no ups=FOLDER given; remasking falls back to confidence_source=tps_prob", folder)
        return Prepared(model_denoiser(model), None, _revising("tps_prob"))
    return Prepared(policy_denoiser(model, load_policy(head, model)),
                    "light head: 'ups' ranks visible tokens by sigmoid(h), masked ones by probability", _revising("ups"))


@dataclass(frozen=True, kw_only=True)
class ALAOptions:
    """Where the router comes from."""

    router: str | None = arg(None, "folder of a router made by training.router_sft (default: 'router' in the checkpoint's folder, if it is there)")


def routed_seeds(model: LLaDA, folder: Path, options: ALAOptions) -> Prepared:
    """ALA: prompt-conditioned seeds instead of one static mask embedding; all sampler options as for the baseline."""
    place = Path(options.router).expanduser() if options.router else folder / "router"
    if not place.is_dir():
        raise FileNotFoundError(f"llada_ala needs a router: {place} is not a folder; pass router=FOLDER, made by python -m training.router_sft")
    if model.special_tokens is None:
        raise ValueError(f"{folder}: llada_ala needs a checkpoint that names its mask token")
    router = load_router(place, model)
    return Prepared(routed(model_denoiser(model), router, model.embedding, model.special_tokens.mask), _own_stream(model))


METHODS: dict[str, Method] = {
    "llada": Method(NoOptions, baseline),
    "llada_ups": Method(UPSOptions, learned_remasking),
    "llada_ala": Method(ALAOptions, routed_seeds),
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
                         "revise_below with threshold or factor")


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
        if "revise_below" not in given and named[0] in ("threshold", "factor"):
            return {**chosen, "revise_below": 0.5}
        return chosen
    return defaults
