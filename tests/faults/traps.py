"""OpenCompass' own traps: prevented, or told by `python -m llada_plugins.check`."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable

from llada_plugins import check

from .runs import Fault, Run, Setting, amid_answers, finish, last_line, refused, undisturbed

EVALUATED = ("--debug",)  # all of OpenCompass' work, in its own process


def told(run: Run, words: str) -> str:
    """The line of llada_plugins.check about a run, which has these words; Fault without one."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        status = check.main([str(run.folder)])
    lines = [line.strip() for line in said.getvalue().splitlines() if words in line]
    if not status or not lines:
        raise Fault(f"check ends with {status}, and says: {said.getvalue()}")
    return f"check: {lines[0][:120]}"


def all_failed(setting: Setting) -> str:
    """Exit status 0 of a run whose tasks all failed."""
    steps = ("-m", "infer")
    run = Run("opencompass", "llada", setting.folder / "run", dict(steps=-1), steps=steps)
    if status := finish(run):
        return f"OpenCompass ends with {status} by itself"
    return told(run, "no predictions, its task failed")


def remembered_size(setting: Setting) -> str:
    """A data set that was smaller when OpenCompass wrote its size down."""
    small = Run("opencompass", "llada", setting.folder / "small", rows="[:16]", parts=2)
    if finish(small._replace(steps=EVALUATED)):
        raise Fault(f"the small run fails: {last_line(small)}")
    large = small._replace(folder=setting.folder / "large", rows="[:40]", steps=EVALUATED)
    finish(large)
    return told(large, "16 of 40 rows have answers")


def other_options(setting: Setting) -> str:
    """Answers of other options under the same abbr, some or all of which are there."""
    run = Run("opencompass", "llada", setting.folder / "amid")
    amid_answers(run)
    refused(run._replace(options=dict(steps=8)), "of another model or version, or of other options")
    whole = Run("opencompass", "llada", setting.folder / "whole")
    undisturbed(whole)
    if finish(whole._replace(options=dict(steps=8))):
        return "refused, with some answers and with all"
    return f"refused with some answers; with all {told(whole, 'made with other options')}"


def other_workers(setting: Setting) -> str:
    """A run that goes on with another number of parts than it began with."""
    run = Run("opencompass", "llada", setting.folder / "run", parts=2)
    amid_answers(run)
    return f"refused: {refused(run._replace(parts=3), 'is cut into')[-100:]}"


FAULTS: dict[str, Callable[[Setting], str]] = {
    "all tasks of OpenCompass fail": all_failed,
    "OpenCompass remembers another size": remembered_size,
    "OpenCompass finds answers of other options": other_options,
    "OpenCompass goes on with other parts": other_workers,
}
