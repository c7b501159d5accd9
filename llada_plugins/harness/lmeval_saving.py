"""Results that lm-eval could not save end its run with an error, not with exit status 0.

lm-eval logs a warning and goes on, so a run of days may leave nothing behind it.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from lm_eval.utils import make_table

from .frames import callers

TRACKER = "lm_eval.loggers.evaluation_tracker"
UNSAVED = "Could not save"  # how the tracker's warnings begin, 0.4.10 to 0.4.13


class _Raise(logging.Filter):
    """Raises OSError in the place of the tracker's warning."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.getMessage().startswith(UNSAVED):
            if results := _results():
                print(make_table(results))  # which lm-eval prints after it has saved
            what = record.getMessage().removeprefix(UNSAVED).strip()
            raise OSError(f"lm-eval could not save the {what}: {sys.exc_info()[1]!r}")
        return True


def fail_where_unsaved() -> None:
    """From now on a warning that nothing was saved is an error."""
    logger = logging.getLogger(TRACKER)
    if not any(isinstance(each, _Raise) for each in logger.filters):
        logger.addFilter(_Raise())


def _results() -> Mapping[str, Any]:
    """The results that are being saved; {} where they were, and only samples are not."""
    saving = (each for each in callers() if each.f_code.co_name == "save_results_aggregated")
    return next((frame.f_locals["results"] for frame in saving), {})


def check_output(folder: Path | None) -> None:
    """Raise OSError if nothing can be written where results will go; None: they go nowhere."""
    if folder is None:
        return
    there = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    try:
        TemporaryFile(dir=there).close()
    except OSError as error:
        raise OSError(f"--output_path: {there} cannot be written to: {error.strerror}") from None
