"""Who an engine is: its fingerprint, and what result files say of it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llada_plugins.files.installation import made_by
from llada_plugins.methods.table import METHODS
from llada_plugins.models.quantization import num_parameters, quantization_of

from .config import LIKELIHOOD, NOT_IDENTITY

if TYPE_CHECKING:
    from .engine import Engine

ENDS = 1 << 22  # bytes at either end of a file that its digest reads


def fingerprint(engine: Engine) -> str:
    """What determines the engine's answers, as one line of JSON; the checkpoint by its content.

    The code that makes them is part of it: what one version has answered is not what another
    would.
    """
    options = asdict(engine.config)
    if engine.config.tokenizer is not None:  # a folder by its content, as the checkpoint
        options["tokenizer"] = digest(engine.folders.tokenizer)
    identity = {
        "method": engine.method,
        "checkpoint": digest(engine.folder),
        **_adapter(engine),
        "device": engine.model.device.type,
        "made_by": made_by(),
        "quantization": _quantization(engine),
        **{name: value for name, value in options.items() if name not in NOT_IDENTITY},
        "method_options": {
            **asdict(engine.method_options),
            **{name: digest(folder) for name, folder in engine.folders.add_ons.items()},
        },
        "sampler": _sampler(engine),
    }
    return json.dumps(identity, sort_keys=True)


def info(engine: Engine) -> dict[str, Any]:
    """For result files: what was evaluated, and how."""
    policy = engine.prepared.policy
    return {
        "method": engine.method,
        **of_model(engine),
        "checkpoint_digest": digest(engine.folder),
        **_adapter(engine),
        "sampler": _sampler(engine),
        "confidence_source": engine.common.source,
        "policy": None if policy is None else policy.value,
        "method_options": asdict(engine.method_options),
        "likelihood": METHODS[engine.method].likelihood,
        "overlong": engine.config.overlong,
        **{name: getattr(engine.config, name) for name in LIKELIHOOD},
    }


def of_model(engine: Engine) -> dict[str, Any]:
    """Which model was evaluated, as far as no file has to be read for it."""
    return {
        "checkpoint": engine.folder.name,
        "model_num_parameters": num_parameters(engine.model),
        "quantization": _quantization(engine),
        "model_dtype": str(engine.model.dtype),
        "chat_template": engine.chat_template,
    }


def digest(folder: Path) -> str:
    """A digest of a checkpoint, add-ons beside it included.

    It reads sizes and both ends of the weight files (all of a small one), the JSON files,
    the templates and the merges of a tokenizer.
    """
    found = hashlib.sha256()
    names = ("*.safetensors", "*.json", "*.jinja", "merges.txt")
    for path in sorted(path for name in names for path in folder.rglob(name)):
        size = path.stat().st_size
        found.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            found.update(file.read(ENDS))
            file.seek(max(0, size - ENDS))
            found.update(file.read())
    return found.hexdigest()[:16]


def _adapter(engine: Engine) -> dict[str, str]:
    """The LoRA adapter by its content, where there is one."""
    return {"peft_digest": digest(engine.adapter)} if engine.adapter else {}


def _quantization(engine: Engine) -> str | None:
    """How the weights are kept, with the version of the package that does it."""
    record = quantization_of(engine.model)
    return record.method if record else None


def _sampler(engine: Engine) -> dict[str, Any]:
    """The options of every request; gen_length is None where it is each task's."""
    return {**asdict(engine.common), "gen_length": engine.given.get("gen_length")}
