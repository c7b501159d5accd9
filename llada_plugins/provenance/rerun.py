"""Make a result again from its manifest, and say whether it is the same."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from llada_plugins.engine.asked import Asked
from llada_plugins.files.foreign_json import load
from llada_plugins.files.newest import newest
from llada_plugins.reports.answers import prediction_text

from .manifest import FOLDER, place_in_run, plain, read_manifest, stored
from .state import differences, state

LM_EVAL, OPENCOMPASS = "lm-eval", "OpenCompass"
# of a command of lm_eval, with one value each: where results go, and what would answer instead
OUTPUTS = ("--output_path", "-o", "--use_cache", "-c")


class Changed(ValueError):
    """Something that the result depends on is not as it was."""


class Outcome(NamedTuple):
    """How a result that was made again stands to the first."""

    lines: list[str]
    equal: bool


def rerun(path: Path, folder: Path, *, anyway: bool = False) -> Outcome:
    """Repeat the run of a manifest, with results below `folder`.

    Raises Changed where weights, options or versions are not as they were, unless anyway;
    ValueError for a manifest whose run cannot be repeated; RuntimeError where it fails.
    """
    found = read_manifest(path)
    changes = changed(found)
    if changes and not anyway:
        raise Changed(
            "this would not be the same run (--anyway repeats it all the same):\n  "
            + "\n  ".join(changes)
        )
    kind = {LM_EVAL: _again_in_lm_eval, OPENCOMPASS: _again_in_opencompass}[found["harness"]]
    outcome = kind(found, path, folder)
    return outcome._replace(lines=[*(f"changed: {line}" for line in changes), *outcome.lines])


def changed(manifest: Mapping[str, Any]) -> list[str]:
    """What a result depends on that is not as the manifest says, a line for each."""
    asked = Asked(manifest["method"], manifest["asked"])
    return differences(manifest["state"], plain(state(asked, asked.folders())))


# --- lm-eval


def _again_in_lm_eval(found: Mapping[str, Any], path: Path, folder: Path) -> Outcome:
    _run(lm_eval_command(found["command"], folder, found["processes"]))
    results = newest(folder, "results_*.json")
    if results is None:
        raise RuntimeError(f"the run ended well, but wrote no results below {folder}")
    now = read_manifest(results)
    lines, equal = [], True
    for task, before in found["results"].items():
        own, same = _compared(task, before, now["results"].get(task, {}))
        lines += own
        equal &= same
        if task in found["answers"]:
            same = found["answers"][task] == now["answers"].get(task)
            lines.append(f"{task}: answers {'equal' if same else 'differ'}")
            equal &= same
    return Outcome(lines, equal)


def lm_eval_command(words: Sequence[str], folder: Path, processes: int = 1) -> list[str]:
    """The command again, with results in another folder and no cache to answer from.

    ValueError for one that is not of lm_eval's own program.
    """
    if words[0] != "lm_eval":
        raise ValueError(
            f"the run was made by {words[0]}, which only its author can repeat: rerun repeats "
            "commands of lm_eval and runs of opencompass"
        )
    kept, skip = [], False
    for word in words[1:]:
        flag, equals, _ = word.partition("=")
        if skip:
            skip = False
        elif flag in OUTPUTS:
            skip = not equals
        else:
            kept.append(word)
    launch = ["torch.distributed.run", "--nproc_per_node", str(processes), "-m"]
    start = [sys.executable, "-m", *(launch if processes > 1 else []), "lm_eval"]
    return [*start, *kept, "--output_path", str(folder)]


def _compared(
    task: str, before: Mapping[str, float], now: Mapping[str, float]
) -> tuple[list[str], bool]:
    """A line for each metric, and whether all are equal."""
    lines = []
    for name, value in before.items():
        if value == now.get(name):
            lines.append(f"{task}: {name} {value} equal")
        else:
            lines.append(f"{task}: {name} {value} then, {now.get(name)} now")
    return lines, all(value == now.get(name) for name, value in before.items())


# --- OpenCompass


def _again_in_opencompass(found: Mapping[str, Any], path: Path, folder: Path) -> Outcome:
    run = path.absolute().parents[1]
    configs = sorted((run / "configs").glob("*.py"))
    if path.parent.name != FOLDER or not configs:
        raise ValueError(
            f"{path} is not in the {FOLDER}/ of a run of OpenCompass with its configs/: give it "
            "where the run left it"
        )
    _run([sys.executable, "-m", "opencompass.cli.main", str(configs[-1]), "-w", str(folder)])
    (again,) = [place for place in folder.iterdir() if (place / "predictions").is_dir()]
    model = found["run"]["model"]
    before, now = predictions(run, model), predictions(again, model)
    lines, equal = [], True
    for data, answers in before.items():
        others = now.get(data, [])
        differing = sum(one != other for one, other in zip(answers, others))
        same = len(answers) == len(others) and not differing
        told = f"{len(answers)} answers equal"
        if not same:
            told = f"{differing} of {len(answers)} answers differ, {len(others)} now"
        lines.append(f"{data}: {told}")
        own, scores = _compared(data, metrics(run, model, data), metrics(again, model, data))
        lines += own
        equal &= same and scores
    return Outcome(lines, equal and bool(before))


def predictions(run: Path, model: str) -> dict[str, list[Any]]:
    """The answers of a model by data set, in the order of its rows, whatever parts it has."""
    parts = stored(place_in_run(run, model)).get("parts", {})
    found: dict[str, list[tuple[int, Path]]] = {}
    for path in (run / "predictions" / model).glob("*.json"):
        data = parts.get(path.stem, {}).get("data", path.stem)
        number = re.search(r"_(\d+)$", path.stem.removeprefix(data))
        found.setdefault(data, []).append((int(number[1]) if number else 0, path))
    return {
        data: [row for _, path in sorted(paths) for row in _rows(path)]
        for data, paths in sorted(found.items())
    }


def _rows(path: Path) -> list[Any]:
    """The predictions of a file, without what each of them cost."""
    return [prediction_text(row.get("prediction")) for row in load(path).values()]


def metrics(run: Path, model: str, data: str) -> dict[str, float]:
    """The scores of a data set, {} where OpenCompass has none."""
    path = run / "results" / model / f"{data}.json"
    if not path.is_file():
        return {}
    return {name: value for name, value in load(path).items() if isinstance(value, float | int)}


def _run(command: Sequence[str]) -> None:
    """Run a command to its end, its output on this one's; RuntimeError where it fails."""
    done = subprocess.run(command)
    if done.returncode:
        raise RuntimeError(f"the repeated run failed with status {done.returncode}")
