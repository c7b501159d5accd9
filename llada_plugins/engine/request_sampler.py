"""The sampler of a request: whose options go before whose."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from llada_plugins.options.fields import build, with_origins
from llada_plugins.sampling.config import SamplerConfig

from .asked import Asked
from .config import HARNESS_DEFAULTS


def combined(
    options: Mapping[str, Any],
    given: Mapping[str, Any],
    by_method: Mapping[str, Any],
    asked: Asked,
    max_tokens: int | None,
    *,
    by_model: Mapping[str, Any],
) -> SamplerConfig:
    """The sampler of a request with these options, which go before all others.

    given: the engine's, explicit or its preset's. by_method: the defaults of its method.
    max_tokens: the answer's length where none of them sets gen_length. by_model: the
    defaults of the model's attention. A ValueError says where each of the values comes from
    that it names.
    """
    of_preset = asked.preset_part(given)
    explicit = {name: value for name, value in given.items() if name not in of_preset}
    origins: dict[str, dict[str, Any]] = {
        "the request (task or --gen_kwargs)": dict(options),
        "the model's options (model_args)": explicit,
        f"preset {asked.config.preset}": of_preset,
        f"the defaults of {asked.method}": dict(by_method),
        "the task's answer length": {} if max_tokens is None else {"gen_length": max_tokens},
        "the model's attention": dict(by_model),
        "the defaults": asdict(HARNESS_DEFAULTS),
    }
    try:
        return build(SamplerConfig, ChainMap(*origins.values()))
    except ValueError as error:
        raise with_origins(error, origins) from None
