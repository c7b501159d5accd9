"""An answer at every moment of its decoding, from the events of a trace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from .trace import MASKED, Accepted, Array, Event, Pass

UNKNOWN = -1  # stands for the mask in a frame, which holds no padding


class Frame(NamedTuple):
    """An answer at one moment: before the first step, after a step, or after a Review acted."""

    tokens: Array  # (G,) int32, UNKNOWN where masked
    event: int  # number of the event that led here; -1 before all
    step: int | None  # of a pass, from 0; None where a Review masked or put back tokens


def frames(events: Sequence[Event]) -> list[Frame]:
    """An answer's states in order; G positions, as many as its passes reached."""
    ends = [event.window.stop for event in events if isinstance(event, Pass)]
    tokens = np.full(max(ends, default=0), UNKNOWN, np.int32)
    found = [Frame(tokens, -1, None)]

    def show(number: int, step: int | None, window: slice, values: Any) -> None:
        tokens = found[-1].tokens.copy()
        tokens[window] = values
        if step is not None or not np.array_equal(tokens, found[-1].tokens):
            found.append(Frame(tokens, number, step))

    for number, event in enumerate(events):
        if isinstance(event, Accepted):
            values = np.full(len(tokens), UNKNOWN, np.int32)
            values[: len(event.answer)] = event.answer[: len(tokens)]
            show(number, None, slice(None), values)
        elif isinstance(event, Pass):
            masked = event.flags[0] & MASKED > 0
            show(number, None, event.window, np.where(masked, UNKNOWN, event.proposed[0]))
            after = np.where(event.masked_after, UNKNOWN, event.proposed)
            for step, values in enumerate(after):
                show(number, step, event.window, values)
    return found
