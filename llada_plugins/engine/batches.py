"""How many rows an Engine computes at once: as configured, or as many as memory holds."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from typing import Literal, NamedTuple, Protocol

import torch

from llada_plugins.diffusion.arguments import is_whole
from llada_plugins.diffusion.batch_limit import BatchLimit, OutOfMemory
from llada_plugins.diffusion.denoiser import capacity

logger = logging.getLogger(__name__)

AUTO: Literal["auto"] = "auto"
AUTO_ROWS = 32  # of auto where memory is not measured, which is on a CPU
MOST_ROWS = 256  # of auto where it is
USED_SHARE = 0.9  # of free memory; the rest is for what two probes do not show
PROBE_ROWS = 3  # of the second probe; the first has one


class Meter(Protocol):
    """The memory of a device."""

    def free(self) -> int:
        """Bytes that can still be taken."""

    def peak(self, work: Callable[[], None]) -> int:
        """Bytes that `work` holds at most, beyond what is held before it."""


class CudaMeter:
    """The memory of a GPU, as torch's allocator and the driver tell it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def free(self) -> int:
        """What no process has, and what the allocator keeps without using it."""
        unused, _ = torch.cuda.mem_get_info(self.device)
        kept = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return unused + kept

    def peak(self, work: Callable[[], None]) -> int:
        """See `Meter`."""
        before = torch.cuda.memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        work()
        return torch.cuda.max_memory_allocated(self.device) - before


def meter_of(device: torch.device) -> Meter | None:
    """The device's meter; None on a CPU, whose memory other programs share."""
    return CudaMeter(device) if device.type == "cuda" else None


class Probe(NamedTuple):
    """A step whose memory is measured."""

    run: Callable[[int], None]  # does it with so many requests, or rows of masked answers
    columns: int  # tokens of each


class Cost(NamedTuple):
    """Bytes that a step takes."""

    fixed: float  # whatever its size
    column: float  # for each column of each request, in all its versions

    def tokens_within(self, free: int) -> int:
        """How many columns there is room for."""
        return int((free * USED_SHARE - self.fixed) / self.column)


def cost_of(probe: Probe, meter: Meter) -> Cost:
    """What a step costs, from one of one request and one of PROBE_ROWS."""
    probe.run(1)  # a process's first step takes workspaces as well, which stay
    one = meter.peak(lambda: probe.run(1))
    several = meter.peak(lambda: probe.run(PROBE_ROWS))
    column = max(1.0, (several - one) / ((PROBE_ROWS - 1) * probe.columns))
    return Cost(max(0.0, one - column * probe.columns), column)


class Batches:
    """The batches of an engine, by kind: steps of one kind cost the same for each column.

    What did not fit once is remembered by kind, over all calls of the engine.
    """

    def __init__(
        self,
        batch_size: int | Literal["auto"],
        batch_tokens: int | Literal["auto"] | None,
        meter: Meter | None,
    ) -> None:
        self.batch_size, self.batch_tokens, self.meter = batch_size, batch_tokens, meter
        self.most_rows: int | None = None  # of auto
        self.measured: dict[Hashable, Measured] = {}
        self._limits: dict[Hashable, BatchLimit] = {}

    @property
    def is_auto(self) -> bool:
        """Is the size of batches ours to choose?"""
        if self.batch_tokens is None:
            return self.batch_size == AUTO
        return self.batch_tokens == AUTO

    def limit(
        self, kind: Hashable, make_probe: Callable[[], Probe], batch_size: int | None = None
    ) -> BatchLimit:
        """How many rows of this kind are computed at once.

        batch_size: of this call, in place of the configured one; where batch_tokens is
        configured, that counts. ValueError where it is no number of rows.
        """
        if batch_size is not None and not (is_whole(batch_size) and batch_size > 0):
            raise ValueError(f"batch_size must be a whole number, at least 1, got {batch_size!r}")
        plan = self._plan(kind, make_probe, batch_size)
        limit = self._limits.setdefault(kind, BatchLimit(plan))
        limit.rows_at_once = plan
        return limit

    def _plan(
        self, kind: Hashable, make_probe: Callable[[], Probe], batch_size: int | None
    ) -> Callable[[int], int]:
        if isinstance(self.batch_tokens, int):
            return capacity(1, self.batch_tokens)
        if self.batch_tokens is None and batch_size is not None:
            return capacity(batch_size)
        if not self.is_auto:
            assert isinstance(self.batch_size, int)
            return capacity(self.batch_size)
        if self.meter is None:
            return capacity(self.most_rows or AUTO_ROWS)
        if kind not in self.measured:
            self.measured[kind] = measured(make_probe(), self.meter)
        most_rows, by_memory = self.most_rows or MOST_ROWS, self.measured[kind].rows
        return lambda longest: min(most_rows, by_memory(longest))

    def chosen_rows(self) -> list[int]:
        """Rows that auto chose: of each kind so far, for the requests that were measured."""
        if not self.is_auto:
            return []
        if self.meter is None:
            return [self.most_rows or AUTO_ROWS]
        most_rows = self.most_rows or MOST_ROWS
        return [min(most_rows, each.rows(each.longest)) for each in self.measured.values()]


class Measured(NamedTuple):
    """What fits the memory that was free."""

    tokens: int  # of a batch
    longest: int  # tokens of the rows that were measured

    def rows(self, longest: int) -> int:
        """Rows of so many tokens; one where no more fits."""
        return max(1, self.tokens // longest)


@torch.inference_mode()
def measured(probe: Probe, meter: Meter) -> Measured:
    """How large batches of steps like the probe may be; one row where no more fits."""
    try:
        cost = cost_of(probe, meter)
    except OutOfMemory:
        return Measured(probe.columns, probe.columns)
    free = meter.free()
    tokens = max(probe.columns, cost.tokens_within(free))
    logger.info(
        "%.1f GB are free and a column takes %.0f kB: %d tokens are computed at once",
        free / 1e9,
        cost.column / 1e3,
        tokens,
    )
    return Measured(tokens, probe.columns)
