"""What every section of benchmarks.gpu works on."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from llada_plugins.models.compiling import lacking
from llada_plugins.models.llada import LLaDA

from . import roofline
from .clock import Clock, timed
from .gpu_options import Options

WARM_UP = 4  # repetitions that are not measured; a graph is captured at the third
LONG, FEW = 0.3, 3  # work of so many seconds is measured a few times, after fewer


class Bench(NamedTuple):
    """A model, what is asked of it, and what its device reaches."""

    model: LLaDA
    options: Options
    ceiling: roofline.Ceiling
    clock: Clock
    same_in_float32: bool  # did ours and the published loop decode the same greedy tokens?
    deadline: float = math.inf  # by time.monotonic(): nothing is begun later

    def each_in_time(
        self, names: Iterable[str], measure: Callable[[str], dict[str, Any]]
    ) -> dict[str, Any]:
        """What is measured by name; in place of what there is no time for, the reason."""
        return {
            name: measure(name)
            if time.monotonic() < self.deadline
            else {"lack": "no time was left"}
            for name in names
        }

    def median(self, work: Callable[[], Any]) -> float:
        """Seconds of a piece of work, the median of some repetitions."""

        def seconds() -> float:
            return float(getattr(timed(work, self.model.device), self.clock))

        repetitions = self.options.repetitions
        seconds()  # which may compile
        for _ in range(WARM_UP - 1):
            if seconds() > LONG:
                repetitions = min(FEW, repetitions)
                break
        return statistics.median(seconds() for _ in range(repetitions))

    def when_compiled(self, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What is measured with compiled layers; where they cannot be, the reason."""
        if lack := lacking(self.model.device):
            return {"lack": f"{lack.what}: {lack.remedy}"}
        with compiled_layers(self.model):
            return measure()

    def compiled_steps(
        self, first: Callable[[int], Any], steps: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """Steps with compiled layers, and the seconds that compiling took.

        first: runs steps of a number of rows, which compiles them.
        """

        def measure() -> dict[str, Any]:
            began = time.perf_counter()
            for rows in {min(self.options.rows), max(self.options.rows)}:
                first(rows)
            return {"compile_seconds": time.perf_counter() - began, **steps()}

        return self.when_compiled(measure)

    def both_ways(self, work: Callable[[], Any]) -> dict[str, float]:
        """Seconds of a piece of work with eager layers and, where they can be, compiled ones."""
        found = {"eager": self.median(work)}
        compiled = self.when_compiled(lambda: {"compiled": self.median(work)})
        return found if "lack" in compiled else {**found, **compiled}

    def measured(
        self,
        run: Callable[[], Any],
        works: Sequence[roofline.Work],
        num_steps: int = 1,
        experts: float | None = None,
    ) -> dict[str, float]:
        """Seconds and floor of a step, its kernels, and the share of it in which none ran.

        run: so many steps. works: what a step of each row cannot do without, on average.
        experts: as of roofline.num_bytes.
        """
        seconds = self.median(run) / num_steps
        profile = roofline.profiled(run, self.model.device)
        config, itemsize = self.model.config, self.model.dtype.itemsize
        return {
            "seconds": seconds,
            "floor": roofline.floor_seconds(config, works, itemsize, self.ceiling, experts),
            "num_calls": round(profile.num_calls / num_steps),
            "idle_share": profile.idle_share(num_steps * seconds),
            "product_seconds": profile.product_share * profile.busy_seconds / num_steps,
        }


@contextmanager
def compiled_layers(model: LLaDA) -> Iterator[None]:
    """Layers run compiled, and small forwards are replayed, until the end."""
    model.compile_layers("on")
    try:
        yield
    finally:
        model.compile_layers("off")
