"""Points of a sweep in stock OpenCompass.

A point is the user's config with one of its models under other options. What a killed
run had decoded is taken up again by OpenCompass' own `-r`.
"""

from __future__ import annotations

import copy
import hashlib
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mmengine.config import Config
from opencompass.utils import dataset_abbr_from_cfg, model_abbr_from_cfg

from llada_plugins.engine.config import EngineConfig
from llada_plugins.engine.interval import Interval, wilson
from llada_plugins.files.foreign_json import load
from llada_plugins.methods.table import METHODS
from llada_plugins.options.fields import coerce, names
from llada_plugins.provenance.manifest import place_in_run, stored
from llada_plugins.provenance.opencompass_results import explicit, method_of
from llada_plugins.provenance.rerun import metrics
from llada_plugins.reports.frontier_points import Result, check_points, result_of
from llada_plugins.reports.frontier_runs import Places
from llada_plugins.reports.sweep import Point
from llada_plugins.sampling.config import SamplerConfig


@dataclass(frozen=True, kw_only=True)
class OpenCompass:
    """opencompass on one data set of a config; see `Harness`."""

    config: Path
    method: str
    options: Mapping[str, str]  # of the model, as flags gave them, over those of its entry
    data: str | None = None  # abbr of the data set; None: the config's only one
    abbr: str | None = None  # of the model's entry; None: the only one of the method
    limit: int | None = None
    metric: str | None = None
    name: str = "opencompass"

    @cached_property
    def stock(self) -> Any:
        """The config as OpenCompass reads it."""
        if not self.config.is_file():
            raise FileNotFoundError(f"config {self.config}: no such file")
        return Config.fromfile(str(self.config), format_python_code=False)

    @cached_property
    def _pairs(self) -> list[tuple[Any, Any]]:
        """Every model with every data set that it is asked."""
        combinations = self.stock.get("model_dataset_combinations") or [
            {"models": self.stock["models"], "datasets": self.stock["datasets"]}
        ]
        return [
            (model, data)
            for each in combinations
            for model in each["models"]
            for data in each["datasets"]
        ]

    @cached_property
    def dataset(self) -> Any:
        """The data set that is asked."""
        found = {dataset_abbr_from_cfg(data): data for _, data in self._pairs}
        if self.data is None and len(found) == 1:
            return next(iter(found.values()))
        if self.data not in found:
            given = "" if self.data is None else f", got {self.data!r}"
            raise ValueError(f"task must be one of {', '.join(found)} of {self.config}{given}")
        return found[self.data]

    @cached_property
    def entry(self) -> Any:
        """The model's entry."""
        models = [model for model, data in self._pairs if data is self.dataset]
        found = {model_abbr_from_cfg(each): each for each in models if method_of(each)}
        own = {abbr: each for abbr, each in found.items() if method_of(each) == self.method}
        chosen = list(own) if self.abbr is None else [self.abbr]
        if len(chosen) != 1 or chosen[0] not in own:
            told = ", ".join(f"{abbr} ({method_of(each)})" for abbr, each in found.items())
            raise ValueError(
                f"{self.config} asks {self.task} of {told or 'no model of ours'}: say which by "
                f"--entry ABBR with its --model, got --model {self.method}"
            )
        return own[chosen[0]]

    @property
    def task(self) -> str:
        """See `Harness`."""
        return str(dataset_abbr_from_cfg(self.dataset))

    @property
    def label(self) -> str:
        """See `Harness`."""
        return str(model_abbr_from_cfg(self.entry))

    def told(self) -> dict[str, Any]:
        """See `Harness`. Of the config what is asked, as OpenCompass writes it."""
        digest = hashlib.sha256(self._text({}).encode()).hexdigest()
        return {"opencompass": self.task, "model": self.label, "config": digest}

    def _text(self, swept: Mapping[str, str]) -> str:
        """The config of a point."""
        # copies, whose classes stay names
        entry, data = copy.deepcopy(self.entry), copy.deepcopy(self.dataset)
        entry.update(self._typed(self.options))
        entry.update(self._typed(swept))
        if swept:
            entry["abbr"] = ",".join(f"{name}={value}" for name, value in swept.items())
        if self.limit is not None:
            data["reader_cfg"]["test_range"] = f"[:{self.limit}]"
        kept = copy.deepcopy(self.stock)
        for key in LEFT_OUT:
            kept.pop(key, None)
        kept["models"], kept["datasets"] = [entry], [data]
        return str(kept.dump())

    def _typed(self, options: Mapping[str, str]) -> dict[str, Any]:
        """Options with their types, under the names of an entry."""
        found: dict[str, Any] = dict(options)
        for each in (EngineConfig, SamplerConfig, METHODS[self.method].options):
            of_class = {name: value for name, value in options.items() if name in names(each)}
            found.update(coerce(each, of_class))
        return {RENAMED.get(name, name): value for name, value in found.items()}

    def check(self, points: Sequence[Point]) -> None:
        """See `Harness`."""
        inferencer = self.dataset["infer_cfg"]["inferencer"]
        fixed = inferencer.get("generation_kwargs") or {}
        for name in {name for point in points for name in point.options}:
            if name in fixed:
                raise ValueError(
                    f"{self.task} sets {name} in its inferencer's generation_kwargs, which goes "
                    "before the model's: it cannot be swept"
                )
        if self.entry.get("manifest") == "off" or self.options.get("manifest") == "off":
            raise ValueError("manifest=off: costs of answers are read from manifests, leave it out")
        asked = {**explicit(self.method, self.entry), **self.options}
        check_points(self.method, asked, points)

    def words(self, point: Point, places: Places, folder: Path) -> list[str]:
        """See `Harness`. In one process (--debug), for several points run at a time."""
        config = folder / "point.py"
        config.write_text(self._text(point.options), encoding="utf-8")
        program = [sys.executable, "-m", "opencompass.cli.main", str(config), "-w", str(folder)]
        return [*program, "--debug", *(["-r"] if _runs(folder) else [])]

    @contextmanager
    def writing(self, point: Point, places: Places) -> Iterator[Path]:
        """See `Harness`."""
        folder = places.cache(point)
        folder.mkdir(exist_ok=True)
        yield folder
        if self._scores(point, folder) == {}:  # its exit status may be 0 nevertheless
            raise ChildProcessError(
                f"{point.name}: opencompass left no score of {self.task}: see {places.log(point)}"
            )
        places.point(point).parent.mkdir(exist_ok=True)
        shutil.move(folder, places.point(point))

    def _scores(self, point: Point, folder: Path) -> dict[str, float]:
        runs = _runs(folder)
        return metrics(runs[-1], point.name, self.task) if runs else {}

    def result(self, point: Point, places: Places) -> Result:
        """See `Harness`."""
        folder = places.point(point)
        scores = self._scores(point, folder)
        known = [self.metric] if self.metric in scores else list(scores)
        if len(known) != 1:
            raise ValueError(
                f"metric={self.metric!r}: {self.task} reports {', '.join(known) or 'no number'}: "
                "say which by --metric NAME; the runs that are done stay"
            )
        if not 0 <= scores[known[0]] <= 100:
            raise ValueError(
                f"{known[0]} of {self.task} is {scores[known[0]]:g}, which is no percentage of "
                "right answers: give --metric one between 0 and 100"
            )
        run, accuracy = _runs(folder)[-1], scores[known[0]] / 100
        parts = stored(place_in_run(run, point.name)).get("parts", {})
        costs = [part["decoding"] for part in parts.values() if "decoding" in part]
        if not sum(each["answers"] for each in costs):
            raise ValueError(
                f"{self.task} generates nothing, and a frontier is of decoding: give a data set "
                "with GenInferencer"
            )
        return result_of(point, accuracy, _interval(run, point.name, self.task, accuracy), costs)


# of a config: what a point has instead, or places itself
LEFT_OUT = ("models", "datasets", "model_dataset_combinations", "work_dir", "summarizer")
RENAMED = {"pretrained": "path", "max_length": "max_seq_len"}


def _runs(folder: Path) -> list[Path]:
    """Runs of OpenCompass in a folder, by time."""
    return sorted(each.parent for each in folder.glob("*/configs"))


def _interval(run: Path, model: str, data: str, accuracy: float) -> Interval | None:
    """The binomial interval, where the details say of every answer whether it is right."""
    details = load(run / "results" / model / f"{data}.json").get("details", [])
    rows = list(details.values()) if isinstance(details, dict) else details
    judged = [row.get("correct") for row in rows if isinstance(row, dict)]
    alone = [each[0] if isinstance(each, list) and len(each) == 1 else each for each in judged]
    values = [each for each in alone if isinstance(each, bool)]
    if not values or len(values) < len(alone):
        return None
    share = sum(values) / len(values)
    return wilson(accuracy, len(values)) if abs(share - accuracy) < 1e-9 else None
