"""LoRA adapters (arXiv 2106.09685) in PEFT's layout, merged into a model's weights.

An adapter is checked against the model first. W + scale * B A is computed in fp32, once,
before a weight is quantised. Nothing is left of the adapter in a forward pass, so every
method, cache and estimator works as on the plain model. peft itself is needed to train an
adapter, not to read one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

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

from .accounting import FLOATING
from .layout import SAME_NAMES, Layout, Piece
from .llada_config import LLaDAConfig
from .mixture import Router, StackedLinear

T = TypeVar("T")

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."  # PEFT's, before the names of the model's own modules
# key of the weight file's metadata: fingerprint of the model that it was trained on
BACKBONE = "backbone"
# further keys, where the model had block-causal attention: with which blocks it was trained
BLOCK_LENGTH = "block_length"
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


class Place(NamedTuple):
    """A matrix that an adapter may change."""

    module: str  # the name of our module whose weight has it
    piece: Piece  # its place in that weight
    shape: torch.Size  # (outputs, inputs); of a stack that is stored as one, (E, outputs, inputs)


class Adapter:
    """An adapter folder that fits a model: `merge` adds it to the weights, one by one.

    Its modules may be called as the family's checkpoints call them, by which PEFT has
    trained it beside the published code, or as ours are.
    """

    def __init__(self, folder: Path, model: nn.Module, layout: Layout = SAME_NAMES) -> None:
        """Reads no tensor.

        Raises FileNotFoundError or ValueError where files are missing, or tensors do not
        fit the model.
        """
        self.folder = folder
        raw = read_config(folder)
        rank = raw["r"]
        self.scale = raw["lora_alpha"] / (rank**0.5 if raw.get("use_rslora") else rank)
        header = _read_header(folder)
        self.backbone = header.metadata.get(BACKBONE)
        self.block_length = header.metadata.get(BLOCK_LENGTH)
        modules = _names_of(header, model, layout)
        self.places = _adapted(modules, raw["target_modules"], folder)
        problems = _misfits(header, _adapter_shapes(self.places, rank))
        if not self.places:
            problems = [f"target_modules ({raw['target_modules']!r}) names none of its modules"]
        raise_problems(
            f"peft={folder}: this adapter does not fit the model",
            problems,
            ": give pretrained= the model that it was trained on",
        )
        self._tensors: dict[str, Tensor] | None = None

    def merge(self, name: str, module: nn.Module) -> None:
        """Add what the adapter has for the module of that name to its weight, in place."""
        adapted = {stored: each for stored, each in self.places.items() if each.module == name}
        if not adapted:
            return
        assert isinstance(module.weight, nn.Parameter)
        if self._tensors is None:
            self._tensors = load_file(self.folder / WEIGHTS)
        weight = module.weight.data.clone()  # that of a file cannot be written to
        for stored, place in adapted.items():
            down = self._tensors.pop(f"{PREFIX}{stored}.lora_A.weight").to(weight.device)
            up = self._tensors.pop(f"{PREFIX}{stored}.lora_B.weight").to(weight.device)
            part = place.piece.of(weight)
            part.copy_(merged_weight(part, down, up, self.scale))
        if not all(map(math.isfinite, torch.aminmax(weight))):
            raise ValueError(
                f"{self.folder / WEIGHTS}: {name} becomes NaN or infinite with it: the adapter is "
                "damaged, or lora_alpha too large"
            )
        module.weight.data = weight

    def with_blocks(self, config: LLaDAConfig) -> LLaDAConfig:
        """The config of a model with the adapter, whose blocks are those of its training.

        ValueError where it was trained under another attention.
        """
        if self.block_length is None:
            return config
        if config.attention != "block_causal":
            raise ValueError(
                f"peft={self.folder}: this adapter was trained with block-causal attention, and "
                "the model has full attention: give attention=block_causal"
            )
        return replace(config, block_length=int(self.block_length))

    def check_backbone(self, found: str) -> None:
        """Raise ValueError where the adapter states that its backbone has another fingerprint."""
        if self.backbone not in (None, found):
            of_adapter = one_line(str(self.backbone))
            raise ValueError(
                f"peft={self.folder}: this adapter was trained on another backbone (fingerprint "
                f"{of_adapter}, this model's is {found}): give pretrained= the model that it "
                "was trained on"
            )


class _Header(NamedTuple):
    """What the header of an adapter's weight file says; the tensors by name."""

    shapes: dict[str, list[int]]
    dtypes: dict[str, str]  # as safetensors name them
    metadata: Mapping[str, str]


def _read_header(folder: Path) -> _Header:
    if not is_there(folder / WEIGHTS):
        raise FileNotFoundError(
            f"peft={folder}: no {WEIGHTS} there; only safetensors are read, never pickles"
        )
    with open_tensors(folder / WEIGHTS) as file:
        stored = {name: file.get_slice(name) for name in list(file.keys())}
        shapes = {name: list(each.get_shape()) for name, each in stored.items()}
        dtypes = {name: each.get_dtype() for name, each in stored.items()}
        return _Header(shapes, dtypes, file.metadata() or {})


def _names_of(header: _Header, model: nn.Module, layout: Layout) -> dict[str, Place | str]:
    """The model's modules by the names that the adapter calls them by."""
    tensors = [name.removeprefix(PREFIX).partition(".lora_")[0] for name in header.shapes]
    published, ours = adaptable(model, layout), adaptable(model, SAME_NAMES)
    by_ours = any(name in ours for name in tensors)
    by_theirs = any(name in published for name in tensors)
    return ours if by_ours and not by_theirs else published


def adaptable(model: nn.Module, layout: Layout) -> dict[str, Place | str]:
    """The model's modules by their names in that layout; of one that cannot be adapted, its class.

    A stack of experts counts as the modules that it is stored as.
    """
    found: dict[str, Place | str] = {}
    for name, module in model.named_modules():
        weight = f"{name}.weight"
        if not isinstance(module, (nn.Linear, StackedLinear, Router)):
            found[_module(layout.stored_name(weight))] = type(module).__name__
            continue
        for piece in layout.pieces(weight, module.weight):
            shape = piece.of(module.weight).shape
            found[_module(piece.stored)] = Place(name, piece, shape)
    return found


def _module(stored: str) -> str:
    """The name of the module of a stored weight; dInfer's stacks are weights with no module."""
    return stored.removesuffix(".weight")


def _adapted(
    modules: Mapping[str, Place | str], target_modules: str | Iterable[str], folder: Path
) -> dict[str, Place]:
    """The targeted modules; ValueError where one of them is no Linear."""
    places: dict[str, Place] = {}
    for name, place in targeted(modules, target_modules).items():
        if isinstance(place, str):
            raise ValueError(
                f"{folder / CONFIG}: target_modules names {name}, a {place}: only Linears can be "
                "adapted"
            )
        places[name] = place
    return places


def _adapter_shapes(places: Mapping[str, Place], rank: int) -> dict[str, list[int]]:
    """Name and shape of each tensor that an adapter of these places has."""
    shapes: dict[str, list[int]] = {}
    for name, place in places.items():
        *stack, outputs, inputs = place.shape
        shapes[f"{PREFIX}{name}.lora_A.weight"] = [*stack, rank, inputs]
        shapes[f"{PREFIX}{name}.lora_B.weight"] = [*stack, outputs, rank]
    return shapes


def _misfits(header: _Header, wanted: Mapping[str, list[int]]) -> list[str]:
    """What of the stored tensors is not as wanted."""
    shapes, dtypes = header.shapes, header.dtypes
    allowed = tuple(FLOATING.values())
    missing = [f"missing {name}" for name in sorted(wanted.keys() - shapes.keys())]
    left_over = [f"left over {one_line(name)}" for name in sorted(shapes.keys() - wanted.keys())]
    stored = [name for name in wanted if name in shapes]
    of_other_kind = [
        f"{name} is {dtypes[name]}, expected {' or '.join(allowed)}"
        for name in stored
        if dtypes[name] not in allowed
    ]
    of_other_shape = [
        f"{name} is {shapes[name]}, expected {wanted[name]}"
        for name in stored
        if shapes[name] != wanted[name]
    ]
    return [*missing, *left_over, *of_other_kind, *of_other_shape]


def merged_weight(weight: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """W + scale * B A, computed in fp32, in the weight's dtype.

    down: A (rank, inputs). up: B (outputs, rank). Or stacks of them.
    """
    return (weight.float() + scale * up.float() @ down.float()).to(weight.dtype)


def read_config(folder: Path) -> dict[str, Any]:
    """The adapter's description; raises ValueError on all but plain LoRA."""
    path = folder / CONFIG
    if not is_there(path):
        raise FileNotFoundError(
            f"peft={folder}: no {CONFIG} there: give the folder of a LoRA adapter, made by "
            "python -m training.sft --lora or by peft"
        )
    raw = read_json(path, PLAIN_LORA)
    for name, value in raw.items():
        read = name in IRRELEVANT or name == "init_lora_weights"
        if not read and value not in (None, False, "none", {}, []):
            raise ValueError(
                f"{path}: {one_line(name)} is {short(value)}, but only plain LoRA is read: merge "
                "the adapter with peft, and give the result"
            )
    return raw


def targeted(modules: Mapping[str, T], target_modules: str | Iterable[str]) -> dict[str, T]:
    """Of modules by name, those that PEFT adapts.

    target_modules: a regular expression for the whole name, or a list of names or their ends.
    """
    if isinstance(target_modules, str):
        try:
            pattern = re.compile(target_modules)
        except re.error as error:
            raise ValueError(
                f"target modules {target_modules!r} are no regular expression: {error}"
            ) from None
        return {name: module for name, module in modules.items() if pattern.fullmatch(name)}
    ends = tuple(f".{name}" for name in target_modules)
    return {name: module for name, module in modules.items() if name and f".{name}".endswith(ends)}
