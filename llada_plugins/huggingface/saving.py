"""save_pretrained: the published layout of the model's family, in shards where it is large."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import split_torch_state_dict_into_shards
from torch import Tensor
from transformers import GenerationConfig

from llada_plugins.files.tensors import save_tensors
from llada_plugins.models.llada import LLaDA
from llada_plugins.models.loading import check_saved, stored_tensors
from llada_plugins.models.origin import config_of, write_files

SAVED = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")


def save(
    network: LLaDA,
    folder: Path,
    *,
    changed: Mapping[str, Any],
    state_dict: Mapping[str, Tensor] | None,
    max_shard_size: int | str,
    generation_config: GenerationConfig | None,
) -> None:
    """Write the checkpoint: what it was loaded with, but for what has changed.

    changed: fields of config.json. state_dict: tensors by the network's names, in place of
    its own. generation_config: None keeps the file that the checkpoint had.
    """
    check_saved(network)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = stored_tensors(network, state_dict)
    _write_shards(tensors, folder, max_shard_size)
    write_files(network, folder)
    if generation_config is not None:
        generation_config.save_pretrained(folder)
    text = json.dumps({**config_of(network), **changed}, indent=1, sort_keys=True)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")


def _write_shards(tensors: dict[str, Tensor], folder: Path, max_shard_size: int | str) -> None:
    """model.safetensors, or shards and their index; files of an earlier save are taken away."""
    plan = split_torch_state_dict_into_shards(tensors, max_shard_size=max_shard_size)
    index = folder / "model.safetensors.index.json"
    index.unlink(missing_ok=True)
    for name, members in plan.filename_to_tensors.items():
        save_tensors({member: tensors[member] for member in members}, folder / name)
    for path in folder.glob("model*.safetensors"):
        if SAVED.fullmatch(path.name) and path.name not in plan.filename_to_tensors:
            path.unlink()
    if plan.is_sharded:
        record = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        index.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
