"""The runs in a place, whichever harness left them there."""

from __future__ import annotations

from pathlib import Path

from llada_plugins.files.newest import newest
from llada_plugins.settings.table import Preset

from . import lmeval_results
from .runs import Run


def runs_in(place: Path) -> list[tuple[Run, list[Preset]]]:
    """The newest run at or below `place`, a task each with the presets of that task.

    Raises FileNotFoundError or ValueError that says what is missing.
    """
    if not place.exists():
        raise FileNotFoundError(f"{place}: no such file or folder")
    if place.is_file():
        found = lmeval_results.read(place)
    elif run := opencompass_run(place):
        from . import opencompass_results

        found = opencompass_results.read(run)
    else:
        results = newest(place, "results_*.json")
        if results is None:
            raise FileNotFoundError(
                f"{place}: holds neither results_*.json (lm_eval --output_path) nor a run of "
                "OpenCompass (configs/, predictions/)"
            )
        place = results
        found = lmeval_results.read(place)
    if not found:
        raise ValueError(f"{place}: nothing is published of the tasks in it")
    return found


def opencompass_run(place: Path) -> Path | None:
    """The newest run of OpenCompass in a work dir, or the run that `place` is; None for neither."""
    runs = [place, *sorted(place.iterdir(), reverse=True)]
    return next((run for run in runs if run.is_dir() and any((run / "configs").glob("*.py"))), None)
