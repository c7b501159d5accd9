"""Parts that are trained on a backbone and kept in a folder of their own: a UPS head, a
router. One place for how they are written and checked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn

from llada_plugins.files.json_files import TEXT, Kind, is_there, read_json, record
from llada_plugins.files.tensors import save_tensors
from llada_plugins.models.fingerprint import backbone_fingerprint
from llada_plugins.models.folder import tensor_names
from llada_plugins.models.llada import LLaDA
from llada_plugins.models.quantization import quantization_of
from llada_plugins.models.weights import load_tensors

Module = TypeVar("Module", bound=nn.Module)


class Part(NamedTuple):
    """A kind of part: its files, and the words of its error messages."""

    config: str  # file name of its description
    weights: str  # file name of its tensors
    title: str  # what it is
    noun: str  # the same in a word
    interface: str  # what of the model its width must equal
    command: str  # what makes it
    fields: Mapping[str, Kind]  # of its description; d_model among them, backbone beside them
    may_have: Mapping[str, Kind] = {}


def write_part(part: Part, module: nn.Module, folder: Path, description: Mapping[str, Any]) -> None:
    """Write the module's tensors, in fp32, and its description."""
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(
        {
            name: tensor.detach().cpu().float().contiguous()
            for name, tensor in module.state_dict().items()
        },
        folder / part.weights,
    )
    (folder / part.config).write_text(
        json.dumps(description, indent=1, sort_keys=True) + "\n", encoding="utf-8"
    )


def read_part(part: Part, folder: Path) -> dict[str, Any]:
    """The description in `folder`; FileNotFoundError that says what makes one."""
    if not is_there(folder / part.config):
        raise FileNotFoundError(
            f"{folder} has no {part.config}: give the folder of a {part.noun} made by python -m "
            f"{part.command}"
        )
    return read_json(folder / part.config, record({**part.fields, "backbone": TEXT}, part.may_have))


def check_part(part: Part, raw: Mapping[str, Any], folder: Path, model: LLaDA) -> None:
    """Raise ValueError where the part is of another width than the model or was trained
    on another backbone.
    """
    if raw.get("d_model") != model.config.d_model:
        raise ValueError(
            f"{folder}: this {part.title} {part.interface} of width {raw.get('d_model')}, the "
            f"model's have {model.config.d_model}: "
            f"give the {part.noun} that was trained on this model"
        )
    if raw.get("backbone") != (found := backbone_fingerprint(model)):
        record = quantization_of(model)
        packed = record is not None and record.gptq
        reason = (
            "a GPTQ checkpoint has other weights than the model it was made from; "
            if packed
            else ""
        )
        raise ValueError(
            f"{folder}: this {part.title} was trained on another backbone (fingerprint "
            f"{raw.get('backbone')}, this model's is "
            f"{found}): {reason}give pretrained= the model that it was trained on, or train a "
            f"{part.noun} with "
            f"python -m {part.command}"
        )


def fill_part(part: Part, module: Module, folder: Path, model: LLaDA) -> Module:
    """Fill a meta-device module from `folder`, in fp32 on the model's device, every
    tensor accounted for.
    """
    path = folder / part.weights
    load_tensors(
        module,
        dict.fromkeys(tensor_names(path), path),
        device=model.device,
        dtype=torch.float32,
        source=folder,
    )
    return module.eval().requires_grad_(False)
