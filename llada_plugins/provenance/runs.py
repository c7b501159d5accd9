"""A finished evaluation of one task, as either harness left it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Run:
    """What was asked of which model, and what came of it; None for what no file says."""

    harness: str  # as in a Source of the table
    task: str  # the harness's name of it
    model: str  # folder, hub id or name in the config
    preset: str | None
    options: Mapping[str, Any]  # of model, sampler and likelihood, those that are known
    score: float | None = None  # percent
    metric: str | None = None
    questions: int | None = None
    shots: int | None = None
    chat: bool | None = None
    template: str | None = None  # SHA-256 of the chat template's text
    dtype: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    # differences that only the harness sees, as lines
    others: Sequence[str] = ()
    problems: Sequence[str] = ()  # why there may be no score, or a wrong one

    def scored(self, values: Mapping[str, float], metric: str, factor: float) -> Run:
        """With the score of a metric, where it is there."""
        value = values.get(metric)
        return replace(self, metric=metric, score=None if value is None else factor * value)
