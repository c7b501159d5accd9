"""lm-eval's results file as runs, a task each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llada_plugins.engine.config import LIKELIHOOD
from llada_plugins.files.json_files import OBJECT, read_json, record
from llada_plugins.settings.table import Preset, all_presets

from .runs import Run

_KIND = record({"results": OBJECT, "config": OBJECT, "n-shot": OBJECT, "n-samples": OBJECT})


def read(path: Path) -> list[tuple[Run, list[Preset]]]:
    """The tasks in a results file of which something is published, each with its presets."""
    raw = read_json(path, _KIND)
    found = []
    for task in raw["results"]:
        presets = [
            preset
            for preset in all_presets().values()
            if preset.task.lm_eval and preset.task.lm_eval.task == task
        ]
        if presets:
            own = presets[0].task.lm_eval
            assert own is not None
            found.append((_run(raw, task, own.metric), presets))
    return found


def _run(raw: Mapping[str, Any], task: str, metric: str) -> Run:
    config, parts = raw["config"], _parts(raw, task)
    manifest = config.get("manifest", {})
    versions = {
        name.replace("-", "_"): version
        for name, version in manifest.get("state", {}).get("versions", {}).items()
    }
    counts = [raw["n-samples"][part]["effective"] for part in parts if part in raw["n-samples"]]
    shots = {raw["n-shot"].get(part) for part in parts} - {None}
    run = Run(
        harness="lm_eval",
        task=task,
        model=str(manifest.get("pretrained") or config.get("checkpoint")),
        preset=manifest.get("preset"),
        options=_options(config, manifest, parts),
        questions=sum(counts) or None,
        shots=shots.pop() if len(shots) == 1 else None,
        chat=raw.get("chat_template") is not None,
        template=raw.get("chat_template_sha"),
        dtype=str(config.get("model_dtype", "")).removeprefix("torch.") or None,
        versions={"lm_eval": raw.get("lm_eval_version", ""), **versions},
    )
    return run.scored(raw["results"][task], metric, 100)


def _parts(raw: Mapping[str, Any], task: str) -> list[str]:
    """The tasks of a group that have samples; of a plain task itself."""
    inner = raw.get("group_subtasks", {}).get(task) or []
    return [part for each in inner for part in _parts(raw, each)] or [task]


def _options(
    config: Mapping[str, Any], manifest: Mapping[str, Any], parts: list[str]
) -> dict[str, Any]:
    """Of the engine, with what the requests of these tasks were decoded with."""
    of_engine = {name: each["value"] for name, each in manifest.get("options", {}).items()}
    estimate = {name: config[name] for name in LIKELIHOOD if name in config}
    sampler = dict(config.get("sampler") or {})
    several = [one for part in parts for one in config.get("samplers", {}).get(part, [])]
    if several:
        sampler = several[0]
    return {**of_engine, **estimate, **sampler}
