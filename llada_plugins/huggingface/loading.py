"""from_pretrained: a checkpoint by our own strict loader, placed as transformers' arguments ask."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace as with_fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from torch import nn

from llada_plugins.files.json_files import read_json
from llada_plugins.models.families import FAMILIES
from llada_plugins.models.folder import resolve, special_tokens, stored_dtype
from llada_plugins.models.llada import LLaDA
from llada_plugins.models.llada_config import Attention
from llada_plugins.models.loading import load_model
from llada_plugins.models.placement import DTYPES

from .configs import OF_A_RUN, CheckpointConfig

HUB = ("cache_dir", "force_download", "local_files_only", "token", "proxies")
# arguments that change nothing here: there is one way to load, and no code but ours is run
INERT = {
    "_from_auto",
    "_commit_hash",
    "_fast_init",
    "code_revision",
    "low_cpu_mem_usage",
    "offload_state_dict",
    "resume_download",
    "trust_remote_code",
    "weights_only",
}
SPREAD = ("auto", "balanced", "balanced_low_0", "sequential")


class Placement(NamedTuple):
    """Where the weights go."""

    device_map: Any = None  # as transformers takes it; None = the CPU
    max_memory: Mapping[Any, Any] | None = None
    offload_folder: str | None = None
    offload_buffers: bool = False


class Request(NamedTuple):
    """What from_pretrained is asked for, apart from the config."""

    folder: Path
    dtype: torch.dtype | str | None
    placement: Placement
    quantize: str | None
    attention: Attention | None
    adapter: str | None  # folder of an adapter beside the weights, or hub id
    output_loading_info: bool


def parse(pretrained: str | Path, arguments: Mapping[str, Any]) -> Request:
    """The arguments of from_pretrained; ValueError on those that would have no effect."""
    rest = {name: value for name, value in arguments.items() if name not in INERT}
    hub = {name: rest.pop(name) for name in HUB if name in rest}
    placement = Placement(**{name: rest.pop(name) for name in Placement._fields if name in rest})
    dtype = rest.pop("dtype", None) or rest.pop("torch_dtype", None)
    rest.pop("torch_dtype", None)
    revision, quantize = rest.pop("revision", None), rest.pop("quantize", None)
    attention = rest.pop("attention", None)
    adapter = (rest.pop("adapter_kwargs", None) or {}).get("_adapter_model_path")
    loading_info = rest.pop("output_loading_info", False)
    if rest.pop("use_safetensors", None) is False:
        raise ValueError("use_safetensors=False: only safetensors are read, never pickles")
    if rest.get("quantization_config") is not None:
        raise ValueError(
            "quantization_config is transformers' own way to quantise: give quantize='int8' or "
            "'nf4', which quantises the blocks as they are read"
        )
    if refused := sorted(name for name, value in rest.items() if value not in (None, False, "")):
        raise ValueError(
            f"from_pretrained of this class has no argument {', '.join(refused)}; it takes dtype, "
            "revision, quantize, attention, output_loading_info, "
            f"{', '.join((*Placement._fields, *HUB))}"
        )
    folder = resolve(pretrained, None if Path(pretrained).is_dir() else revision, download=hub)
    return Request(folder, dtype, placement, quantize, attention, adapter, bool(loading_info))


def load(request: Request, config: CheckpointConfig) -> LLaDA:
    """The network of a checkpoint, on one device or on the CPU to be spread.

    Fields that config changes against the checkpoint's config.json hold where they name
    tokens; ValueError where they would change the network.
    """
    network = load_model(
        request.folder,
        device=_device(request.placement.device_map),
        dtype=_dtype(request.dtype, request.folder),
        quantize=request.quantize,
        attention=request.attention,
    )
    _take_changes(network, config, request.folder)
    return network.requires_grad_(request.quantize is None)


def spread(model: nn.Module, network: LLaDA, placement: Placement) -> Mapping[str, Any] | None:
    """Give the modules to the devices of a map, with accelerate's hooks; None where one has all."""
    device_map = placement.device_map
    if device_map is None or _device_of_all(device_map) is not None:
        return None
    from accelerate import dispatch_model, infer_auto_device_map
    from accelerate.utils import get_balanced_memory

    blocks = sorted({type(block).__name__ for block in network.caching_blocks})
    if isinstance(device_map, str):
        memory = placement.max_memory
        if device_map != "sequential":
            memory = get_balanced_memory(
                model,
                max_memory=memory,
                no_split_module_classes=blocks,
                dtype=network.dtype,
                low_zero=device_map == "balanced_low_0",
            )
        device_map = infer_auto_device_map(
            model, max_memory=memory, no_split_module_classes=blocks, dtype=network.dtype
        )
    dispatch_model(
        model,
        device_map,
        offload_dir=placement.offload_folder,
        offload_buffers=placement.offload_buffers,
    )
    return device_map


def _device_of_all(device_map: Any) -> torch.device | None:
    """The device that a map gives everything; None where it spreads."""
    if isinstance(device_map, Mapping):
        values = set(device_map.values())
        return _device_of_all(values.pop()) if len(values) == 1 else None
    if isinstance(device_map, int):
        return torch.device("cuda", device_map)
    if device_map in (*SPREAD, "disk", "meta"):
        return None
    return torch.device(device_map)


def _device(device_map: Any) -> str:
    """The device that the weights are read to."""
    found = None if device_map is None else _device_of_all(device_map)
    return "cpu" if found is None else str(found)


def _dtype(asked: torch.dtype | str | None, folder: Path) -> str:
    """The dtype by its name in DTYPES.

    asked: "auto" is the one that config.json states, else the stored one. None is
    transformers' own default: float32 before version 5, "auto" since.
    """
    if asked is None:
        asked = "float32" if transformers.__version__.startswith("4.") else "auto"
    if asked == "auto":
        raw = read_json(folder / "config.json")
        asked = raw.get("dtype") or raw.get("torch_dtype") or stored_dtype(folder)
    name = str(asked).removeprefix("torch.")
    if name not in DTYPES:
        raise ValueError(f"dtype must be auto or one of {', '.join(DTYPES)}, got {asked!r}")
    return name


def _take_changes(network: LLaDA, config: CheckpointConfig, folder: Path) -> None:
    """Take over what config changes against the checkpoint's config.json."""
    raw = read_json(folder / "config.json")
    stated = type(config).from_dict(raw).to_dict()
    changed = {
        name: value
        for name, value in config.to_dict().items()
        if name not in OF_A_RUN and stated.get(name) != value
    }
    if not changed:
        return
    read = FAMILIES[network.config.family].read_config({**raw, **changed}, "config")
    tokens: dict[str, Any] = {
        "mask_token_id": read.mask_token_id,
        "eos_token_id": read.eos_token_id,
        "more_eos_token_ids": read.more_eos_token_ids,
        "pad_token_id": read.pad_token_id,
    }
    of_file = FAMILIES[network.config.family].read_config(raw, "config")
    if with_fields(of_file, **tokens) != read:
        raise ValueError(
            f"{', '.join(sorted(changed))}: not as in {folder / 'config.json'}, and the weights "
            "there are for that: edit the file if it is wrong"
        )
    if tokens == {name: getattr(of_file, name) for name in tokens}:
        return
    network.config = with_fields(network.config, **tokens)
    network.special_tokens = special_tokens(folder, network.config)
