"""What every section of benchmarks.gpu works on."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from llada_plugins.models.llada import LLaDA

from . import roofline
from .clock import Clock, timed
from .gpu_options import Options

WARM_UP = 4  # repetitions that are not measured; a graph is captured at the third


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
        for _ in range(WARM_UP):
            work()
        device = self.model.device
        found = [timed(work, device) for _ in range(self.options.repetitions)]
        return statistics.median(getattr(each, self.clock) for each in found)

    def measured(
        self, run: Callable[[], Any], works: Sequence[roofline.Work], num_steps: int = 1
    ) -> dict[str, float]:
        """Seconds and floor of a step, its kernels, and the share of it in which none ran.

        run: so many steps. works: what a step of each row cannot do without, on average.
        """
        seconds = self.median(run) / num_steps
        profile = roofline.profiled(run, self.model.device)
        config, itemsize = self.model.config, self.model.dtype.itemsize
        return {
            "seconds": seconds,
            "floor": roofline.floor_seconds(config, works, itemsize, self.ceiling),
            "num_calls": round(profile.num_calls / num_steps),
            "idle_share": profile.idle_share(num_steps * seconds),
            "product_share": profile.product_share,
        }
