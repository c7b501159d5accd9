"""Learned remasking (UPS, RemeDi): a policy stream ranks the tokens that may be masked again."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llada_plugins.diffusion.denoiser import model_denoiser
from llada_plugins.options.fields import arg
from llada_plugins.sampling.facts import ADAPTIVE_RULES

from .loading import Loading
from .policy_head import load_policy, policy_denoiser
from .prepared import COUNT_RULES, Defaults, Policy, Prepared, own_policy

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class UPSOptions:
    """Where the unmasking-policy stream comes from."""

    ups: str | None = arg(
        None,
        "folder of a head made by training.remask_sft (default: 'ups' in the checkpoint's folder, "
        "if it is there)",
    )


def learned_remasking(load: Loading, folder: Path, options: UPSOptions) -> Prepared:
    """RemeDi's dynamic remasking: the checkpoint's own policy stream, or a light head.

    The head is the named one, else the one in the checkpoint's folder.
    """
    model = load()
    if model.own_stream:
        if options.ups:
            raise ValueError(
                f"ups={options.ups!r} has no effect: this checkpoint has RemeDi's own policy "
                "stream; leave ups out"
            )
        return Prepared(model, model_denoiser(model), own_policy(model), _revising("ups"))
    head = Path(options.ups).expanduser() if options.ups else folder / "ups"
    if not options.ups and not head.is_dir():
        logger.warning(
            "no UPS head: none beside %s and no ups=FOLDER given; remasking falls back to "
            "confidence_source=tps_prob",
            folder,
        )
        return Prepared(model, model_denoiser(model), None, _revising("tps_prob"))
    denoise = policy_denoiser(model, load_policy(head, model))
    return Prepared(model, denoise, Policy.LIGHT_HEAD, _revising("ups"))


def _revising(source: str) -> Defaults:
    """Defaults of learned remasking: the confidence source, and which tokens are revised.

    That is RemeDi's schedule or, under an adaptive rule, those scored below one half.
    """

    def defaults(given: Mapping[str, Any]) -> dict[str, Any]:
        if given.get("branches") or given.get("draft_rows"):
            return {}  # no token is taken back
        rules = [rule for rule in COUNT_RULES if given.get(rule)]
        if given.get("revise") is False and not rules:
            return {}  # plain decoding, asked for by name
        chosen: dict[str, Any] = {}
        if not given.get("confidence_source") and not given.get("remasking"):
            chosen["confidence_source"] = source
        if not rules:
            chosen["revise"] = True
        elif "revise_below" not in given and rules[0] in ADAPTIVE_RULES:
            chosen["revise_below"] = 0.5
        return chosen

    return defaults
