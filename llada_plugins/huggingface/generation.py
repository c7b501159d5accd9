"""generate() of a model class: transformers' arguments, and answers of the one decode loop."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.utils import ModelOutput

from llada_plugins.models.folder import known_special_tokens
from llada_plugins.models.llada import LLaDA
from llada_plugins.models.llada_config import token_ids
from llada_plugins.models.special_tokens import SpecialTokens
from llada_plugins.options.fields import build, names
from llada_plugins.sampling.config import SamplerConfig
from llada_plugins.sampling.draft import Sample
from llada_plugins.sampling.generate import generate

# fields of a GenerationConfig that are read, or that never change an answer
OF_SAMPLING = {"temperature", "top_k", "top_p"}
SAMPLING = {"do_sample", *OF_SAMPLING}
LENGTH = {"max_new_tokens", "max_length"}
TOKENS = {"bos_token_id", "eos_token_id", "pad_token_id"}
INERT = {"use_cache", "return_dict_in_generate", "transformers_version", "_from_model_config"}
# arguments of our generate that go through
OURS = ("special", "keys", "stop", "on_step")


@dataclass
class Generated(ModelOutput):
    """What generate returns where return_dict_in_generate is true."""

    sequences: Tensor | None = None  # (B, P + gen_length) ids, prompts included
    num_forwards: Tensor | None = None  # (B,) forward passes that worked on each row


def answer(
    network: LLaDA,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    asked: GenerationConfig | SamplerConfig,
    options: Mapping[str, Any],
) -> Tensor | Generated:
    """Prompts (B, P) with their answers, (B, P + gen_length), or a Generated of them.

    attention_mask: (B, P), nonzero = a token of the prompt, all by default. options: of
    SamplerConfig, of GenerationConfig, or of OURS, by name; they go before `asked`.
    Raises ValueError on names and values that would have no effect.
    """
    passed = {name: options[name] for name in OURS if options.get(name) is not None}
    rest = {
        name: value
        for name, value in options.items()
        if name not in OURS and value is not None and (name, value) != ("synced_gpus", False)
    }
    prompts = _prompts(input_ids, attention_mask)
    if isinstance(asked, SamplerConfig):
        if rest.keys() - {"return_dict_in_generate"}:
            raise ValueError(
                f"{', '.join(sorted(rest))} beside a SamplerConfig: put them into the SamplerConfig"
            )
        sampler, config = asked, GenerationConfig(**rest)
    else:
        config = copy.deepcopy(asked)
        if rest.get("do_sample") is False:  # greedy whatever else is given, as in transformers
            rest = {name: rest[name] for name in rest if name not in OF_SAMPLING}
        own = {name: rest.pop(name) for name in names(SamplerConfig) if name in rest}
        if unknown := config.update(**rest):
            raise ValueError(
                f"generate has no argument {', '.join(sorted(unknown))}: give options of "
                "SamplerConfig (docs/options.md), or max_new_tokens, do_sample, temperature, "
                "top_k, top_p"
            )
        sampler = build(SamplerConfig, _sampler_options(config, max(map(len, prompts)), own))
    if "special" not in passed:
        passed["special"] = _special_tokens(network, config)
    samples = generate(network, prompts, sampler, **passed)
    return _outcome(input_ids, samples, sampler, config, passed["special"])


def _prompts(input_ids: Tensor, attention_mask: Tensor | None) -> list[list[int]]:
    """The tokens of each row, without padding."""
    if attention_mask is None:
        return input_ids.tolist()
    if attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask is {list(attention_mask.shape)}, expected the shape of input_ids, "
            f"{list(input_ids.shape)}"
        )
    return [row[kept.bool()].tolist() for row, kept in zip(input_ids, attention_mask)]


def _sampler_options(
    config: GenerationConfig, longest: int, own: Mapping[str, Any]
) -> dict[str, Any]:
    """The options of a SamplerConfig that a GenerationConfig states, under our own ones.

    longest: tokens of the longest prompt, which max_length includes. Raises ValueError on
    what the config asks for and the sampler does not have.
    """
    stated = config.to_diff_dict()
    foreign = sorted(
        name
        for name, value in stated.items()
        if name not in SAMPLING | LENGTH | TOKENS | INERT and value not in (None, False)
    )
    if foreign:
        raise ValueError(
            f"generate: {', '.join(foreign)} of the GenerationConfig have no effect on masked "
            "diffusion: leave them out, or use the options of SamplerConfig (docs/options.md)"
        )
    found: dict[str, Any] = {}
    if config.do_sample:
        found["temperature"] = 1.0 if config.temperature is None else config.temperature
        found |= {name: stated[name] for name in ("top_k", "top_p") if name in stated}
    if config.max_new_tokens is not None:
        found["gen_length"] = config.max_new_tokens
    elif stated.get("max_length") is not None:
        found["gen_length"] = stated["max_length"] - longest
    return {**found, **own}


def _special_tokens(network: LLaDA, config: GenerationConfig) -> SpecialTokens:
    """Those of the checkpoint; the ends of answers are those that the config states."""
    special = known_special_tokens(network)
    ends = token_ids(config.eos_token_id)
    return special._replace(eos=ends[0], more_eos=ends[1:]) if ends else special


def _outcome(
    input_ids: Tensor,
    samples: list[Sample],
    sampler: SamplerConfig,
    config: GenerationConfig,
    special: SpecialTokens,
) -> Tensor | Generated:
    """Prompts and answers as a tensor; an answer that was stopped early is padded."""
    pad = next(
        (token for token in (config.pad_token_id, special.eos) if token is not None), special.mask
    )
    length = sampler.gen_length
    rows = [sample.answer + [pad] * (length - len(sample.answer)) for sample in samples]
    sequences = torch.cat([input_ids, input_ids.new_tensor(rows)], 1)
    if not config.return_dict_in_generate:
        return sequences
    forwards = input_ids.new_tensor([sample.num_forwards for sample in samples])
    return Generated(sequences=sequences, num_forwards=forwards)
