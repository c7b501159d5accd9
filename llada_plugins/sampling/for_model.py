"""What a model's attention says of its sampler: options that follow from it, and those refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from llada_plugins.models.families import FAMILIES
from llada_plugins.models.llada_config import LLaDAConfig

from .config import SamplerConfig


def defaults_of(model: LLaDAConfig) -> dict[str, Any]:
    """Options of a model with this config, where nobody gives them."""
    if model.attention == "full":
        return {}
    # dllm's BD3LM sampler pads each prompt to whole blocks
    from_answer = FAMILIES[model.family].sampler == "mdlm"
    return {
        "sampling_method": "block_causal",
        "block_length": model.block_length,
        "blocks_from": "answer" if from_answer else "row",
    }


def fitted(config: SamplerConfig, model: LLaDAConfig) -> SamplerConfig:
    """The sampler with the model's defaults where it says nothing, checked by `check_attention`."""
    if config.sampling_method is not None:
        check_attention(config, model)
    defaults = defaults_of(model)
    config = replace(
        config, **{name: each for name, each in defaults.items() if getattr(config, name) is None}
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
    if model.attention == "block_causal" and config.frozen is not None:
        raise ValueError(
            f"cache={config.cache} freezes what later blocks change, and here a token sees its own "
            "block and earlier ones alone: leave it out, and finished blocks are kept as they are, "
            "or set none to compute them again at every step"
        )
    if model.attention == "full" and (config.causal or config.blocks_from is not None):
        option = "sampling_method=block_causal" if config.causal else "blocks_from"
        allowed = "block_causal" in FAMILIES[model.family].attentions
        otherwise = ", or load it with attention=block_causal" if allowed else ""
        raise ValueError(
            f"{option} is for models whose tokens see their own block and earlier ones alone; "
            f"every token of this checkpoint sees all others: leave it out{otherwise}"
        )
