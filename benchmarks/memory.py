"""Memory of a decoding step beyond the model's, as the canvas grows.

It is counted at every allocation, not read off the process.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from llada_plugins.models.llada_config import LLaDAConfig


class Growth(NamedTuple):
    """Peaks of steps that differ in the canvas's length alone."""

    peaks: dict[int, int]  # length -> bytes
    per_column: float  # bytes that a further column adds, between the two longest


def peak_bytes(work: Callable[[], Any], device: torch.device) -> int:
    """The most bytes that tensors made by `work` hold at one time."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        work()
    with tempfile.TemporaryDirectory() as folder:
        profiled.export_chrome_trace(str(Path(folder) / "trace.json"))
        events = json.loads((Path(folder) / "trace.json").read_text(encoding="utf-8"))[
            "traceEvents"
        ]
    held = most = 0
    for event in sorted(
        (event for event in events if event["name"] == "[memory]"), key=lambda event: event["ts"]
    ):
        held += event["args"]["Bytes"]
        most = max(most, held)
    return most


def growth(
    step: Callable[[int], Callable[[], Any]], lengths: Sequence[int], device: torch.device
) -> Growth:
    """Peaks of step(length)() for every length, in ascending order; two at least."""
    peaks = {length: peak_bytes(step(length), device) for length in lengths}
    first, last = list(peaks)[-2:]
    return Growth(peaks, (peaks[last] - peaks[first]) / (last - first))


def table(found: Growth, config: LLaDAConfig, num_masked: int, itemsize: int) -> str:
    """The peaks, and what they are made of."""
    logits = num_masked * config.vocab_size * itemsize
    lines = [f"{'columns of the canvas':<32}{'peak MB beyond the model':>26}"]
    lines += [f"{length:<32}{peak / 1e6:>26.1f}" for length, peak in found.peaks.items()]
    column = found.per_column / itemsize
    lines.append(
        f"a further column: {found.per_column / 1e3:.1f} kB, {column / config.d_model:.1f} times "
        f"its hidden state and {column / config.vocab_size:.3f} times its logits"
    )
    shortest = min(found.peaks)
    lines.append(
        f"{shortest} columns: {found.peaks[shortest] / logits:.1f} times the logits of "
        f"{num_masked} masked positions, which are {logits / 1e6:.1f} MB"
    )
    return "\n".join(lines)
