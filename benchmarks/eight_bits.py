"""Time of a forward under each `quantize`, over the one of the weights as they are.

    python -m benchmarks.eight_bits
        100M shape, one CPU thread; 2 minutes, 4 GB
    python -m benchmarks.eight_bits --compile on
        the same with compiled layers
    python -m benchmarks.eight_bits --shape 8b --device cuda --compile on
        LLaDA-8B's shape in bfloat16; not run yet

Blocks alone, without the head, which `quantize` leaves as it is: one row of as many
columns as a cache's later step has, and one of as many as a whole canvas. Weights are
random, so beside the time stands no accuracy (docs/memory.md has that) but what rounding
changes of the last hidden states: root mean square, relative. It grows with depth. The
exit status is 1 where that error is as large as the states themselves.

All take turns in every repetition, and a ratio is one of medians, of CPU time on a CPU
and of wall time on a GPU.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch

from llada_plugins.models.compiling import check_compile
from llada_plugins.models.placement import pick_device, pick_dtype
from llada_plugins.models.quantization import METHODS, check_quantize
from llada_plugins.models.scaled_linear import check_device
from llada_plugins.options.fields import arg

from .clock import clock_of, device_name, timed
from .command import check_counts, check_folder, run_benchmark
from .random_models import model_config, random_model, random_tokens
from .steps import quantised_copy

PLAIN = "none"
MOST_ERROR = 1.0  # nf4 has .24 on the tiny shape, .50 on 100m


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is measured, and where."""

    shape: Literal["tiny", "100m", "8b"] = arg("100m", "width and depth of the model")
    device: str = arg("cpu", "auto (a GPU if there is one), cpu, cuda or cuda:N")
    dtype: str = arg(
        "auto",
        "of the activations: auto (bfloat16 on a GPU, else float32), float32, bfloat16 or float16",
    )
    compile: Literal["on", "off"] = arg("off", "are layers compiled")
    threads: int = arg(1, "CPU threads; one is steadiest on a shared machine")
    step_columns: int = arg(32, "columns of a cache's later step")
    canvas_columns: int = arg(512, "columns of a whole canvas")
    repetitions: int = arg(5, "forwards measured of each, after two that are not")
    seed: int = arg(0, "of weights and tokens")
    json: str | None = arg(None, "file for the results as JSON")

    def __post_init__(self) -> None:
        check_counts(self, "threads", "step_columns", "canvas_columns", "repetitions")
        check_folder("json", self.json)
        device = pick_device(self.device)
        pick_dtype(self.dtype, device)
        check_compile(self.compile, device)


def methods_of(device: torch.device, dtype: torch.dtype) -> list[str]:
    """What the device can do, of the packages that are installed."""
    found = []
    for name in METHODS:
        try:
            check_quantize(name)
            check_device(name, device, dtype)
        except (ImportError, ValueError) as error:
            print(f"left out: {error}", file=sys.stderr)
        else:
            found.append(name)
    return found


@torch.inference_mode()
def run(options: Options) -> dict[str, Any]:
    """Seconds, ratios and errors by the number of columns and by `quantize`."""
    device = pick_device(options.device)
    dtype = pick_dtype(options.dtype, device)
    columns = (options.step_columns, options.canvas_columns)
    plain = random_model(model_config(options.shape, max(columns)), device, options.seed).to(dtype)
    models = {PLAIN: plain}
    models |= {name: quantised_copy(plain, name) for name in methods_of(device, dtype)}
    for model in models.values():
        model.compile_layers(options.compile)
    found: dict[str, Any] = {"device": device_name(device), "dtype": str(dtype), "columns": {}}
    for number in columns:
        tokens = random_tokens(plain, number, options.seed)
        outputs = {name: model.hidden_states(tokens) for name, model in models.items()}
        exact = outputs[PLAIN].double()
        taken: dict[str, list[float]] = {name: [] for name in models}
        for repetition in range(1 + options.repetitions):
            for name, model in models.items():
                seconds = timed(partial(model.hidden_states, tokens), device)
                if repetition > 0:
                    taken[name].append(getattr(seconds, clock_of(device)))
        medians = {name: statistics.median(each) for name, each in taken.items()}
        found["columns"][str(number)] = {
            name: {
                "seconds": medians[name],
                "times_faster": medians[PLAIN] / medians[name],
                "error": float((outputs[name] - exact).norm() / exact.norm()),
            }
            for name in models
        }
    return found


def table(result: dict[str, Any]) -> str:
    """The ratios and errors, a line each."""
    lines = [f"{result['device']}, {result['dtype']}: blocks of one forward, one row"]
    lines += [f"{'columns':>8}  {'quantize':<14}{'ms':>10}{'x faster':>10}{'error':>9}"]
    lines += [
        f"{number:>8}  {name:<14}{1000 * row['seconds']:>10.1f}{row['times_faster']:>10.2f}"
        f"{row['error']:>9.4f}"
        for number, rows in result["columns"].items()
        for name, row in rows.items()
    ]
    return "\n".join(lines)


def agreed(result: dict[str, Any]) -> bool:
    """Is what rounding changes small everywhere?"""
    return all(
        row["error"] < MOST_ERROR for rows in result["columns"].values() for row in rows.values()
    )


def main(argv: Sequence[str] | None = None) -> int:
    return run_benchmark(Options, "eight_bits", run, table, agreed, argv)


if __name__ == "__main__":
    sys.exit(main())
