"""Add-ons that are trained on a backbone and kept in a folder of their own.

A UPS head is one, a router another. How they are written and checked is here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn

from llada_plugins.files.json_files import TEXT, Kind, is_there, one_line, read_json, record
from llada_plugins.files.tensors import save_tensors
from llada_plugins.models.fingerprint import backbone_fingerprint
from llada_plugins.models.folder import tensor_names
from llada_plugins.models.llada import LLaDA
from llada_plugins.models.quantization import quantization_of
from llada_plugins.models.weights import load_tensors

Module = TypeVar("Module", bound=nn.Module)


class AddOn(NamedTuple):
    """A kind of add-on: its files, and the words of its error messages."""

    config: str  # file name of its description
    weights: str  # file name of its tensors
    title: str  # what it is
    noun: str  # the same in a word
    interface: str  # what of the model its width must equal
    command: str  # what makes it
    fields: Mapping[str, Kind]  # of its description; d_model among them, backbone beside them
    may_have: Mapping[str, Kind] = {}


def write_addon(
    addon: AddOn, module: nn.Module, folder: Path, description: Mapping[str, Any]
) -> None:
    """Write the module's tensors, in fp32, and its description."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        name: tensor.detach().cpu().float().contiguous()
        for name, tensor in module.state_dict().items()
    }
    save_tensors(state, folder / addon.weights)
    (folder / addon.config).write_text(
        json.dumps(description, indent=1, sort_keys=True) + "\n", encoding="utf-8"
    )


def read_addon(addon: AddOn, folder: Path) -> dict[str, Any]:
    """The description in `folder`; FileNotFoundError that says what makes one."""
    if not is_there(folder / addon.config):
        raise FileNotFoundError(
            f"{folder} has no {addon.config}: give the folder of a {addon.noun} made by python -m "
            f"{addon.command}"
        )
    return read_json(
        folder / addon.config, record({**addon.fields, "backbone": TEXT}, addon.may_have)
    )


def check_addon(addon: AddOn, raw: Mapping[str, Any], folder: Path, model: LLaDA) -> None:
    """Raise ValueError where the add-on does not belong to the model.

    It is then of another width, or was trained on another backbone.
    """
    width, model_width = raw.get("d_model"), model.config.d_model
    if width != model_width:
        raise ValueError(
            f"{folder}: this {addon.title} {addon.interface} of width {width}, the "
            f"model's have {model_width}: give the {addon.noun} that was trained on this model"
        )
    trained_on, found = raw["backbone"], backbone_fingerprint(model)
    if trained_on == found:
        return
    reason = ""
    if (record := quantization_of(model)) is not None and record.gptq:
        reason = "a GPTQ checkpoint has other weights than the model it was made from; "
    raise ValueError(
        f"{folder}: this {addon.title} was trained on another backbone (fingerprint "
        f"{one_line(trained_on)}, this model's is {found}): {reason}give pretrained= the model "
        f"that it was trained on, or train a {addon.noun} with python -m {addon.command}"
    )


def fill_addon(addon: AddOn, module: Module, folder: Path, model: LLaDA) -> Module:
    """Fill a meta-device module from `folder`, every tensor accounted for.

    Its tensors are in fp32, on the model's device.
    """
    path = folder / addon.weights
    load_tensors(
        module,
        dict.fromkeys(tensor_names(path), path),
        device=model.device,
        dtype=torch.float32,
        source=folder,
    )
    return module.eval().requires_grad_(False)
