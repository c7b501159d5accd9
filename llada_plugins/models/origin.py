"""What a checkpoint's folder says beside its weights, kept for whatever is saved from them.

The published code that config.json names (auto_map) is carried along as bytes and never
run: with it transformers' trust_remote_code loads what was trained as it loads the
checkpoint itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .families import FAMILIES

if TYPE_CHECKING:
    from .llada import LLaDA
    from .llada_config import LLaDAConfig

NOT_KEPT = ("quantization_config",)  # weights are saved plain, whatever they were
DTYPES = ("torch_dtype", "dtype")  # what transformers has called the dtype of the weights
GENERATION = "generation_config.json"


class Origin(NamedTuple):
    """What is kept of a folder."""

    raw: dict[str, Any]  # its config.json
    read: LLaDAConfig  # what was made of that
    files: dict[str, bytes]  # further files by name


def read_origin(folder: Path, raw: Mapping[str, Any], read: LLaDAConfig) -> Origin:
    """What is to be kept of a checkpoint's folder."""
    modules = _modules(raw.get("auto_map"))
    code = sorted(folder.glob("*.py")) if modules else []
    kept = [path for path in (*code, folder / GENERATION) if path.is_file()]
    raw, repository = dict(raw), _hub_id(folder)
    if repository and modules - {path.stem for path in code}:  # a download has no code
        raw["auto_map"] = _of_repository(raw["auto_map"], repository)
    return Origin(raw, read, {path.name: path.read_bytes() for path in kept})


def config_of(model: LLaDA) -> dict[str, Any]:
    """The model's config.json: of a loaded one its checkpoint's, but for what has changed."""
    write = FAMILIES[model.config.family].write_config
    published = write(model.config)
    if model.origin is None:
        return published
    raw, read = model.origin.raw, write(model.origin.read)
    changed = {name: value for name, value in published.items() if value != read.get(name)}
    dtype = str(model.dtype).removeprefix("torch.")
    changed |= {name: dtype for name in DTYPES if raw.get(name) is not None}
    gone = read.keys() - published.keys()
    return {
        name: value
        for name, value in {**published, **raw, **changed}.items()
        if name not in gone and name not in NOT_KEPT
    }


def write_files(model: LLaDA, folder: Path) -> None:
    """Write the further files of the checkpoint that the model was loaded from."""
    for name, content in model.origin.files.items() if model.origin else ():
        (folder / name).write_bytes(content)


def _modules(auto_map: Any) -> set[str]:
    """The modules in the folder that an auto_map names: {kind: "module.Class"}, or lists of it."""
    return {name.partition(".")[0] for name in _names(auto_map) if "--" not in name}


def _names(auto_map: Any) -> list[str]:
    values = list(auto_map.values()) if isinstance(auto_map, dict) else []
    flat = [name for value in values for name in (value if isinstance(value, list) else [value])]
    return [name for name in flat if isinstance(name, str)]


def _of_repository(auto_map: dict[str, Any], repository: str) -> dict[str, Any]:
    """As transformers writes it for code that stays where it is: "repository--module.Class"."""

    def named(value: Any) -> Any:
        if isinstance(value, list):
            return [named(each) for each in value]
        return f"{repository}--{value}" if isinstance(value, str) and "--" not in value else value

    return {kind: named(value) for kind, value in auto_map.items()}


def _hub_id(folder: Path) -> str | None:
    """The hub id of a folder of the Hugging Face cache, models--OWNER--NAME/snapshots/COMMIT."""
    found = re.fullmatch(r"models--(.+?)--(.+)", folder.parent.parent.name)
    return "/".join(found.groups()) if found and folder.parent.name == "snapshots" else None
