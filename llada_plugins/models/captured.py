"""Work over memory that stays in place: done as it is, then captured as a graph, then replayed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic

import torch
from torch import Tensor, nn

from .cuda_graph import Graph, Results
from .records import leaves
from .submodules import is_hooked

WARM_UP = 2  # times that work is done before it is captured, in which kernels are chosen


class Captured(Generic[Results]):
    """One piece of work and, from its third time on, its graph."""

    def __init__(self) -> None:
        self.num_runs = 0
        self.graph: Graph | None = None
        self.found: Results | None = None  # where the graph puts its results

    def run(self, work: Callable[[], Results], make_graph: Callable[[], Graph]) -> Results:
        """What the work computes. Raises RuntimeError where it cannot be captured."""
        if self.num_runs < WARM_UP:
            found = work()
            self.num_runs += 1  # not of one that memory was too small for
            return found
        if self.graph is None:
            return self._capture(work, make_graph())
        assert self.found is not None
        self.graph.replay()
        return self.found

    @property
    def at_capture(self) -> bool:
        """Is the next run the capture, or was the last one, which failed?"""
        return self.graph is None and self.num_runs >= WARM_UP

    def _capture(self, work: Callable[[], Results], graph: Graph) -> Results:
        """Record the work; kept if its first replay computes what the work does."""
        expected = work()
        found = graph.capture(work)
        for each in leaves(found):
            spoil(each)
        graph.replay()
        if not all(map(_agree, leaves(found), leaves(expected))):
            raise RuntimeError("the first replay gave other numbers than the work itself")
        self.graph, self.found = graph, found
        return found


def spoil(values: Tensor) -> None:
    """Leave what no work computes, and a replay of nothing would not change."""
    values.fill_(torch.nan if values.is_floating_point() else -1)


def _agree(found: Tensor, expected: Tensor) -> bool:
    """Are these the same work's results? Waits for the device.

    Replayed kernels round alike, or nearly so. A graph that left out work or read other
    memory gives something else altogether, which a twentieth of the whole tells apart. Of
    tokens half must be equal: rounding decides between those that are as good as each other.
    """
    same = (found == expected) | (found.isnan() & expected.isnan())
    if not found.is_floating_point():
        return bool(2 * same.sum() >= same.numel())
    error = (found - expected).masked_fill(same, 0).float().norm()
    return bool(error <= 0.05 * expected.masked_fill(~expected.isfinite(), 0).float().norm())


def obstacle(model: nn.Module) -> str | None:
    """Why the model cannot be replayed, in words; None where it can."""
    for name, module in model.named_modules():
        if not name:  # see Snapshot
            continue
        if is_hooked(module):
            return f"{name} has hooks (a router's of several blocks, an adapter's, offloading's)"
        package = type(module).__module__.partition(".")[0]
        if package not in ("torch", "llada_plugins"):
            return f"{name} is a module of {package}, which may compute otherwise the next time"
    return None
