"""Entries of one name in an OpenCompass config, whose answers one file would hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from opencompass.utils import dataset_abbr_from_cfg, model_abbr_from_cfg

from .opencompass_tasks import infer_task


def check_names() -> None:
    """Raise ValueError where two entries of the running config have one abbr and are not equal.

    OpenCompass keeps answers by name: those of the second are never asked for where the first
    has some, and two that run at once write into one file.
    """
    frame = infer_task()
    if frame is None:
        return
    dumped = sorted((Path(frame.f_locals["self"].work_dir) / "configs").glob("*.py"))
    if not dumped:
        return
    config = Config.fromfile(dumped[-1], format_python_code=False)
    _check(config.get("models") or [], model_abbr_from_cfg, "models")
    _check(config.get("datasets") or [], dataset_abbr_from_cfg, "datasets")


def _check(
    entries: Sequence[Mapping[str, Any]], abbr: Callable[[Mapping[str, Any]], str], where: str
) -> None:
    seen: dict[str, Mapping[str, Any]] = {}
    for entry in entries:
        name = abbr(entry)
        other = seen.setdefault(name, entry)
        if differing := [key for key in {**other, **entry} if other.get(key) != entry.get(key)]:
            raise ValueError(
                f"two entries of {where} are called {name} and differ in {', '.join(differing)}: "
                "OpenCompass keeps one file for both, so give each an abbr of its own"
            )
