"""Checkpoints to models and back: folders or hub ids, safetensors only, no remote code.

Nothing is guessed: what a config asks for and the module does not implement, or a tensor
that does not fit, is an error that names it, raised before any weight is read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llada_plugins.files.json_files import read_json
from llada_plugins.files.tensors import save_tensors

from .families import FAMILIES
from .folder import read_config, resolve, special_tokens, tensor_files
from .llada import LLaDA
from .lora import Adapter
from .origin import config_of, read_origin, write_files
from .placement import pick_device, pick_dtype
from .quantization import check_quantize, quantization_of
from .submodules import check_present
from .weights import load_weights


def load_model(
    pretrained: str | Path | None = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    quantize: str | None = None,
    peft: str | Path | None = None,
) -> LLaDA:
    """A LLaDA model, ready for inference: called with ids (B, L) it returns logits (B, L, V).

    Its weights are frozen, so that nothing keeps a graph: `model.requires_grad_(True)`
    lets them train, as the training commands do; `model.train()` alone changes nothing.
    pretrained: a folder or a hub id; None is the tiny model shipped in the package.
    device: "auto" takes a GPU if there is one. dtype: "auto" is bfloat16 on a GPU,
    float32 on a CPU. quantize: "int8" or "nf4" quantise the blocks' Linears as they are
    read; a GPTQ checkpoint is dequantised, or with "packed" left in 4 bits. peft:
    folder or hub id of a LoRA adapter, which is merged into the weights, before they
    are quantised. Raises FileNotFoundError, ValueError or ImportError before weights
    are read.
    """
    target = pick_device(device)
    precision = pick_dtype(dtype, target)
    check_quantize(quantize)
    if peft is not None and quantize == "packed":
        raise ValueError(
            f"peft={str(peft)!r} cannot be merged into weights that stay packed: leave "
            "quantize=packed out"
        )
    folder = resolve(pretrained, revision)
    config = read_config(folder)
    family = FAMILIES[config.family]
    files = {family.our_name(name): path for name, path in tensor_files(folder).items()}
    special = special_tokens(folder, config)
    with torch.device("meta"):
        model = family.module(config)
    model.special_tokens = special
    model.origin = read_origin(folder, read_json(folder / "config.json"), config)
    adapter = None if peft is None else Adapter(resolve(peft, option="peft"), model)
    model.quantization = load_weights(
        model,
        files,
        device=target,
        dtype=precision,
        source=folder,
        quantize=quantize,
        blocks=family.blocks,
        adapter=adapter,
        stored_name=family.stored_name,
    )
    return model.eval().requires_grad_(False)


def save_model(model: LLaDA, folder: Path, extra_config: Mapping[str, Any] | None = None) -> None:
    """Write config.json and model.safetensors in the published layout of the model's
    family; extra_config: further keys of config.json.

    Of a loaded model also what its checkpoint says beside the weights (origin.py): the
    other keys of its config.json, the code that these name, and generation_config.json.
    """
    if (record := quantization_of(model)) and record.fingerprint:
        raise ValueError(
            f"a model in {record.method} is not saved: save the model that it was loaded from, "
            "and quantise at load"
        )
    check_present(model, "a checkpoint")
    folder.mkdir(parents=True, exist_ok=True)
    family = FAMILIES[model.config.family]
    state: dict[str, Tensor] = {
        family.stored_name(name): tensor.detach().cpu().contiguous()
        for name, tensor in model.state_dict().items()
    }
    save_tensors(state, folder / "model.safetensors")
    write_files(model, folder)
    text = json.dumps({**config_of(model), **(extra_config or {})}, indent=1, sort_keys=True)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")
