"""Time of a piece of work on a CPU or a GPU."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch

Clock = Literal["wall", "cpu"]  # a field of Seconds


class Seconds(NamedTuple):
    """What one step took."""

    wall: float
    cpu: float  # of all threads


def clock_of(device: torch.device) -> Clock:
    """By which clock a device is measured: a CPU that others use too by its own time."""
    return "wall" if device.type == "cuda" else "cpu"


def device_name(device: torch.device) -> str:
    """What results call the device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def timed(work: Callable[[], Any], device: torch.device) -> Seconds:
    """The wall and CPU time of work, until the device has finished it.

    A GPU's wall time is between two events on it: starting to wait for it does not count.
    """
    if device.type == "cuda":
        return _timed_by_events(work, device)
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Seconds(time.perf_counter() - wall, time.process_time() - cpu)


def _timed_by_events(work: Callable[[], Any], device: torch.device) -> Seconds:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    stream = torch.cuda.current_stream(device)  # the device need not be the current one
    torch.cuda.synchronize(device)
    cpu = time.process_time()
    begin.record(stream)
    work()
    end.record(stream)
    end.synchronize()
    return Seconds(begin.elapsed_time(end) / 1000, time.process_time() - cpu)
