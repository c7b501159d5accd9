"""What benchmarks.generation found, as text."""

from __future__ import annotations

from typing import Any

import torch

from . import accuracy, memory, peers, roofline
from .random_models import model_config


def report(result: dict[str, Any]) -> str:
    """All tables that were measured."""
    options, floor = result["options"], result["floor"]
    ceilings = {size: roofline.Ceiling(**each) for size, each in floor["ceilings"].items()}
    parts = [
        table(result),
        roofline.table(floor["seconds"], result["seconds"], ceilings, floor["overhead"]),
    ]
    if result["memory"]:
        config = model_config(result["shape"]["name"], options["memory_length"])
        itemsize = getattr(torch, result["machine"]["dtype"]).itemsize
        parts.append(
            memory.table(memory.Growth(**result["memory"]), config, options["num_masked"], itemsize)
        )
    if result["accuracy"]:
        parts.append(accuracy.table(result["accuracy"], options["accuracy_puzzles"]))
    if result["peer_runs"]:
        parts.append(peers.table(result["peer_runs"]))
    return "\n\n".join(parts)


def table(result: dict[str, Any]) -> str:
    """The medians and ratios as text."""
    lines = [
        f"{result['shape']['name']}, {result['machine']['dtype']}, {result['machine']['device']}: "
        f"{result['clock']} time of a step",
        f"{'form':<32}{'median ms':>12}{'min ms':>10}{'max ms':>10}{'x faster':>10}{'x exact':>10}",
    ]
    for name, seconds in result["seconds"].items():
        # of a cache's mean step there is none
        every = [each[result["clock"]] for each in result["every_step"].get(name, [])]
        ends = [f"{1000 * end(every):.1f}" if every else "" for end in (min, max)]
        ratio = f"{result['ratios'][name]:.2f}" if name in result["ratios"] else ""
        over = f"{result['times_exact'][name]:.3f}" if name in result["times_exact"] else ""
        lines.append(
            f"{name:<32}{1000 * seconds:>12.1f}{ends[0]:>10}{ends[1]:>10}{ratio:>10}{over:>10}"
        )
    lines += [
        f"policy head of {width} hidden units by itself: {100 * share:.3f} % of an exact step"
        for width, share in result["head_share"].items()
    ]
    for name, precision in (("", ""), ("_low_precision", " in bfloat16")):
        gains = [
            seconds[f"batch8_alone{name}"] / seconds[f"batch8{name}"]
            for seconds in (result["seconds"], result["floor"]["seconds"])
        ]
        lines.append(
            f"eight rows together{precision}: {gains[0]:.2f} times the tokens a second of one by "
            f"one, {gains[1]:.2f} by their floors"
        )
    lines.append(f"router by itself: {100 * result['router_share']:.2f} % of an exact step")
    return "\n".join(
        [*lines, f"same tokens at temperature 0: {'yes' if result['same_tokens'] else 'NO'}"]
    )
