"""Accuracy against tokens a forward, along a sweep of decoding options on any lm-eval task."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from llada_plugins.engine.asked import option_classes
from llada_plugins.engine.config import HARNESS_DEFAULTS, EngineConfig
from llada_plugins.files.atomic import write_whole
from llada_plugins.methods.table import METHODS
from llada_plugins.models.folder import resolve
from llada_plugins.options.fields import arg, build, coerce, names, reject_unknown
from llada_plugins.sampling import published
from llada_plugins.sampling.config import SamplerConfig, build_sampler

from .frontier_curves import curves, table, write
from .frontier_points import Result, read_result
from .frontier_runs import Command, Places, Runs
from .render import pyplot
from .report_page import HELP, write_page
from .sweep import Point, Sweep, grid, read_sweep

OWN_FLAGS = ("batch_size", "device")  # of the model's options those that are lm_eval's too


@dataclass(frozen=True, kw_only=True)
class FrontierConfig:
    """What is run, along which options."""

    task: str = arg(help="a task of lm-eval whose answers are generated")
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
        if not self.sweep:
            raise ValueError("give at least one --sweep, such as --sweep threshold=0.5..0.99")
        if self.y_max is not None and not 0 < self.y_max <= 100:
            raise ValueError(
                f"y_max must be a percentage above 0 and at most 100, got {self.y_max}"
            )
        self.sweeps()

    def sweeps(self) -> list[Sweep]:
        """The sweeps as they were given."""
        return [read_sweep(text) for text in self.sweep]


def check_options(
    config: FrontierConfig, options: Mapping[str, Any], points: Sequence[Point]
) -> None:
    """Raise ValueError where an option or a value of the sweep is refused.

    What only a checkpoint's files can tell is said by its first run, before its weights.
    """
    classes = option_classes(config.model)
    for sweep in config.sweeps():
        reject_unknown([sweep.name], [*names(*classes), *published.NAMES], "option to sweep")
        if sweep.name in options:
            raise ValueError(f"{sweep.name} is swept and given as --{sweep.name}: leave one out")
        if sweep.name in ("pretrained", "revision", "peft", "tokenizer", *OWN_FLAGS):
            raise ValueError(f"{sweep.name} is no option of decoding: run one sweep for each")
    for name, value in options.items():
        if "," in str(value):
            raise ValueError(f"{name}={value!r}: lm_eval's --model_args cannot hold a comma")
    for point in points:
        given = {**options, **point.options}
        for each in (EngineConfig, METHODS[config.model].options):
            build(each, given)
        if not given.keys() & set(published.NAMES):
            build_sampler(coerce(SamplerConfig, given), HARNESS_DEFAULTS)
    resolve(options.get("pretrained"), options.get("revision"))


def command_of(config: FrontierConfig, options: Mapping[str, Any]) -> Command:
    """The runs' command line."""
    optional = {"--limit": config.limit, "--include_path": config.include_path}
    placement = {f"--{name}": options.get(name) for name in OWN_FLAGS}
    model_args = [f"{name}={value}" for name, value in options.items() if name not in OWN_FLAGS]
    return Command(
        (
            *("--model", config.model, "--tasks", config.task),
            *_words(optional),
            *shlex.split(config.lm_eval),
        ),
        _words(placement),
        tuple(model_args),
        frozenset([*names(SamplerConfig), *published.NAMES]),
    )


def _words(flags: Mapping[str, Any]) -> tuple[str, ...]:
    given = ((flag, str(value)) for flag, value in flags.items() if value is not None)
    return tuple(word for pair in given for word in pair)


def check_output(output: Path, command: Command) -> None:
    """Raise ValueError where the folder holds anything but runs of this command."""
    path = output / "run.json"
    told = json.dumps({"lm_eval": command.lm_eval, "model_args": command.model_args}, indent=1)
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


def run(config: FrontierConfig, options: Mapping[str, Any]) -> str:
    """Run what is missing, write the report; returns its table."""
    pyplot()  # what is missing is said before the work
    points = grid(config.sweeps())
    check_options(config, options, points)
    command, places = command_of(config, options), Places(Path(config.output))
    check_output(places.output, command)

    def read(point: Point) -> Result:
        return read_result(places.point(point), point, config.task, config.metric)

    Runs(command, places).finish(points, config.jobs, read)
    found = curves([read(point) for point in points], config.model, config.y_max)
    told = {**asdict(config), "model_options": dict(options)}
    write(found, config.task, told, places.output)
    if config.html:
        title = f"Accuracy against tokens a forward: {config.task}"
        write_page(places.output, title, table(found, config.task), told)
    return table(found, config.task)
