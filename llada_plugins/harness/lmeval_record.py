"""What the answers of each task were decoded with, for lm-eval's results file."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from llada_plugins.sampling.config import SamplerConfig

DIFFERS = "see samplers"  # stands where answers do not agree on an option


class Samplers:
    """The different samplers of each task, in the order of their first requests."""

    def __init__(self) -> None:
        self.by_task: dict[str, dict[SamplerConfig, None]] = {}

    def note(self, task: str | None, samplers: Iterable[SamplerConfig]) -> None:
        """A task's requests; lm-eval names the task of each request, callers from Python none."""
        self.by_task.setdefault(task or "requests", {}).update(dict.fromkeys(samplers))

    def as_dict(self) -> dict[str, list[dict[str, Any]]]:
        return {
            task: [asdict(sampler) for sampler in samplers]
            for task, samplers in self.by_task.items()
        }

    def info(self) -> dict[str, Any]:
        """For the `config` of the results: `sampler` and `samplers` by task.

        In `sampler` stand the options on which all answers agree.

        Empty where nothing was decoded: then the model's own options are all that there
        is to say.
        """
        samplers = itertools.chain.from_iterable(self.by_task.values())
        used = list(dict.fromkeys(samplers))
        if not used:
            return {}
        agreed = {
            name: value if all(getattr(each, name) == value for each in used) else DIFFERS
            for name, value in asdict(used[0]).items()
        }
        sources = {sampler.source for sampler in used}
        return {
            "sampler": agreed,
            "samplers": self.as_dict(),
            "confidence_source": sources.pop() if len(sources) == 1 else DIFFERS,
        }
