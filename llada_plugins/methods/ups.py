"""Learned remasking (UPS, RemeDi): a policy stream ranks the tokens that may be masked again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llada_plugins.diffusion.denoiser import model_denoiser
from llada_plugins.models.llada import LLaDA
from llada_plugins.options.fields import arg
from llada_plugins.sampling.config import ADAPTIVE_RULES

from .policy_head import load_policy, policy_denoiser
from .prepared import COUNT_RULES, Prepared, _own_stream

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class UPSOptions:
    """Where the unmasking-policy stream comes from."""

    ups: str | None = arg(
        None,
        "folder of a head made by training.remask_sft (default: 'ups' in the checkpoint's folder, "
        "if it is there)",
    )


def learned_remasking(load: Callable[[], LLaDA], folder: Path, options: UPSOptions) -> Prepared:
    """RemeDi's dynamic remasking: a bi-tower checkpoint's own stream, or a light head
    beside the backbone.
    """
    beside, model = folder / "ups", load()
    head = Path(options.ups).expanduser() if options.ups else beside if beside.is_dir() else None
    if model.own_stream:
        if options.ups:
            raise ValueError(
                f"ups={options.ups!r} has no effect: this checkpoint has RemeDi's own policy "
                "stream; leave ups out"
            )
        return Prepared(model, model_denoiser(model), _own_stream(model), _revising("ups"))
    if head is None:
        logger.warning(
            "no UPS head: none beside %s and no ups=FOLDER given; remasking falls back to "
            "confidence_source=tps_prob",
            folder,
        )
        return Prepared(model, model_denoiser(model), None, _revising("tps_prob"))
    return Prepared(
        model,
        policy_denoiser(model, load_policy(head, model)),
        "light head: 'ups' ranks visible tokens by sigmoid(h), masked ones by probability",
        _revising("ups"),
    )


def _revising(source: str) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """Defaults of learned remasking: the source, and RemeDi's schedule or, under an
    adaptive rule, revision below one half.
    """

    def defaults(given: Mapping[str, Any]) -> dict[str, Any]:
        if given.get("revise") is False and not any(given.get(rule) for rule in COUNT_RULES):
            return {}  # plain decoding, asked for by name
        chosen: dict[str, Any] = (
            {}
            if given.get("confidence_source") or given.get("remasking")
            else {"confidence_source": source}
        )
        named = [rule for rule in COUNT_RULES if given.get(rule)]
        if not named:
            return {**chosen, "revise": True}
        if "revise_below" not in given and named[0] in ADAPTIVE_RULES:
            return {**chosen, "revise_below": 0.5}
        return chosen

    return defaults
