"""Presets as people read them: a table of many, one with its commands."""

from __future__ import annotations

from collections.abc import Sequence

from llada_plugins.settings.commands import lm_eval_command, opencompass_command
from llada_plugins.settings.config_files import cost
from llada_plugins.settings.table import Preset

NO_TASK = "none: this harness does not have the task"


def listed(presets: Sequence[Preset]) -> list[str]:
    """A line for each: name, task, published scores, options."""
    rows = [
        (preset.name, preset.task.title, _scores(preset), _options(preset)) for preset in presets
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return [
        "  ".join(part.ljust(width) for part, width in zip(row, [*widths, 0])).rstrip()
        for row in rows
    ]


def described(preset: Preset) -> list[str]:
    """Everything that the table says of one, and the command of each harness."""
    shots = "the task's own" if preset.shots is None else str(preset.shots)
    facts = {
        "checkpoint": preset.pretrained,
        "task": preset.task.title,
        "questions": "not known" if preset.task.questions is None else str(preset.task.questions),
        "shots": f"{shots} (lm-eval); in OpenCompass the data set config has them",
        "chat template": "yes" if preset.chat else "no",
        "options": _options(preset),
        "dtype": preset.dtype,
        "cost": cost(preset),
    }
    if preset.stop_words:
        facts["stop words"] = f"{', '.join(map(repr, preset.stop_words))} (OpenCompass)"
    lines = [preset.name, *(f"  {name:<14}{text}" for name, text in facts.items())]
    for score in preset.scores:
        lines.append(f"  {'published':<14}{score.value:g}  {score.source.where}")
    if not preset.scores:
        lines.append(f"  {'published':<14}no score")
    lines += [f"  {'not known':<14}{note}" for note in preset.unverified]
    return [
        *lines,
        "lm-eval:",
        f"  {lm_eval_command(preset) or NO_TASK}",
        "OpenCompass:",
        f"  {opencompass_command(preset) or NO_TASK}",
    ]


def _scores(preset: Preset) -> str:
    return " / ".join(f"{score.value:g}" for score in preset.scores) or "-"


def _options(preset: Preset) -> str:
    return ",".join(f"{name}={value}" for name, value in preset.options.items())
