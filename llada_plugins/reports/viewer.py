"""The viewer's page: runs of record=trajectory on the same questions, side by side."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Sequence
from html import escape
from string import Template
from typing import Any

from llada_plugins.sampling.frames import frames

from .page import as_json, page, source
from .recorded import Recorded, Run, changes, events_of, names

SHOWN = ("pieces", "events", "source", "block_length")  # of a line, what the script unpacks


def viewer(runs: Sequence[Run], title: str = "llada-plugins: trajectories") -> str:
    """The page. Answers are compressed in it, each by itself, and unpacked when looked at."""
    questions: dict[Any, dict[str, Any]] = {}
    lines: list[str] = []
    for number, run in enumerate(runs):
        for answer in run.answers:
            empty = _question(answer, len(runs))
            questions.setdefault(answer.key, empty)["answers"][number] = _answer(answer, len(lines))
            lines.append(_packed(answer))
    index = {
        "runs": [
            {"name": name, "path": str(run.path), "damaged": run.damaged, "summary": summary(run)}
            for name, run in zip(names(runs), runs)
        ],
        "questions": list(questions.values()),
    }
    return page(
        title,
        Template(source("view.html")).substitute(title=escape(title)),
        style=source("view.css"),
        script=source("view.js"),
        data={"index": as_json(index), "lines": "\n".join(lines)},
    )


def summary(run: Run) -> str:
    """A run's number of answers, and means of them."""
    answers = run.answers
    judged = [answer.verdict for answer in answers if answer.verdict is not None]
    tokens = sum(answer.line["num_tokens"] for answer in answers)
    forwards = sum(answer.line["num_forwards"] for answer in answers)
    told = [f"{len(answers)} answers"]
    if judged:
        told.append(f"{sum(judged)} of {len(judged)} right")
    told.append(f"{tokens / max(1, forwards):.2f} tokens a forward")
    return ", ".join(told)


def _question(answer: Recorded, num_runs: int) -> dict[str, Any]:
    line = answer.line
    name = " ".join(str(each) for each in (line["task"], line["doc_id"]) if each is not None)
    return {
        "id": f"{name or 'question'}{'.' + str(line['repeat']) if line['repeat'] else ''}",
        "prompt": line["prompt"],
        "prompt_tokens": line["prompt_tokens"],
        "answers": [None] * num_runs,
    }


def _answer(answer: Recorded, number: int) -> dict[str, Any]:
    """What is known of an answer before it is unpacked; number: of its line."""
    line = answer.line
    gone = changes(frames(events_of(line)))
    return {
        "line": number,
        "verdict": answer.verdict,
        "text": line["text"],
        "tokens": line["num_tokens"],
        "forwards": line["num_forwards"],
        "seconds": line["seconds"],
        "prm": line["num_prm_calls"],
        "cut": line["cut"],
        "corrected": sum(change.first != change.final for change in gone),
    }


def _packed(answer: Recorded) -> str:
    content = as_json({name: answer.line[name] for name in SHOWN})
    return base64.b64encode(gzip.compress(content.encode(errors="replace"), 5, mtime=0)).decode()
