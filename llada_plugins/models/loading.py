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
from llada_plugins.files.tensors import open_tensors, save_tensors

from .compiling import check_compile
from .families import FAMILIES, with_attention
from .folder import read_config, resolve, special_tokens, tensor_files
from .layout import Layout
from .llada import LLaDA
from .llada_config import Attention, LLaDAConfig
from .lora import Adapter
from .origin import config_of, read_origin, write_files
from .placement import pick_device, pick_dtype
from .quantization import check_quantize, quantization_of
from .scaled_linear import check_device
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
    compile: str = "auto",
    attention: Attention | None = None,
) -> LLaDA:
    """A LLaDA model, ready for inference: called with ids (B, L) it returns logits (B, L, V).

    Its weights are frozen, so that nothing keeps a graph: `model.requires_grad_(True)`
    lets them train, as the training commands do; `model.train()` alone changes nothing.
    pretrained: a folder or a hub id; None is the tiny model shipped in the package.
    device: "auto" takes a GPU if there is one. dtype: "auto" is bfloat16 on a GPU,
    float32 on a CPU. quantize: "int8", "int8_dynamic", "fp8" or "nf4" quantise the blocks'
    Linears as they are read (quantization.py); a GPTQ checkpoint is dequantised, or with
    "packed" left in 4 bits. peft:
    folder or hub id of a LoRA adapter, which is merged into the weights, before they
    are quantised. compile: are layers compiled; "auto" does so on a GPU once enough
    forwards are in sight (models/compiling.py), "on" everywhere, "off" nowhere.
    attention: "full" or "block_causal", of a family whose checkpoints may have either and
    do not say which. Raises FileNotFoundError, ValueError or ImportError before weights are read.
    """
    target = pick_device(device)
    precision = pick_dtype(dtype, target)
    check_quantize(quantize)
    check_device(quantize, target, precision)
    check_compile(compile, target)
    if peft is not None and quantize == "packed":
        raise ValueError(
            f"peft={str(peft)!r} cannot be merged into weights that stay packed: leave "
            "quantize=packed out"
        )
    folder = resolve(pretrained, revision)
    read = read_config(folder)
    config = with_attention(read, attention, str(folder))
    family = FAMILIES[config.family]
    files = tensor_files(folder)
    spare = _tied_head(config, files, family.layout)
    special = special_tokens(folder, config)
    with torch.device("meta"):
        model = family.module(config)
    model.special_tokens = special
    model.origin = read_origin(folder, read_json(folder / "config.json"), read)
    adapter = None if peft is None else Adapter(resolve(peft, option="peft"), model, family.layout)
    if adapter is not None:
        model.config = adapter.with_blocks(config)
    model.quantization = load_weights(
        model,
        {name: path for name, path in files.items() if name not in spare},
        device=target,
        dtype=precision,
        source=folder,
        quantize=quantize,
        blocks=family.blocks,
        adapter=adapter,
        unread=spare,
        layout=family.layout,
    )
    model.compile_layers(compile)
    return model.eval().requires_grad_(False)


def _tied_head(config: LLaDAConfig, files: Mapping[str, Path], layout: Layout) -> set[str]:
    """The stored head of a model whose config ties it to the embedding; none, for most.

    Raises ValueError where the two differ: then one of them would be lost.
    """
    head, embedding = map(
        layout.stored_name, ("model.transformer.ff_out.weight", "model.transformer.wte.weight")
    )
    if not config.weight_tying or head not in files or embedding not in files:
        return set()
    with open_tensors(files[head]) as one, open_tensors(files[embedding]) as other:
        first, second = one.get_tensor(head), other.get_tensor(embedding)
    if not torch.equal(first, second):
        raise ValueError(
            f"{files[head]}: the config ties the head to the embedding, but {head} is not equal to "
            f"{embedding}: set tie_word_embeddings (weight_tying) to false if the head is its own, "
            "or remove it"
        )
    return {head}


def save_model(model: LLaDA, folder: Path, extra_config: Mapping[str, Any] | None = None) -> None:
    """Write config.json and model.safetensors in the published layout of the model's family.

    Of a loaded model also what its checkpoint says beside the weights (origin.py): the
    other keys of its config.json, the code that these name, and generation_config.json.
    extra_config: further keys of config.json.
    """
    check_saved(model)
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(stored_tensors(model), folder / "model.safetensors")
    write_files(model, folder)
    text = json.dumps({**config_of(model), **(extra_config or {})}, indent=1, sort_keys=True)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")


def check_saved(model: LLaDA) -> None:
    """Raise ValueError where a model cannot be saved: quantised, or its weights elsewhere."""
    if (record := quantization_of(model)) and record.fingerprint:
        raise ValueError(
            f"a model in {record.method} is not saved: save the model that it was loaded from, "
            "and quantise at load"
        )
    check_present(model, "a checkpoint")


def stored_tensors(
    model: LLaDA, state_dict: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """The model's tensors by their stored names, on the CPU; state_dict: in place of its own."""
    layout = FAMILIES[model.config.family].layout
    return {
        piece.stored: piece.of(tensor.detach()).cpu().contiguous()
        for name, tensor in (state_dict or model.state_dict()).items()
        for piece in layout.pieces(name, tensor)
    }
