"""LoRA adapters (arXiv 2106.09685) in PEFT's layout: checked against the model, merged
into its weights as these are read.

W + scale * B A is computed in fp32, once, and before a weight is quantised; nothing is
left of the adapter in a forward pass, so every method, cache and estimator works as on
the plain model. peft itself is needed to train an adapter, not to read one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from llada_plugins.files.json_files import (
    FLAG,
    TEXT,
    either,
    is_there,
    list_of,
    nullable,
    number,
    one_line,
    one_of,
    read_json,
    record,
    short,
    whole,
)
from llada_plugins.files.tensors import open_tensors, raise_problems

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."  # PEFT's, before the names of the model's own modules
# key of the weight file's metadata: fingerprint of the model that the adapter was
# trained on
BACKBONE = "backbone"
# What may be said beside rank, alpha and targets; any other key of PEFT's config asks
# for arithmetic that merging does not have.
IRRELEVANT = {
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "layers_pattern",
    "lora_alpha",
    "lora_dropout",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "revision",
    "target_modules",
    "task_type",
    "use_rslora",
}
PLAIN_LORA = record(
    {
        "peft_type": one_of("LORA"),
        "r": whole(1, 2**20),
        "lora_alpha": number(-1e9, 1e9),
        "target_modules": either(TEXT, list_of(TEXT)),
    },
    {
        "use_rslora": nullable(FLAG),
        # the other ways to initialise change the base weights as well
        "init_lora_weights": nullable(either(FLAG, one_of("gaussian", "orthogonal"))),
    },
)
FLOATING = ("F64", "F32", "BF16", "F16")  # as safetensors name them


class Adapter:
    """An adapter folder that fits a model: `merge` adds it to the Linears, one by one."""

    def __init__(self, folder: Path, model: nn.Module) -> None:
        """Raises FileNotFoundError or ValueError where files are missing, or tensors do
        not fit the model; reads no tensor.
        """
        self.folder = folder
        raw = read_config(folder)
        rank = raw["r"]
        self.scale = raw["lora_alpha"] / (rank**0.5 if raw.get("use_rslora") else rank)
        self.layers = targeted(model, raw["target_modules"])
        wanted = {}
        for name, linear in self.layers.items():
            if not isinstance(linear, nn.Linear):
                raise ValueError(
                    f"{folder / CONFIG}: target_modules names {name}, a {type(linear).__name__}: "
                    "only Linears can be adapted"
                )
            wanted[f"{PREFIX}{name}.lora_A.weight"] = [rank, linear.in_features]
            wanted[f"{PREFIX}{name}.lora_B.weight"] = [linear.out_features, rank]
        if not is_there(folder / WEIGHTS):
            raise FileNotFoundError(
                f"peft={folder}: no {WEIGHTS} there; only safetensors are read, never pickles"
            )
        with open_tensors(folder / WEIGHTS) as file:
            stored = {name: file.get_slice(name) for name in list(file.keys())}
            shapes = {name: list(each.get_shape()) for name, each in stored.items()}
            kinds = {name: each.get_dtype() for name, each in stored.items()}
            self.backbone: str | None = (file.metadata() or {}).get(BACKBONE)
        problems = [f"missing {name}" for name in sorted(wanted.keys() - shapes.keys())]
        problems += [
            f"left over {one_line(name)}" for name in sorted(shapes.keys() - wanted.keys())
        ]
        problems += [
            f"{name} is {kinds[name]}, expected {' or '.join(FLOATING)}"
            for name in wanted
            if kinds.get(name, "F32") not in FLOATING
        ]
        problems += [
            f"{name} is {shapes[name]}, expected {shape}"
            for name, shape in wanted.items()
            if shapes.get(name, shape) != shape
        ]
        if not wanted:
            problems = [f"target_modules ({raw['target_modules']!r}) names none of its modules"]
        raise_problems(
            f"peft={folder}: this adapter does not fit the model",
            problems,
            ": give pretrained= the model that it was trained on",
        )
        self._tensors: dict[str, Tensor] | None = None

    def merge(self, name: str, module: nn.Module) -> None:
        """Add the adapter to the weight of the module of that name, in place, if it has
        a part for it.
        """
        if name not in self.layers:
            return
        if self._tensors is None:
            self._tensors = load_file(self.folder / WEIGHTS)
        down, up = (
            self._tensors.pop(f"{PREFIX}{name}.lora_{part}.weight").to(module.weight.device).float()
            for part in "AB"
        )
        module.weight.data = merged_weight(module.weight.data, down, up, self.scale)
        if not all(map(math.isfinite, torch.aminmax(module.weight.data))):
            raise ValueError(
                f"{self.folder / WEIGHTS}: {name} becomes NaN or infinite with it: the adapter is "
                "damaged, or lora_alpha too large"
            )

    def check_backbone(self, found: str) -> None:
        """Raise ValueError where the adapter was trained on weights of another
        fingerprint; not every adapter states one.
        """
        if self.backbone not in (None, found):
            raise ValueError(
                f"peft={self.folder}: this adapter was trained on another backbone (fingerprint "
                f"{self.backbone}, this "
                f"model's is {found}): give pretrained= the model that it was trained on"
            )


def merged_weight(weight: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """W + scale * B A, computed in fp32, in the weight's dtype. down: A (rank, inputs);
    up: B (outputs, rank).
    """
    return (weight.float() + scale * up.float() @ down.float()).to(weight.dtype)


def read_config(folder: Path) -> dict[str, Any]:
    """The adapter's description; raises ValueError on all but plain LoRA."""
    path = folder / CONFIG
    if not is_there(path):
        raise FileNotFoundError(
            f"peft={folder}: no {CONFIG} there: give the folder of a LoRA adapter, made by python "
            "-m training.sft "
            "--lora or by peft"
        )
    raw = read_json(path, PLAIN_LORA)
    for name, value in raw.items():
        if (
            name not in IRRELEVANT
            and name != "init_lora_weights"
            and value not in (None, False, "none", {}, [])
        ):
            raise ValueError(
                f"{path}: {one_line(name)} is {short(value)}, but only plain LoRA is read: merge "
                "the adapter with peft, and "
                "give the result"
            )
    return raw


def targeted(model: nn.Module, target_modules: str | Iterable[str]) -> Mapping[str, nn.Module]:
    """The modules that PEFT adapts: a string is a regular expression for the whole
    name, a list has names or their ends.
    """
    if isinstance(target_modules, str):
        try:
            return {
                name: module
                for name, module in model.named_modules()
                if re.fullmatch(target_modules, name)
            }
        except re.error as error:
            raise ValueError(
                f"target modules {target_modules!r} are no regular expression: {error}"
            ) from None
    ends = tuple(f".{name}" for name in target_modules)
    return {
        name: module for name, module in model.named_modules() if name and f".{name}".endswith(ends)
    }
