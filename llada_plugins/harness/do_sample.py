"""`do_sample`, which both harnesses have beside the sampler's options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def with_do_sample(
    options: Mapping[str, Any], do_sample: bool | None, given: Mapping[str, Any]
) -> dict[str, Any]:
    """A request's sampler options as its do_sample means them; given: the model's own.

    False is greedy, whatever else is listed, as tasks list the options of their authors.
    True without a temperature samples at the model's, else at 1, as transformers does.
    """
    asked = dict(options)
    if do_sample is False:
        asked.pop("top_p", None)
        asked.pop("top_k", None)
        asked["temperature"] = 0.0
    elif do_sample and "temperature" not in asked and not given.get("temperature"):
        asked["temperature"] = 1.0
    return asked
