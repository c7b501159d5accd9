"""The callers of a model: what a harness keeps in its variables and tells no model."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from types import FrameType


def callers() -> Iterator[FrameType]:
    """The frames of this thread, innermost first, then of the others.

    Inferencers with a pool of threads wait in one of those.
    """
    own = threading.get_ident()
    others = [frame for thread, frame in sys._current_frames().items() if thread != own]
    for innermost in (sys._getframe(1), *others):
        frame: FrameType | None = innermost
        while frame is not None:
            yield frame
            frame = frame.f_back
