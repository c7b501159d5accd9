"""What a result depends on beside the questions, as it stands here: weights, options, versions.

It is read without loading weights, so that it can be held against an earlier one first.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from llada_plugins._lm_eval_hook import DISTRIBUTION
from llada_plugins.engine.asked import Asked, Folders
from llada_plugins.engine.identity import digest
from llada_plugins.engine.record_options import RecordOptions
from llada_plugins.files.changes import differing
from llada_plugins.files.digests import SHORT, text_digest, weights_digest
from llada_plugins.files.installation import made_by
from llada_plugins.files.software import git_commit, versions
from llada_plugins.methods.table import METHODS
from llada_plugins.models.placement import pick_device
from llada_plugins.options.fields import names

TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
CONFIGS = ("config.json", "generation_config.json")
# options that are of this run, not of what is evaluated; a path is told by what it holds
NOT_STATE = (
    "pretrained",
    "peft",
    "tokenizer",
    "likelihood_log",
    "manifest",
    "preset",
    *names(RecordOptions),
)


def state(asked: Asked, folders: Folders) -> dict[str, Any]:
    """Everything that must be equal for a result to be the same, by sections of plain values."""
    config = asked.config
    folder, adapter, tokenizer, add_ons = folders
    full = config.manifest == "full"
    return {
        "weights": weights_digest(folder, full=full)._asdict(),
        "adapter": weights_digest(adapter, full=full)._asdict() if adapter else None,
        "add_ons": {name: _add_on(place, full=full) for name, place in add_ons.items()},
        "config": text_digest(folder / name for name in CONFIGS),
        "tokenizer": text_digest(tokenizer / name for name in TOKENIZER),
        "options": _options(asked),
        "device": device_name(config.device),
        "code": made_by()[DISTRIBUTION],
        "versions": versions(),
        "git_commit": git_commit(),
    }


def _add_on(folder: Path, *, full: bool) -> dict[str, Any]:
    """Its weights, as the checkpoint's, and its other files."""
    return {**weights_digest(folder, full=full)._asdict(), "files": digest(folder)}


def _options(asked: Asked) -> dict[str, Any]:
    """The options in effect, those of requests aside."""
    values = {**asdict(asked.config), **asdict(asked.method_options)}
    of_preset = {} if asked.preset is None else asked.preset.options
    given = {
        name: value for name, value in {**of_preset, **asked.explicit}.items() if name not in values
    }
    left_out = {*NOT_STATE, *METHODS[asked.method].folders}
    return {name: value for name, value in {**values, **given}.items() if name not in left_out}


def device_name(name: str) -> str:
    """The model of the GPU, or the CPU's kind with the kernels that torch uses on it."""
    device = pick_device(name)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two states, a line for each value."""
    return [
        f"{name}: {_told(change.then)} then, {_told(change.now)} now"
        for name, change in differing(before, now).items()
    ]


def identity(state: Mapping[str, Any], asked: Any) -> str:
    """A name for all runs of this state that are asked the same."""
    both = json.dumps([state, asked], sort_keys=True, default=str)
    return hashlib.sha256(both.encode()).hexdigest()[:SHORT]


def _told(value: Any) -> str:
    return "nothing" if value is None else str(value)
