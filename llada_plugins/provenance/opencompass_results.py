"""A run of OpenCompass as runs of tasks, with what its exit status does not say."""

from __future__ import annotations

import copy
import fnmatch
import importlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import opencompass
from mmengine.config import Config
from opencompass.utils import dataset_abbr_from_cfg, get_prompt_hash, model_abbr_from_cfg

from llada_plugins.engine.asked import Asked, option_classes
from llada_plugins.files.foreign_json import load
from llada_plugins.options.fields import names
from llada_plugins.sampling import published
from llada_plugins.settings.table import OpenCompassTask, Preset, all_presets, find

from .manifest import place_in_run, plain, stored
from .opencompass_asked import asked_of, asked_otherwise
from .rerun import metrics
from .runs import Run
from .state import differences

CUT = re.compile(r"-first\d+$")  # of a data set that LLADA_LIMIT cuts
FIRST = re.compile(r"^\[:(\d+)\]$")
MODULE = "llada_plugins.opencompass_models"
T = TypeVar("T")


def read(folder: Path) -> list[tuple[Run, list[Preset]]]:
    """Each model and task of which something is published, each with the task's presets.

    And, without presets, each other data set of which answers are missing or wrong.
    """
    newest = sorted((folder / "configs").glob("*.py"))[-1]
    config = Config.fromfile(newest, format_python_code=False)
    found: list[tuple[Run, list[Preset]]] = []
    for model, datasets in _pairs(config):
        rest = list(datasets)
        for presets in _tasks():
            task = presets[0].task.opencompass
            assert task is not None
            own = [
                each
                for each in datasets
                if fnmatch.fnmatch(CUT.sub("", dataset_abbr_from_cfg(each)), task.data)
            ]
            if own:
                found.append(_run(folder, model, own, presets))
                rest = [each for each in rest if each not in own]
        unpublished = (_unpublished(folder, model, each) for each in rest)
        found += [(run, []) for run in unpublished if run.problems]
    return found


def _pairs(config: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], Sequence[Any]]]:
    """Our models, each with the data sets that it is asked."""
    combinations = config.get("model_dataset_combinations") or [
        {"models": config["models"], "datasets": config["datasets"]}
    ]
    for each in combinations:
        for model in each["models"]:
            if method_of(model) is not None:
                yield model, each["datasets"]


def method_of(model: Mapping[str, Any]) -> str | None:
    """The method of an entry's class; None of a class that is not ours."""
    kind = model["type"]
    name = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__name__}"
    module, _, name = name.rpartition(".")
    if module != MODULE:
        return None
    return str(getattr(importlib.import_module(MODULE), name).method)


def _tasks() -> list[list[Preset]]:
    """The presets, those together whose tasks are the same data sets with the same metrics."""
    found: dict[tuple[str, ...], list[Preset]] = {}
    for preset in all_presets().values():
        if own := preset.task.opencompass:
            found.setdefault((own.data, *own.metrics), []).append(preset)
    return list(found.values())


class Nearest(NamedTuple):
    """The task whose data set config is most like a run's."""

    task: OpenCompassTask
    others: list[str]  # what differs
    presets: list[Preset]


def _nearest(datasets: Sequence[Any], presets: Sequence[Preset], named: Preset | None) -> Nearest:
    """Of the named preset's task, or of all tasks of these presets, the nearest."""
    known = [named] if named is not None and named in presets else presets
    tasks = {own.config: own for each in known if (own := each.task.opencompass)}
    others = {config: _other_prompts(datasets, task) for config, task in tasks.items()}
    config = min(others, key=lambda each: len(others[each]))
    task = tasks[config]
    return Nearest(task, others[config], [p for p in presets if p.task.opencompass == task])


def _unpublished(folder: Path, model: Mapping[str, Any], dataset: Mapping[str, Any]) -> Run:
    """One model's answers to a data set of which nothing is published."""
    abbr, method = model_abbr_from_cfg(model), method_of(model)
    assert method is not None
    asked = Asked(method, explicit(method, model))
    own = _data_set(folder, abbr, dataset, ())
    made: list[str] = []
    manifest = _manifest(made, folder, abbr)
    if own.answers and not made:
        made = [*_otherwise(abbr, manifest, asked), *_asked_otherwise(manifest, model, [dataset])]
    return Run(
        harness="opencompass",
        task=f"{abbr} {dataset_abbr_from_cfg(dataset)}",
        model=str(asked.config.pretrained or abbr),
        preset=asked.config.preset,
        options=vars(asked.config),
        score=own.score,
        questions=own.answers or None,
        problems=[*own.problems, *made],
    )


def _run(
    folder: Path, model: Mapping[str, Any], datasets: Sequence[Any], presets: Sequence[Preset]
) -> tuple[Run, list[Preset]]:
    """One model's answers to the data sets of one task, and the presets of the task."""
    abbr, method = model_abbr_from_cfg(model), method_of(model)
    assert method is not None
    asked = Asked(method, explicit(method, model))
    nearest = _nearest(datasets, presets, asked.preset)
    torn: list[str] = []
    manifest = _manifest(torn, folder, abbr)
    own = [_data_set(folder, abbr, each, nearest.task.metrics) for each in datasets]
    problems = [*torn, *(problem for each in own for problem in each.problems)]
    answered = sum(each.answers for each in own)
    if answered and not torn:
        problems += _otherwise(abbr, manifest, asked)
        problems += _asked_otherwise(manifest, model, datasets)
    scores = [each.score for each in own if each.score is not None]
    run = Run(
        harness="opencompass",
        task=f"{abbr} {_title(datasets)}",
        model=str(asked.config.pretrained or abbr),
        preset=asked.config.preset,
        options={**vars(asked.config), **_sampler(asked, datasets)},
        score=sum(scores) / len(scores) if scores and len(scores) == len(own) else None,
        metric=", ".join(nearest.task.metrics),
        questions=answered or None,
        chat=_chats(manifest, model, asked),
        template=manifest.get("template"),
        dtype=_dtype(manifest, asked),
        versions=manifest.get("state", {}).get("versions", {}),
        others=nearest.others,
        problems=problems,
    )
    return run, nearest.presets


def _otherwise(abbr: str, manifest: Mapping[str, Any], asked: Asked) -> list[str]:
    """Where answers were not made as the newest config of the run says."""
    if not manifest:
        return [f"{abbr} has answers and no manifest: nothing says how they were made"]
    return [
        f"the answers of {abbr} were made with other options than its newest config has: {line}"
        for line in differences(manifest["asked"], plain(asked.explicit))
    ]


def _asked_otherwise(
    manifest: Mapping[str, Any], model: Mapping[str, Any], datasets: Sequence[Any]
) -> Iterator[str]:
    """Where questions were not asked as the newest config of the run says.

    OpenCompass keeps answers that are complete, whatever the config says when a run goes on.
    """
    parts = manifest.get("parts", {}).values()
    for dataset in datasets:
        name = dataset_abbr_from_cfg(dataset)
        for line in asked_otherwise(parts, name, asked_of(dataset, model)):
            yield f"{name} was asked otherwise than the newest config says: {line}"


def explicit(method: str, model: Mapping[str, Any]) -> dict[str, Any]:
    """The engine's options of an entry, under our names."""
    known = {*names(*option_classes(method)), *published.NAMES}
    found = {name: value for name, value in model.items() if name in known and name != "batch_size"}
    if model.get("path") is not None:
        found["pretrained"] = model["path"]
    elif found.get("preset"):
        found["pretrained"] = find(found["preset"]).pretrained
    if model.get("max_seq_len") is not None:
        found["max_length"] = model["max_seq_len"]
    return found


def _sampler(asked: Asked, datasets: Sequence[Any]) -> dict[str, Any]:
    """The sampler's options; the answer's length is the data set's where they have none."""
    named = (published.sampler_with(name) for name in asked.explicit if name in published.NAMES)
    options = asked.sampler(next(named, "llada"))
    length = datasets[0]["infer_cfg"]["inferencer"].get("max_out_len")
    return options if "gen_length" in options else {**options, "gen_length": length}


def _chats(manifest: Mapping[str, Any], model: Mapping[str, Any], asked: Asked) -> bool:
    """Were prompts chats? What the manifest says, else the entry, else its preset."""
    entry = manifest.get("run", {}).get("entry", {})
    of_preset = asked.preset is not None and asked.preset.chat
    return bool(entry.get("chat", model.get("chat", of_preset)))


def _dtype(manifest: Mapping[str, Any], asked: Asked) -> str | None:
    known = manifest.get("model", {}).get("model_dtype", asked.config.dtype)
    return None if known == "auto" else str(known).removeprefix("torch.")


def _title(datasets: Sequence[Any]) -> str:
    first = dataset_abbr_from_cfg(datasets[0])
    return first if len(datasets) == 1 else f"{first} and {len(datasets) - 1} more"


class DataSet(NamedTuple):
    """What a run left of one data set."""

    score: float | None
    answers: int
    problems: list[str]


def _data_set(
    folder: Path, abbr: str, dataset: Mapping[str, Any], metrics_of_task: Sequence[str]
) -> DataSet:
    """metrics_of_task: the first one found is the score; any, where there are none."""
    name = dataset_abbr_from_cfg(dataset)
    whole, begun = _files(folder / "predictions" / abbr, name)
    problems: list[str] = []
    rows = [row for path in whole for row in _or_told(problems, _rows, path) or []]
    if not problems:
        problems += _row_problems(folder, abbr, name, dataset, rows)
    if begun:
        problems.append(f"{name}: answers are unfinished (tmp_*): go on with -r")
    values = _or_told(problems, metrics, folder, abbr, name)
    score = _first_of(values or {}, metrics_of_task)
    if rows and score is None and values is not None:
        problems.append(f"{name}: no score: see {_log(folder, 'eval', abbr, name)}")
    return DataSet(score, len(rows), problems)


def _files(place: Path, name: str) -> tuple[list[Path], list[Path]]:
    """A data set's files of predictions, in parts perhaps: whole ones, and those being written."""
    present = sorted(place.iterdir()) if place.is_dir() else []
    part = rf"{re.escape(name)}(_\d+)?"
    whole, begun = re.compile(rf"{part}\.json"), re.compile(rf"tmp_{part}\.jsonl?")
    return (
        [path for path in present if whole.fullmatch(path.name)],
        [path for path in present if begun.fullmatch(path.name)],
    )


def _first_of(values: Mapping[str, float], wanted: Sequence[str]) -> float | None:
    """The value of the first wanted metric that there is; any, where none is wanted."""
    return next((values[metric] for metric in wanted or values if metric in values), None)


def _or_told(problems: list[str], read: Callable[..., T], *of: Any) -> T | None:
    """What is read; of a file that cannot be read None, and a line among the problems."""
    try:
        return read(*of)
    except (ValueError, OSError) as error:
        problems.append(str(error))
        return None


def _manifest(problems: list[str], folder: Path, abbr: str) -> dict[str, Any]:
    """A model's, or {} where none can be read."""
    return _or_told(problems, stored, place_in_run(folder, abbr)) or {}


def _rows(path: Path) -> list[Any]:
    """The rows of a file of predictions; ValueError where it is none."""
    found = load(path)
    if not isinstance(found, dict) or not all(isinstance(row, dict) for row in found.values()):
        raise ValueError(f"{path} cannot be read: it holds no predictions by number")
    return list(found.values())


def _row_problems(
    folder: Path, abbr: str, name: str, dataset: Mapping[str, Any], rows: Sequence[Any]
) -> Iterator[str]:
    if not rows:
        yield f"{name}: no predictions, its task failed: see {_log(folder, 'infer', abbr, name)}"
        return
    limit = FIRST.match(str(dataset["reader_cfg"].get("test_range") or ""))
    if limit and len(rows) < int(limit[1]):
        yield (
            f"{name}: {len(rows)} of {limit[1]} rows have answers: .cache/dataset_size.json may "
            "remember another size; remove it, or set force_rebuild=True"
        )
    prompts = Counter(str(row.get("origin_prompt")) for row in rows)
    twice = sum(count > 1 for count in prompts.values())
    if twice:
        yield (
            f"{name}: {twice} prompts have several answers: a run that was resumed with another "
            "number of workers puts answers beside other rows"
        )


def _log(folder: Path, kind: str, abbr: str, name: str) -> str:
    return str(folder / "logs" / kind / abbr / f"{name}.out")


def _other_prompts(datasets: Sequence[Any], task: OpenCompassTask) -> list[str]:
    """Where prompts, shots or the inferencer are not those of the stock config."""
    place = Path(opencompass.__file__).parent / "configs" / "datasets" / f"{task.config}.py"
    stock = {dataset_abbr_from_cfg(each): each for each in Config.fromfile(place)[task.variable]}
    lines: dict[str, None] = {}
    for dataset in datasets:
        other = stock.get(CUT.sub("", dataset_abbr_from_cfg(dataset)))
        if other is None:
            continue
        ours, theirs = shots(dataset), shots(other)
        if ours != theirs:
            lines[f"shots: {ours}, published {theirs}"] = None
        found = [get_prompt_hash(copy.deepcopy(each))[:6] for each in (dataset, other)]
        if found[0] != found[1]:
            lines[f"prompts: version {found[0]}, published {found[1]} ({task.config})"] = None
    return list(lines)


def shots(dataset: Mapping[str, Any]) -> int:
    """Examples before a question: those of a retriever, or turns of the template."""
    infer = dataset["infer_cfg"]
    examples = infer["retriever"].get("fix_id_list")
    if examples is not None:
        return len(examples)
    template = infer.get("prompt_template", {}).get("template")
    turns = template.get("round", []) if isinstance(template, Mapping) else []
    return max(0, sum(turn.get("role") == "HUMAN" for turn in turns) - 1)
