"""What answers cost, as result files of both harnesses say it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from llada_plugins.engine.request import Completion

Statistics = dict[str, Any]
SUMS = ("tokens", "forwards", "branches", "revised", "seconds", "prm_calls")


def statistics(completion: Completion) -> Statistics:
    """Of one answer. docs/evaluate.md says what each name means."""
    return {
        "tokens": completion.num_tokens,
        "forwards": completion.num_forwards,
        "tokens_per_forward": round(completion.tokens_per_forward, 4),
        "branches": completion.num_branches,
        "revised": completion.num_revised,
        "seconds": round(completion.seconds, 6),
        "prm_calls": completion.num_prm_calls,
        "overlong": completion.overlong,
    }


def unknown() -> Statistics:
    """Of an answer that an earlier version kept without them."""
    return dict.fromkeys(statistics(Completion("", 0, 0, 0.0)))


@dataclass
class Totals:
    """Sums over a task's answers."""

    answers: int = 0
    from_cache: int = 0  # decoded by an earlier run, whose costs are counted here
    unknown: int = 0  # of these, answers without costs: of files that hold none
    tokens: int = 0
    forwards: int = 0
    branches: int = 0
    revised: int = 0
    seconds: float = 0.0
    prm_calls: int = 0

    def add(self, note: Mapping[str, Any]) -> None:
        """Another answer; note: its statistics, None for each that is not known."""
        self.answers += 1
        self.from_cache += bool(note.get("from_cache"))
        if note["forwards"] is None:
            self.unknown += 1
            return
        known = {"branches": 0, **note}  # answers of earlier versions had none
        for name in SUMS:
            setattr(self, name, getattr(self, name) + known[name])

    def merge(self, other: Totals) -> None:
        """Take in another process's answers."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    def info(self) -> dict[str, Any]:
        """For a results file: the sums, and tokens a forward as their ratio."""
        ratio = self.tokens / self.forwards if self.forwards else 0.0
        return {**vars(self), "tokens_per_forward": round(ratio, 4)}


class TotalsByTask:
    """The totals of each task of a run."""

    def __init__(self) -> None:
        self.by_task: dict[str, Totals] = {}

    def add(self, task: str | None, note: Mapping[str, Any]) -> None:
        """Another answer; callers from Python name no task."""
        self.by_task.setdefault(task or "requests", Totals()).add(note)

    def merge(self, others: Iterable[TotalsByTask]) -> None:
        """Take in the totals of other processes."""
        for other in others:
            for task, totals in other.by_task.items():
                self.by_task.setdefault(task, Totals()).merge(totals)

    def info(self) -> dict[str, Any]:
        """For the `config` of a results file: `decoding`, by task; {} where nothing was decoded."""
        found = {task: totals.info() for task, totals in self.by_task.items()}
        return {"decoding": found} if found else {}
