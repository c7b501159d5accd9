"""Accuracy against tokens a forward, along a sweep of decoding options on any task of a harness."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from llada_plugins.files.atomic import write_whole
from llada_plugins.methods.table import METHODS
from llada_plugins.options.fields import arg

from .frontier_curves import curves, table, write
from .frontier_points import Result, check_sweeps
from .frontier_runs import Harness, Places, Runs
from .render import pyplot
from .report_page import HELP, write_page
from .sweep import Point, Sweep, grid, read_sweep


@dataclass(frozen=True, kw_only=True)
class FrontierConfig:
    """What is run, along which options."""

    task: str | None = arg(
        None,
        "a task of lm-eval whose answers are generated; with --config the abbr of a data set "
        "(default: the config's only one)",
    )
    config: str | None = arg(None, "a config of OpenCompass, to run that in lm-eval's place")
    entry: str | None = arg(
        None, "with --config the abbr of the model's entry (default: the only one of --model)"
    )
    output: str = arg(
        help="folder for runs and tables; where it holds runs of the same command, those stay"
    )
    sweep: tuple[str, ...] = arg(
        (),
        "NAME=FIRST..LAST (6 values), NAME=FIRST..LAST/NUMBER or NAME=VALUE,VALUE,…: an option of "
        "the model and its values; the first --sweep makes a curve, further ones a curve for each "
        "of their values",
    )
    model: Literal[tuple(METHODS)] = arg(  # type: ignore[valid-type]  # names of a table
        "llada", f"one of {', '.join(METHODS)}"
    )
    jobs: int = arg(1, "runs at the same time, each with the model loaded once")
    limit: int | None = arg(None, "the first so many problems only")
    include_path: str | None = arg(None, "folder with further tasks, as of lm_eval")
    lm_eval: str = arg("", "further arguments of lm_eval in one string, such as '--num_fewshot 4'")
    metric: str | None = arg(
        None,
        "which of the task's metrics is the accuracy, as NAME,FILTER (default: its only one)",
    )
    y_max: float | None = arg(
        None,
        "the best accuracy of any method on the task, in percent, for AUP (default: the best seen)",
    )
    html: bool = arg(False, HELP)

    def __post_init__(self) -> None:
        for name in ("jobs", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self._check_harness()
        if not self.sweep:
            raise ValueError("give at least one --sweep, such as --sweep threshold=0.5..0.99")
        if self.y_max is not None and not 0 < self.y_max <= 100:
            raise ValueError(
                f"y_max must be a percentage above 0 and at most 100, got {self.y_max}"
            )
        self.sweeps()

    def _check_harness(self) -> None:
        if self.config is None and self.task is None:
            raise ValueError("give --task NAME of lm-eval, or --config FILE of OpenCompass")
        if self.config is None and self.entry is not None:
            raise ValueError("entry has no effect without --config: leave it out")
        for name in ("include_path", "lm_eval"):
            if self.config is not None and getattr(self, name):
                raise ValueError(f"{name} is for lm-eval, and --config for OpenCompass: give one")

    def sweeps(self) -> list[Sweep]:
        """The sweeps as they were given."""
        return [read_sweep(text) for text in self.sweep]


def check_output(output: Path, harness: Harness) -> None:
    """Raise ValueError where the folder holds anything but runs of this command."""
    path = output / "run.json"
    told = json.dumps(harness.told(), indent=1)
    if path.is_file():
        if path.read_text(encoding="utf-8") != told + "\n":
            raise ValueError(
                f"output {output} holds runs of another command, see its run.json: give another "
                "folder, or remove it"
            )
        return
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"output {output} holds other files: give another folder")
    output.mkdir(parents=True, exist_ok=True)
    write_whole(path, told + "\n")


def run(config: FrontierConfig, options: Mapping[str, str], harness: Harness) -> str:
    """Run what is missing, write the report; returns its table."""
    pyplot()  # what is missing is said before the work
    sweeps, places = config.sweeps(), Places(Path(config.output))
    points = grid(sweeps)
    check_sweeps(sweeps, config.model, options)
    harness.check(points)
    check_output(places.output, harness)

    def read(point: Point) -> Result:
        return harness.result(point, places)

    Runs(harness, places).finish(points, config.jobs, read)
    found = curves([read(point) for point in points], harness.label, config.y_max)
    told = {**asdict(config), "model_options": dict(options)}
    report = write(found, harness.task, told, places.output)
    if config.html:
        title = f"Accuracy against tokens a forward: {harness.task}"
        write_page(places.output, title, table(found, harness.task), report)
    return table(found, harness.task)
