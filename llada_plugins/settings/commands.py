"""The exact command with which each harness runs a preset."""

from __future__ import annotations

import json
import shlex
from typing import Any

from .table import Preset

CONFIGS = '"$(python -m llada_plugins.configs)"'  # a shell puts the folder there
ROWS = 8  # of a batch; changes no answer


def lm_eval_arguments(preset: Preset) -> dict[str, Any] | None:
    """What lm-eval is told, under the names of its `--config` files; None without such a task."""
    task = preset.task.lm_eval
    if task is None:
        return None
    asked: dict[str, Any] = {
        "model": "llada",
        "model_args": {"preset": preset.name},
        "tasks": [task.task],
        "num_fewshot": preset.shots,
        "gen_kwargs": gen_kwargs(preset) or None,
        "apply_chat_template": preset.chat or None,
        "confirm_run_unsafe_code": preset.task.executes_code or None,
        "batch_size": ROWS,
        "output_path": f"outputs/{preset.name.replace('/', '_')}",
        "log_samples": True,
    }
    return {name: value for name, value in asked.items() if value is not None}


def gen_kwargs(preset: Preset) -> dict[str, Any]:
    """What has to be said beside the model's options, because a task's own would go before."""
    found: dict[str, Any] = {}
    if preset.until is not None:
        found["until"] = list(preset.until)
    if preset.options.get("temperature"):
        found |= {"do_sample": True, "temperature": preset.options["temperature"]}
    return found


def lm_eval_command(preset: Preset) -> str | None:
    """The command for lm-eval; None where it does not have the task."""
    asked = lm_eval_arguments(preset)
    if asked is None:
        return None
    words = ["lm_eval"]
    for name, value in asked.items():
        words.append(f"--{name}")
        if value is not True:
            words.append(_word(name, value))
    setting = "HF_ALLOW_CODE_EVAL=1 " if preset.task.executes_code else ""
    return setting + " ".join(words)


def opencompass_command(preset: Preset) -> str | None:
    """The command for OpenCompass; None where it does not have the task."""
    if preset.task.opencompass is None:
        return None
    return f"LLADA_PRESET={preset.name} opencompass {CONFIGS}/eval_llada_published.py"


def _word(name: str, value: Any) -> str:
    """The value of a flag, as a shell takes it."""
    if name == "model_args":
        return ",".join(f"{key}={each}" for key, each in value.items())
    if name == "tasks":
        return ",".join(value)
    return shlex.quote(json.dumps(value) if isinstance(value, dict) else str(value))
