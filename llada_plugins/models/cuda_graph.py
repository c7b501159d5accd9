"""Work recorded once and done again without its Python: torch's CUDA graphs.

What is recorded, and when it may be replayed, is in captured.py and replay.py.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import torch

Results = TypeVar("Results", bound=tuple[Any, ...])  # a record of tensors


class Graph(Protocol):
    """Work that is recorded once, and done again from the same memory into the same memory."""

    def capture(self, work: Callable[[], Results]) -> Results:
        """Record the work; returns where `replay` puts its results."""

    def replay(self) -> None:
        """Do it again, without its Python."""


class CudaGraph:
    """torch's CUDA graph of work on one device.

    beside: a graph that lives, of the same device, whose pool of memory it shares, for
    one is replayed at a time. A pool's handle is of no use once all its graphs are gone.
    """

    def __init__(self, device: torch.device, beside: CudaGraph | None = None) -> None:
        self.device, self.beside = device, beside
        self.graph = torch.cuda.CUDAGraph()

    def capture(self, work: Callable[[], Results]) -> Results:
        """See Graph. Raises RuntimeError where the work waits for the device."""
        pool = None if self.beside is None else self.beside.graph.pool()
        self.beside = None
        # The device, since work on one that is not current would run, unrecorded, and its
        # graph would be empty. The stream, since torch stays on the one that captures
        # where the end of a capture fails. Other threads may use the GPU meanwhile.
        stream, mode = _capturing(self.device), "thread_local"
        with (
            torch.cuda.device(self.device),
            torch.cuda.stream(torch.cuda.current_stream()),
            torch.cuda.graph(self.graph, pool=pool, stream=stream, capture_error_mode=mode),
        ):
            return work()

    def replay(self) -> None:
        """See Graph."""
        self.graph.replay()


@functools.cache
def _capturing(device: torch.device) -> torch.cuda.Stream:
    """The stream of a device on which work is captured: graphs of one pool have one."""
    return torch.cuda.Stream(device)
