"""What the harness that wrote files beside a file of trajectories said of their answers."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from llada_plugins.engine.record_options import SUFFIX

from .answers import prediction_text, results_beside

FAILURES = (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError)


class _Graded(NamedTuple):
    """A graded answer."""

    task: str
    prompt: str | None  # None where the file does not say
    doc_id: int | None
    text: str
    right: bool


class Verdicts:
    """Right or wrong, from lm-eval's samples, OpenCompass's results or the table of evaluate.

    An answer has the verdict of an equal text to the same question. Files that are not
    there, or say nothing of that kind, give none.
    """

    def __init__(self, path: Path) -> None:
        self._found: dict[tuple[str, str, int | None], list[tuple[str | None, bool]]] = {}
        for graded in _graded(path):
            for doc_id in {graded.doc_id, None}:
                key = graded.task, graded.text, doc_id
                self._found.setdefault(key, []).append((graded.prompt, graded.right))

    def of(self, line: Mapping[str, Any]) -> bool | None:
        """Of a line of trajectories; None where it is not known, or not the same everywhere."""
        task, text = line["task"], line["text"]
        said = {
            right
            for prompt, right in self._found.get((task, text, line["doc_id"]), ())
            if prompt is None or prompt.endswith(line["prompt"])
        }
        return said.pop() if len(said) == 1 else None


def _graded(path: Path) -> Iterator[_Graded]:
    """The graded answers in the files beside."""
    for samples in sorted(path.parent.glob("samples_*.jsonl")):
        yield from _lmeval(samples)
    stem = path.name.removesuffix(SUFFIX).removesuffix(".")
    if not stem:
        return
    with suppress(*FAILURES):
        yield from _opencompass(path.with_name(f"{stem}.json"))
    with suppress(*FAILURES):
        yield from _table(path.with_name(f"{stem}.csv"))


def _lmeval(samples: Path) -> Iterator[_Graded]:
    """Of lm-eval's --log_samples, the first metric of a question's first filter."""
    task = samples.name.removeprefix("samples_").rpartition("_")[0]
    seen = set()
    with suppress(OSError, UnicodeDecodeError), samples.open(encoding="utf-8") as lines:
        for line in lines:
            with suppress(*FAILURES):
                row = json.loads(line)
                [responses] = row["resps"]
                value = row[row["metrics"][0]]
                if row["doc_id"] in seen or len(responses) != 1 or value not in (0, 1):
                    continue
                seen.add(row["doc_id"])
                prompt = row["arguments"]["gen_args_0"]["arg_0"]
                yield _Graded(task, prompt, row["doc_id"], responses[0], bool(value))


def _opencompass(predictions: Path) -> Iterator[_Graded]:
    """Of the details that some evaluators write beside the score."""
    said = json.loads(predictions.read_text(encoding="utf-8"))
    details = json.loads(results_beside(predictions).read_text(encoding="utf-8"))["details"]
    if isinstance(details, list):
        details = {str(number): each for number, each in enumerate(details)}
    for number, row in said.items():
        right = details[number]["correct"]
        if isinstance(right, list) and len(right) == 1:
            right = right[0]
        text = prediction_text(row["prediction"])
        if isinstance(right, bool | int) and isinstance(text, str):
            yield _Graded(predictions.stem, None, int(number), text, bool(right))


def _table(metrics: Path) -> Iterator[_Graded]:
    """Of python -m llada_plugins.evaluate."""
    run = json.loads(metrics.with_name(f"{metrics.name}.json").read_text(encoding="utf-8"))
    task = Path(run["data_file"]).stem
    with metrics.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            yield _Graded(task, None, int(row["index"]), row["response"], row["correct"] == "1")
