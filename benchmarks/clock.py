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
    """The wall and CPU time of work, until the device has finished it."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    wait()
    return Seconds(time.perf_counter() - wall, time.process_time() - cpu)
