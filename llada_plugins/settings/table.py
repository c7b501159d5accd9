"""The table of published settings: its fields, and the presets in it by name.

published.yaml has the rows. Options in it are ours; a test builds each of them, since the
classes that check options stand above this file.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from llada_plugins.files.json_files import (
    FLAG,
    TEXT,
    Kind,
    check,
    list_of,
    nullable,
    number,
    one_of,
    record,
    table_of,
    whole,
)
from llada_plugins.options.fields import reject_unknown

TABLE = Path(__file__).with_name("published.yaml")
HARNESSES = ("lm_eval", "opencompass", "other")

_TEXTS = list_of(TEXT)
_OPTIONS = table_of(Kind("a number, a word or true/false", lambda value: _is_plain(value)))
_SOURCE = record(
    {"where": TEXT, "harness": one_of(*HARNESSES)}, {"versions": table_of(TEXT)}, closed=True
)
_TASK = record(
    {"title": TEXT, "questions": nullable(whole(1))},
    {
        "lm_eval": record({"task": TEXT, "metric": TEXT}, closed=True),
        "opencompass": record(
            {"config": TEXT, "variable": TEXT, "data": TEXT, "metrics": _TEXTS}, closed=True
        ),
        "executes_code": FLAG,
    },
    closed=True,
)
_PRESET = record(
    {"task": TEXT},
    {
        "shots": whole(0),
        "options": _OPTIONS,
        "until": _TEXTS,
        "stop_words": _TEXTS,
        "scores": table_of(number(0, 100)),
        "config": TEXT,
        "unverified": _TEXTS,
    },
    closed=True,
)
_MODEL = record(
    {"pretrained": TEXT, "gigabytes": number(0), "presets": table_of(_PRESET)},
    {
        "chat": FLAG,
        "dtype": one_of("bfloat16", "float16", "float32"),
        "options": _OPTIONS,
        "template": TEXT,
        "unverified": _TEXTS,
    },
    closed=True,
)
_WHOLE = record(
    {"sources": table_of(_SOURCE), "tasks": table_of(_TASK), "models": table_of(_MODEL)},
    {".samplers": list_of(_OPTIONS)},
    closed=True,
)


@dataclass(frozen=True, kw_only=True)
class Source:
    """Who reports a score, and what they ran it with."""

    where: str
    harness: str  # of HARNESSES
    versions: Mapping[str, str] = field(default_factory=dict)  # by the name of the package


@dataclass(frozen=True, kw_only=True)
class LMEvalTask:
    """A task of lm-eval."""

    task: str
    metric: str  # as in its results, with the filter


@dataclass(frozen=True, kw_only=True)
class OpenCompassTask:
    """A data set config of OpenCompass."""

    config: str  # below opencompass/configs/datasets, without .py
    variable: str
    data: str  # a pattern of the names of its data sets
    metrics: Sequence[str]  # of its results, the first that is found


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is asked; in a harness that does not have it, None."""

    title: str
    questions: int | None
    lm_eval: LMEvalTask | None = None
    opencompass: OpenCompassTask | None = None
    executes_code: bool = False


@dataclass(frozen=True, kw_only=True)
class Score:
    """A published score, in percent."""

    value: float
    source: Source


@dataclass(frozen=True, kw_only=True)
class Preset:
    """One published setting of one checkpoint for one task."""

    name: str
    model: str  # the part of the name before /
    pretrained: str
    dtype: str
    chat: bool
    gigabytes: float  # of weights
    template: str | None  # SHA-256 of the chat template's text
    task_name: str
    task: Task
    options: Mapping[str, Any]  # of the model and the sampler
    shots: int | None  # examples before a question in lm-eval; None: the task's own
    until: Sequence[str] | None  # stop strings of lm-eval; None: the task's own
    stop_words: Sequence[str]  # of OpenCompass, beside the data set's
    scores: Sequence[Score]
    config: str | None  # the file in configs/lmeval_published, without .yaml
    unverified: Sequence[str]

    @property
    def defaults(self) -> dict[str, Any]:
        """What an engine's options are by this preset."""
        return {"pretrained": self.pretrained, "dtype": self.dtype, **self.options}


def find(name: str) -> Preset:
    """The preset of that name; ValueError that suggests the nearest where there is none."""
    presets = all_presets()
    reject_unknown(
        [name], presets, "preset", listed="python -m llada_plugins.presets lists all of them"
    )
    return presets[name]


def chosen(model: str | None = None, task: str | None = None) -> list[Preset]:
    """The presets of a model and of a task, by parts of their names, in the table's order.

    A model is also meant by its hub id. ValueError where nothing is left.
    """
    found = [
        preset
        for preset in all_presets().values()
        if (model is None or _means(model, preset.model, preset.pretrained))
        and (task is None or _means(task, preset.name.partition("/")[2], preset.task.title))
    ]
    if not found:
        models = dict.fromkeys(preset.model for preset in all_presets().values())
        tasks = dict.fromkeys(preset.task.title for preset in all_presets().values())
        raise ValueError(
            f"no preset of model {model or 'any'} and task {task or 'any'}: models are "
            f"{', '.join(models)}; tasks {', '.join(tasks)}"
        )
    return found


@functools.cache
def all_presets() -> dict[str, Preset]:
    """Every preset by its name, in the order of the table."""
    table = read(TABLE)
    sources = {name: Source(**each) for name, each in table["sources"].items()}
    tasks = {name: _task(each) for name, each in table["tasks"].items()}
    presets = [
        _preset(model, raw, part, row, tasks, sources)
        for model, raw in table["models"].items()
        for part, row in raw["presets"].items()
    ]
    return {preset.name: preset for preset in presets}


def read(path: Path) -> dict[str, Any]:
    """The table in a file, as its declaration says; ValueError names what is not so."""
    table = yaml.safe_load(path.read_text(encoding="utf-8"))
    check(path, _WHOLE, table)
    for model, raw in table["models"].items():
        for name, row in raw["presets"].items():
            reject_unknown([row["task"]], table["tasks"], f"task in {model}/{name}")
            reject_unknown(row.get("scores", ()), table["sources"], f"source in {model}/{name}")
    return dict(table)


def _task(raw: Mapping[str, Any]) -> Task:
    kinds = {"lm_eval": LMEvalTask, "opencompass": OpenCompassTask}
    inner = {name: kind(**raw[name]) for name, kind in kinds.items() if name in raw}
    return Task(**{**raw, **inner})


def _preset(
    model: str,
    raw: Mapping[str, Any],
    part: str,
    row: Mapping[str, Any],
    tasks: Mapping[str, Task],
    sources: Mapping[str, Source],
) -> Preset:
    """A row of the table with what stands at its model."""
    return Preset(
        name=f"{model}/{part}",
        model=model,
        pretrained=raw["pretrained"],
        dtype=raw.get("dtype", "bfloat16"),
        chat=raw.get("chat", False),
        gigabytes=raw["gigabytes"],
        template=raw.get("template"),
        task_name=row["task"],
        task=tasks[row["task"]],
        options={**raw.get("options", {}), **row.get("options", {})},
        shots=row.get("shots"),
        until=row.get("until"),
        stop_words=row.get("stop_words", ()),
        scores=[
            Score(value=value, source=sources[source])
            for source, value in row.get("scores", {}).items()
        ],
        config=row.get("config"),
        unverified=[*raw.get("unverified", ()), *row.get("unverified", ())],
    )


def _means(asked: str, *names: str) -> bool:
    """Is what a user asks for part of one of the names? Case and punctuation do not count."""

    def plain(name: str) -> str:
        return "".join(each for each in name.lower() if each.isalnum())

    return any(plain(asked) in plain(name) for name in names)


def _is_plain(value: Any) -> bool:
    return isinstance(value, bool | int | float | str)
