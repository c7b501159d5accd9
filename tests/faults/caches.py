"""Files of answers that are not what they were, and two runs that write one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from .runs import (
    Fault,
    Run,
    Setting,
    compare,
    ended,
    finish,
    kill,
    last_line,
    refused,
    start,
    undisturbed,
)


def spoilt_cache(spoil: Callable[[Path], None]) -> Callable[[Setting], str]:
    """A file of answers that is not what it was: refused in a line that says what to do."""

    def fault(setting: Setting) -> str:
        run = Run("lm_eval", "llada", setting.folder / "run")
        expected = undisturbed(run).answers
        spoil(run.cache)
        shutil.rmtree(run.folder / "out")
        said = refused(run, "is damaged or of another kind")
        run.cache.unlink()
        if status := finish(run):
            raise Fault(f"without the file it ends with {status}: {last_line(run)}")
        compare(run, expected)
        reason = said.partition(" (")[2].partition(")")[0]
        return f"refused ({reason}); without the file all answers are equal"

    return fault


def cut_in_half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def no_database(path: Path) -> None:
    path.write_text("no database")


def other_model(setting: Setting) -> str:
    """A file of answers that other options wrote."""
    run = Run("lm_eval", "llada", setting.folder / "run")
    undisturbed(run)
    status = finish(run._replace(options=dict(steps=8)))
    said = last_line(run)
    if not status or "written by another model or version, or with other options" not in said:
        raise Fault(f"ends with {status}: {said}")
    return "refused in one line"


def two_runs(setting: Setting) -> str:
    """Two runs at once that write one file of answers."""
    expected = undisturbed(Run("lm_eval", "llada", setting.folder / "whole")).answers
    run = Run("lm_eval", "llada", setting.folder / "both")
    return both(run, [start(run), start(run)], expected)


def two_resumed(setting: Setting) -> str:
    """A run of OpenCompass that a second one resumes while it still goes on."""
    expected = undisturbed(Run("opencompass", "llada", setting.folder / "whole")).answers
    run = Run("opencompass", "llada", setting.folder / "both")
    first = start(run)
    while not run.on_disk():
        if ended(first, 0.01) is not None:
            raise Fault(f"ended before the second began: {last_line(run)}")
    return both(run, [first, start(run)], expected)


def both(run: Run, pair: Sequence[int], expected: Sequence[str]) -> str:
    """Wait for two processes of a run; its answers then, and those of a third."""
    statuses = [ended(child, 300) for child in pair]
    for child, status in zip(pair, statuses):
        if status is None:
            kill(child)
            raise Fault("one of them did not end")
    if all(statuses):
        raise Fault(f"none of them ends with 0: {last_line(run)}")
    compare(run, expected)
    if finish(run):
        raise Fault(f"a third run cannot read what they left: {last_line(run)}")
    compare(run, expected)
    return f"exit statuses {statuses}, all answers equal, and of a third run too"


FAULTS: dict[str, Callable[[Setting], str]] = {
    "cache cut in half": spoilt_cache(cut_in_half),
    "cache that is no database": spoilt_cache(no_database),
    "cache of another model": other_model,
    "two runs on one cache, lm_eval": two_runs,
    "two runs in one folder, opencompass": two_resumed,
}
