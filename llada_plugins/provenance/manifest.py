"""The manifest beside a result: what made it, to be read by people and by `rerun`.

Nothing of the environment is in it but what is named here.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from llada_plugins.engine.engine import Engine
from llada_plugins.engine.identity import of_model
from llada_plugins.files.atomic import write_whole
from llada_plugins.files.foreign_json import load
from llada_plugins.files.json_files import OBJECT, TEXT, check, read_json, record, whole

from .origins import ends
from .state import identity, state

FORMAT = 1
FOLDER = "manifests"  # of them, in a run of OpenCompass
_KIND = record(
    {"format": whole(1, FORMAT), "id": TEXT, "harness": TEXT, "method": TEXT},
    {"asked": OBJECT, "state": OBJECT, "run": OBJECT},
)


class Recorder:
    """Takes down what a model is when it is made; later, what was done with it.

    writes: False in a process that will ask for no manifest, and so need not look.
    """

    def __init__(self, engine: Engine, *, writes: bool = True) -> None:
        self.engine = engine
        self.begin()
        self.wanted = writes and engine.config.manifest != "off"
        self.state = state(engine.asked, engine.folders) if self.wanted else {}

    def begin(self) -> None:
        """The run begins now, of a model that may have been asked before."""
        self.began = time.perf_counter()
        self.started = datetime.now(timezone.utc).isoformat(timespec="seconds")

    def manifest(
        self, harness: str, options: Mapping[str, Any], run: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The whole of it. options: with their origins. run: what the harness was asked."""
        engine = self.engine
        return {
            "format": FORMAT,
            "id": identity(self.state, [harness, run]),
            "harness": harness,
            "method": engine.method,
            "preset": engine.config.preset,
            "pretrained": engine.config.pretrained,
            "state": self.state,
            "asked": plain(engine.asked.explicit),
            "options": plain(options),
            "model": of_model(engine),
            "template": template_digest(engine),
            "ends_of_answers": ends(engine),
            "run": plain(run),
            "started": self.started,
            "wall_seconds": round(time.perf_counter() - self.began, 3),
            "processes": int(os.environ.get("WORLD_SIZE", "1")),
        }


def template_digest(engine: Engine) -> str | None:
    """SHA-256 of the chat template's text, as lm-eval's results have it; None without one."""
    found = engine.tokenizer.chat_template
    if isinstance(found, dict):
        found = found.get(engine.chat_template or "default")
    return hashlib.sha256(found.encode()).hexdigest() if found else None


def plain(value: Any) -> Any:
    """The value as JSON has it."""
    return json.loads(json.dumps(value, default=str))


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest in a file; of a results file of lm-eval, the one in its config.

    Raises FileNotFoundError, or ValueError in one line.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file: give a manifest or lm-eval's results file")
    raw = read_json(path)
    inner = raw.get("config", {})
    if isinstance(inner, dict) and isinstance(inner.get("manifest"), dict):
        raw = inner["manifest"]
    elif "results" in raw and "id" not in raw:
        raise ValueError(f"{path} has no manifest: it was made without one, or by another model")
    check(path, _KIND, raw)
    return raw


def place_in_run(run: Path, model: str) -> Path:
    """Where the manifest of a model, by its abbr, stands in a run of OpenCompass."""
    return run / FOLDER / f"{model}.json"


def stored(path: Path) -> dict[str, Any]:
    """What a run left in that place, unchecked; {} where it left nothing."""
    return dict(load(path)) if path.is_file() else {}


def write_manifest(path: Path, manifest: Mapping[str, Any]) -> None:
    """Write one whole, in the place of what was there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(manifest, indent=1, ensure_ascii=False))


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Alone among processes that change the file at `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
