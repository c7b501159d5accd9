"""The manifest of a model in a run of OpenCompass: RUN/manifests/ABBR.json, of all its processes.

OpenCompass resumes by file name alone. So what stands there is held against the model that is
about to go on: answers of other options, or to a data set that was cut or asked otherwise,
are refused before the first is given.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mmengine import dist
from opencompass.utils import dataset_abbr_from_cfg, model_abbr_from_cfg

from llada_plugins.engine.config import NOT_IDENTITY
from llada_plugins.engine.engine import Engine
from llada_plugins.engine.request import Completion
from llada_plugins.files.installation import DECIDING
from llada_plugins.provenance.manifest import (
    Recorder,
    locked,
    place_in_run,
    plain,
    stored,
    write_manifest,
)
from llada_plugins.provenance.opencompass_asked import asked_of, asked_otherwise
from llada_plugins.provenance.origins import option_origins
from llada_plugins.provenance.state import differences

from .opencompass_tasks import infer_task, last_cut, uncut_name
from .statistics import Totals, statistics

# sections of a state that may differ between processes of one run, but for versions of DECIDING
MAY_DIFFER = ("versions", "git_commit", "device")


class TaskManifest:
    """What a process of OpenCompass takes down of its model; nothing outside of a task."""

    def __init__(self, engine: Engine, entry: Mapping[str, Any]) -> None:
        """entry: what the model's entry has beside the engine's options."""
        self._entry = plain(entry)
        self._totals: dict[str, Totals] = {}
        self._path: Path | None = None
        frame = infer_task()
        writes = frame is not None and dist.is_main_process()
        self._recorder = Recorder(engine, writes=writes)
        if frame is None or not self._recorder.wanted:
            return
        self._model = model = frame.f_locals["model_cfg"]
        run = Path(frame.f_locals["self"].work_dir)
        name = model_abbr_from_cfg(model)
        self._predictions = run / "predictions" / name
        self._path = place_in_run(run, name)
        self._begin(frame.f_locals["dataset_cfgs"])

    def add(self, completions: Iterable[Completion]) -> None:
        """Answers to the data set that is asked; to be called after every batch."""
        frame = infer_task() if self._path else None
        if frame is None:
            return
        dataset = frame.f_locals["self"].dataset_cfg
        name = dataset_abbr_from_cfg(dataset)
        if name not in self._totals:
            self._totals[name] = self._earlier(name)
        totals = self._totals[name]
        for completion in completions:
            totals.add(statistics(completion))
        seconds = round(time.perf_counter() - self._recorder.began, 3)
        decoded = {"decoding": totals.info(), "seconds": seconds}
        part = {**part_of(dataset, self._model), **decoded}
        self._update(name, part)

    def _begin(self, datasets: Iterable[Mapping[str, Any]]) -> None:
        assert self._path is not None
        parts = {dataset_abbr_from_cfg(each): part_of(each, self._model) for each in datasets}
        with locked(self._path):
            before = stored(self._path)
            kept = self._kept(before, parts) if before else {}
            options = option_origins(self._recorder.engine, self._told())
            run = {"entry": self._entry, "model": self._path.stem}
            found = self._recorder.manifest("OpenCompass", options, run)
            if before and kept:
                found["started"] = before["started"]
            found["parts"] = {**kept, **{name: parts[name] for name in parts if name not in kept}}
            write_manifest(self._path, found)

    def _kept(
        self, before: Mapping[str, Any], parts: Mapping[str, Mapping[str, Any]]
    ) -> dict[str, Any]:
        """What stays of the parts that stand there; ValueError where answers to them would mix."""
        changed = differences(
            answering(before["state"], before["run"]["entry"]),
            answering(plain(self._recorder.state), self._entry),
        )
        if not self._predictions.is_dir() or not any(self._predictions.iterdir()):
            return {} if changed else fitting(before["parts"], parts)
        if changed:
            raise ValueError(
                f"{self._predictions} holds answers of another model or version, or of other "
                f"options ({'; '.join(changed)}), and OpenCompass would keep them: give this model "
                "another abbr, or the run another work dir"
            )
        assert self._path is not None
        check_parts(before["parts"], parts, self._path)
        check_asked(before["parts"], parts)
        return dict(before["parts"])

    def _update(self, name: str, part: Mapping[str, Any]) -> None:
        assert self._path is not None
        with locked(self._path):
            found = stored(self._path)
            if not found:  # somebody removed the run's folder
                return
            parts = found["parts"] = {**found["parts"], name: part}
            found["wall_seconds"] = sum(each.get("seconds", 0.0) for each in parts.values())
            write_manifest(self._path, found)

    def _earlier(self, name: str) -> Totals:
        """What a run before a resumed one has decoded of a part."""
        assert self._path is not None
        sums = stored(self._path).get("parts", {}).get(name, {}).get("decoding", {})
        return Totals(**{key: each for key, each in sums.items() if key in vars(Totals())})

    def _told(self) -> dict[str, str]:
        return dict.fromkeys(self._recorder.engine.asked.explicit, "config file")


def answering(state: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a state that answers depend on."""
    kept = {name: value for name, value in state.items() if name not in MAY_DIFFER}
    options = {name: value for name, value in state["options"].items() if name not in NOT_IDENTITY}
    versions = {name: state["versions"].get(name) for name in DECIDING}
    return {**kept, "options": options, "versions": versions, "entry": entry}


def part_of(dataset: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, Any]:
    """Which rows of which data set an entry is, and how the model of an entry is asked them."""
    rows = dataset["reader_cfg"].get("test_range")
    return {
        "data": uncut_name(dataset),
        "rows": None if rows is None else str(rows),
        "asked": asked_of(dataset, model),
    }


def fitting(
    before: Mapping[str, Mapping[str, Any]], now: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """The earlier parts that are cut as the data sets are now."""
    sizes = {part["data"]: _size(part) for part in now.values()}
    return {
        name: part
        for name, part in before.items()
        if sizes.get(part["data"], _size(part)) == _size(part)
    }


def check_parts(
    before: Mapping[str, Mapping[str, Any]], now: Mapping[str, Mapping[str, Any]], path: Path
) -> None:
    """Raise ValueError where a data set is cut otherwise than when the run began.

    OpenCompass would put the answers to one part's rows beside those of another.
    """
    sizes: dict[str, tuple[str, int]] = {}
    for name, part in before.items():
        if size := _size(part):
            sizes.setdefault(part["data"], (name, size))
    for name, part in now.items():
        old = before.get(name)
        if old is not None and old["rows"] != part["rows"]:
            raise ValueError(_recut(name, old["rows"], part["rows"], path))
        other, size = sizes.get(part["data"], (name, _size(part)))
        if _size(part) not in (None, size):
            raise ValueError(_recut(other, before[other]["rows"], part["rows"], path))


def check_asked(
    before: Mapping[str, Mapping[str, Any]], now: Mapping[str, Mapping[str, Any]]
) -> None:
    """Raise ValueError where a data set is asked otherwise than when the run began.

    OpenCompass would keep the earlier answers, of a file that is not complete as well.
    """
    for part in now.values():
        changed = asked_otherwise(before.values(), part["data"], part["asked"])
        if changed:
            raise ValueError(
                f"{part['data']} was asked otherwise when this run began ({'; '.join(changed)}), "
                "and OpenCompass would keep those answers: give the data set another abbr, or "
                "the run another work dir"
            )


def _size(part: Mapping[str, Any]) -> int | None:
    """Rows of a part, as its last range says; None of a data set that is whole."""
    cut = last_cut(part["rows"])
    return None if cut is None else len(cut)


def _recut(name: str, before: str | None, now: str | None, path: Path) -> str:
    return (
        f"{path}: {name} was rows {before or 'all'} when this run began, and is cut into "
        f"{now or 'all'} now: resume with the number of workers and splits that it began with, or "
        "begin another run"
    )
