"""Time of a piece of work and the memory it needs, of the process or of a GPU.

memory.py counts allocations instead; that takes a profiler, which slows the work down.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from .clock import Seconds, timed


def measured(work: Callable[[], None], device: torch.device) -> tuple[Seconds, int | None]:
    """Time of work, and the bytes that it held at most beyond those held before."""
    status, clear = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        return timed(work, device), torch.cuda.max_memory_allocated(device) - before
    if not status.is_file():
        return timed(work, device), None

    def resident(name: str) -> int:
        return next(
            int(line.split()[1]) * 1024
            for line in status.read_text().splitlines()
            if line.startswith(name)
        )

    # of glibc: what work before has freed is given back, else this could take it unseen
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    clear.write_text("5")  # the peak starts anew (Linux)
    before = resident("VmRSS:")
    return timed(work, device), resident("VmHWM:") - before
