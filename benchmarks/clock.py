"""Time of a piece of work on a CPU or a GPU."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch


class Seconds(NamedTuple):
    """What one step took."""

    wall: float
    cpu: float  # of all threads


def timed(work: Callable[[], Any], device: torch.device) -> Seconds:
    """The wall and CPU time of work, until the device has finished it."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    wait()
    return Seconds(time.perf_counter() - wall, time.process_time() - cpu)
