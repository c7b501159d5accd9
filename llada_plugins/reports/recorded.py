"""Files of record=trajectory, read: runs, their answers, and what a harness said of each.

docs/view.md describes the format; engine/recording.py writes it.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from llada_plugins.engine.record_options import SUFFIX
from llada_plugins.engine.recording import FORMAT, VERSION
from llada_plugins.files import gzip_lines
from llada_plugins.sampling.frames import Frame, frames
from llada_plugins.sampling.trace import Accepted, Array, Event, Judged, Pass

from .trajectory import Change
from .verdicts import Verdicts

ARRAYS = {"proposed": "<i4", "score": "<f2", "policy": "<f2", "flags": "u1"}
SOURCES = ("confidence_source", "remasking")  # options that say what `source` says as well
# what every line has, and of which kind
FIELDS: dict[str, type | tuple[type, ...]] = {
    "run": str,
    "method": str,
    "method_options": dict,
    "checkpoint": str,
    "sampler": dict,
    "source": str,
    "block_length": int,
    "task": (str, type(None)),
    "doc_id": (int, type(None)),
    "repeat": int,
    "prompt": str,
    "prompt_tokens": int,
    "text": str,
    "answer": list,
    "num_tokens": int,
    "num_forwards": int,
    "num_prm_calls": int,
    "seconds": (int, float),
    "cut": bool,
    "pieces": dict,
    "events": list,
}


class Recorded(NamedTuple):
    """An answer as it was written down."""

    line: dict[str, Any]  # see docs/view.md
    verdict: bool | None  # is it right, as the harness has it? None where that is not known

    @property
    def key(self) -> tuple[str | None, int | str, int]:
        """What the same question has in all runs."""
        line = self.line
        question = line["prompt"] if line["doc_id"] is None else line["doc_id"]
        return line["task"], question, line["repeat"]


class Run(NamedTuple):
    """Answers of one model under one set of options."""

    path: Path  # of the file
    answers: list[Recorded]
    damaged: int  # places in the file that hold no whole line

    @property
    def options(self) -> dict[str, Any]:
        """What the answers were decoded with."""
        line = self.answers[0].line
        about = {"checkpoint": line["checkpoint"], "model": line["method"]}
        sampler = {name: line["sampler"][name] for name in line["sampler"] if name not in SOURCES}
        return {
            **about,
            "confidence": line["source"],
            **sampler,
            **line["method_options"],  # of a process reward model, `method` is one
        }


def read_runs(places: Sequence[Path]) -> list[Run]:
    """The runs in these files and folders, in the order of the places.

    Raises FileNotFoundError or ValueError, of one line, where there is none.
    """
    return [run for place in places for path in _files(place) for run in read(path)]


def _files(place: Path) -> list[Path]:
    if not place.exists():
        raise FileNotFoundError(f"{place}: no such file or folder")
    if place.is_file():
        return [place]
    found = sorted(place.rglob(f"*{SUFFIX}"))
    if not found:
        raise FileNotFoundError(
            f"{place}: holds no file *{SUFFIX}: decode with record=trajectory, which writes one"
        )
    return found


def read(path: Path) -> list[Run]:
    """The runs of one file; of several answers to a question the last counts."""
    verdicts = Verdicts(path)
    runs: dict[str, dict[Any, Recorded]] = {}
    damaged = number = 0
    for number, found in enumerate(gzip_lines.read(path), 1):
        if found is None:
            damaged += 1
            continue
        line = checked(found, f"{path}:{number}")
        answer = Recorded(line, verdicts.of(line))
        answers = runs.setdefault(line["run"], {})
        answers.pop(answer.key, None)
        answers[answer.key] = answer
    if not runs:
        what = "is empty" if number == 0 else "is no file of record=trajectory, or was cut"
        raise ValueError(f"{path}: {what}: give a file *{SUFFIX}, or a folder that holds one")
    return [Run(path, list(answers.values()), damaged) for answers in runs.values()]


def checked(string: str, place: str) -> dict[str, Any]:
    """A line as what it says; ValueError, which begins with the place, where it is another."""
    try:
        line = json.loads(string)
    except (ValueError, RecursionError):
        line = None
    if not isinstance(line, dict) or line.get("format") != FORMAT:
        raise ValueError(f"{place}: not a line of record=trajectory: give a file that it wrote")
    if line.get("version") != VERSION:
        raise ValueError(
            f"{place}: version {line.get('version')!r} of the format, and this llada_plugins reads "
            f"{VERSION}: read it with the one that wrote it"
        )
    for name, kind in FIELDS.items():
        if not isinstance(line.get(name), kind):
            raise ValueError(f"{place}: {name} is not what docs/view.md says: the file was changed")
    try:
        events_of(line)
    except (KeyError, TypeError, ValueError, AttributeError, binascii.Error):
        raise ValueError(
            f"{place}: events are not what docs/view.md says: the file was changed"
        ) from None
    return line


def events_of(line: Mapping[str, Any]) -> list[Event]:
    """The events of a line; KeyError, TypeError or ValueError where they are damaged."""
    return [_event(number, event) for number, event in enumerate(line["events"])]


def _event(number: int, event: Mapping[str, Any]) -> Event:
    if event["kind"] == "judged":
        return Judged(number, list(event["scores"]), [])
    if event["kind"] == "accepted":
        return Accepted(number, [int(token) for token in event["answer"]])
    num_steps, width = event["steps"], event["width"]
    if event["kind"] != "pass" or min(num_steps, width) < 1 or event["start"] < 0:
        raise ValueError
    arrays: dict[str, Any] = {
        name: None if event[name] is None else unpacked(event[name], dtype, num_steps, width)
        for name, dtype in ARRAYS.items()
    }
    seconds = np.array(event["seconds"], np.float32)
    if len(seconds) != num_steps:
        raise ValueError
    return Pass(event["fill"], event["start"], seconds=seconds, **arrays)


def unpacked(string: str, dtype: str, num_steps: int, width: int) -> Array:
    """An array (S, W) of its base64, which holds it position by position."""
    raw = base64.b64decode(string, validate=True)
    return np.frombuffer(raw, dtype).reshape(width, num_steps).T


def changes(found: Sequence[Frame]) -> list[Change]:
    """Tokens that stood, were masked again or replaced, and what stands there in the end.

    Step: the number of the frame in which the token is gone.
    """
    states = np.stack([frame.tokens for frame in found])  # (F, G)
    gone = (states[:-1] >= 0) & (states[1:] != states[:-1])
    return [
        Change(int(step) + 1, int(place), int(states[step, place]), int(states[-1, place]))
        for step, place in zip(*np.nonzero(gone))
    ]


def names(runs: Sequence[Run]) -> list[str]:
    """What tells runs apart: the options in which they differ, else their files."""
    options = [run.options for run in runs]
    every = dict.fromkeys(name for each in options for name in each)
    differ = [name for name in every if len({str(each.get(name)) for each in options}) > 1]
    found = [
        ", ".join(f"{name}={each.get(name, 'default')}" for name in differ) for each in options
    ]
    if len(runs) == 1:
        return [f"{options[0]['model']}, {options[0]['checkpoint']}"]
    return [
        f"{name} ({run.path})" if found.count(name) > 1 or not name else name
        for name, run in zip(found, runs)
    ]


def walk(answer: Recorded) -> Iterator[tuple[Frame, list[Change]]]:
    """The frames of an answer, each with the tokens that are gone in it."""
    found = frames(events_of(answer.line))
    gone = changes(found)
    for number, frame in enumerate(found):
        yield frame, [change for change in gone if change.step == number]
