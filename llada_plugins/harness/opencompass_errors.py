"""Errors of a model's entry as one line, also where OpenCompass would print how it got there.

With --debug it builds models in its own process, which such an error ends.
"""

from __future__ import annotations

import functools
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import ParamSpec, TypeVar

from .opencompass_tasks import infer_task

PACKAGE = Path(__file__).parents[1]
Given = ParamSpec("Given")
Found = TypeVar("Found")


def told_in_one_line(function: Callable[Given, Found]) -> Callable[Given, Found]:
    """The function; what it refuses, if that ends the program of a task, is told in one line.

    An error that others raised within it is told as before, with its traceback.
    """

    @functools.wraps(function)
    def told(*arguments: Given.args, **named: Given.kwargs) -> Found:
        try:
            return function(*arguments, **named)
        except (ValueError, OSError, ImportError) as error:
            *_, origin = traceback.extract_tb(error.__traceback__)
            if infer_task() and Path(origin.filename).is_relative_to(PACKAGE):
                sys.excepthook = functools.partial(_tell, error, sys.excepthook)
            raise

    return told


def _tell(
    known: BaseException,
    tell_others: Callable[[type[BaseException], BaseException, TracebackType | None], object],
    kind: type[BaseException],
    error: BaseException,
    trace: TracebackType | None,
) -> None:
    if error is known:
        print(f"error: {error}", file=sys.stderr)
    else:
        tell_others(kind, error, trace)
