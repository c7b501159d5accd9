"""What a model's attention says of its sampler: options that follow from it, and those refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from llada_plugins.models.families import FAMILIES
from llada_plugins.models.llada_config import LLaDAConfig

from .config import SamplerConfig

# by sampler of a family: what its publishers' code always does
BY_SAMPLER: dict[str, dict[str, Any]] = {
    # dllm's BD3LM sampler pads each prompt to whole blocks
    "mdlm": {"blocks_from": "answer"},
    "sdar": {"strict": True, "confidence_of": "tempered"},
    "llada2": {"strict": True, "confidence_of": "filtered"},
    "fast_dllm_v2": {"strict": True},
}


def defaults_of(model: LLaDAConfig, given: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a model with this config, where nobody gives them; given: those that are."""
    others = given.get("sampling_method") not in (None, "block_causal")  # which are refused
    if model.attention == "full" or others:
        return {}
    defaults = {
        "sampling_method": "block_causal",
        "block_length": model.block_length,
        "blocks_from": "row",
        **BY_SAMPLER.get(FAMILIES[model.family].sampler, {}),
    }
    if given.get("threshold") is None:
        defaults.pop("strict", None)
    if not given.get("temperature") and defaults.get("confidence_of") == "filtered":
        del defaults["confidence_of"]  # they filter where they sample alone
    return defaults


def fitted(config: SamplerConfig, model: LLaDAConfig) -> SamplerConfig:
    """The sampler with the model's defaults where it says nothing, checked by `check_attention`."""
    if not isinstance(config, SamplerConfig):
        raise ValueError(f"config must be a SamplerConfig(...), got {config!r}")
    given = asdict(config)
    defaults = defaults_of(model, given)
    config = replace(
        config, **{name: each for name, each in defaults.items() if given[name] is None}
    )
    check_attention(config, model)
    return config


def check_attention(config: SamplerConfig, model: LLaDAConfig) -> None:
    """Raise ValueError where blocks of the sampler are not those that the model attends by."""
    if model.attention == "block_causal" and not config.causal:
        raise ValueError(
            f"sampling_method={config.sampling_method}: a token of this checkpoint sees its own "
            "block and earlier ones alone, so its sampler must be block_causal: leave the option "
            "out"
        )
    if model.attention == "block_causal" and config.approximates:
        raise ValueError(
            f"cache={config.cache} freezes what later blocks change, and here a token sees its own "
            "block and earlier ones alone: leave it out, and finished blocks are kept as they are, "
            "or set none to compute them again at every step"
        )
    if model.attention == "full" and (option := _of_causal_blocks(config)):
        allowed = "block_causal" in FAMILIES[model.family].attentions
        otherwise = ", or load it with attention=block_causal" if allowed else ""
        raise ValueError(
            f"{option} is for models whose tokens see their own block and earlier ones alone; "
            f"every token of this checkpoint sees all others: leave it out{otherwise}"
        )


def _of_causal_blocks(config: SamplerConfig) -> str | None:
    """The option that causal blocks alone have, if one is set."""
    if config.causal:
        return "sampling_method=block_causal"
    if config.blocks_from is not None:
        return f"blocks_from={config.blocks_from}"
    if config.unseen_suffix:
        return "unseen_suffix=true"
    return None if config.answer_end == "gen_length" else f"answer_end={config.answer_end}"
