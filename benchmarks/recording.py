"""What record=trajectory costs: the same answers with it and without, in turns.

    python -m benchmarks.recording
        the tiny model of the package and a model of 512 columns and 8 layers, one CPU thread;
        3 CPU minutes

Answers of 16 tokens to 4x4 sudokus, one token a step, in batches of 1 and of 8, as a harness asks
for them: with the file that is written. Both ways decode the same batch one right after the other,
in turns first. The median of the ratios of CPU time is told with its 95 % bootstrap interval:
batches are short and many, so that what else the machine does falls on both ways alike. The exit
status is 1 if an answer differs.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy
import torch

from llada_plugins.engine.engine import Engine
from llada_plugins.engine.record_options import SUFFIX
from llada_plugins.engine.request import QuestionId, Request
from llada_plugins.methods.loading import Loading
from llada_plugins.models.llada import LLaDA
from llada_plugins.options.fields import arg
from llada_plugins.reports.render import markdown
from llada_plugins.tasks import sudoku

from .command import check_counts, check_folder, run_benchmark
from .random_models import random_model

LARGER: dict[str, Any] = dict(d_model=512, n_layers=8, n_heads=8, mlp_hidden_size=1376)
MODELS = ("tiny", "512x8")
DRAWS = 2000  # of the bootstrap
WARM_UP = 2  # batches: the first of a process are its slowest


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is measured, how often."""

    models: list[str] = dataclasses.field(
        default_factory=lambda: list(MODELS), metadata={"help": f"of {', '.join(MODELS)}"}
    )
    batch_sizes: list[int] = dataclasses.field(
        default_factory=lambda: [1, 8], metadata={"help": "answers decoded together"}
    )
    repetitions: int = arg(200, "batches, each decoded both ways")
    method: str = arg("llada", "llada, or llada_ups with its policy scores")
    threads: int = arg(1, "CPU threads")
    seed: int = arg(0, "of the larger model's weights and of the bootstrap")
    json: str | None = arg(None, "file for the results as JSON")

    def __post_init__(self) -> None:
        check_counts(self, "repetitions", "threads")
        if unknown := [each for each in self.models if each not in MODELS]:
            raise ValueError(f"models must be among {', '.join(MODELS)}, got {', '.join(unknown)}")
        if not self.batch_sizes or min(self.batch_sizes) < 1:
            raise ValueError(f"batch_sizes must be at least 1, got {self.batch_sizes}")
        check_folder("json", self.json)


def model_of(name: str, seed: int) -> LLaDA:
    """The tiny model, or one of random weights that has its vocabulary."""
    tiny = Engine("llada", device="cpu").model
    if name == "tiny":
        return tiny
    config = dataclasses.replace(tiny.config, **LARGER)
    return random_model(config, torch.device("cpu"), seed)


def seconds_of(engine: Engine, requests: Sequence[Request]) -> tuple[float, dict[int, str]]:
    """CPU seconds that the answers take, and their texts."""
    began = time.process_time()
    found = {number: completion.text for number, completion in engine.generate(requests)}
    return time.process_time() - began, found


def compare(model: LLaDA, batch_size: int, file: Path, options: Options) -> dict[str, Any]:
    """One cell: ratios of recorded to plain, and what a step takes."""
    common: dict[str, Any] = dict(device="cpu", gen_length=16, batch_size=batch_size)
    recording = dict(record="trajectory", record_file=str(file))
    loading = Loading(lambda: model)
    ways = {
        "plain": Engine(options.method, loading, **common),
        "recorded": Engine(options.method, loading, **common, **recording),
    }
    puzzles = itertools.cycle(problem.puzzle for problem in sudoku.problems("test", 200))
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    same = True
    for repetition in range(-WARM_UP, options.repetitions):
        batch = [
            Request(puzzle, ways["plain"].sampler, id=QuestionId("sudoku4", number))
            for number, puzzle in enumerate(itertools.islice(puzzles, batch_size))
        ]
        file.unlink(missing_ok=True)
        texts = []
        for way in ("plain", "recorded") if repetition % 2 else ("recorded", "plain"):
            taken, found = seconds_of(ways[way], batch)
            texts.append(found)
            if repetition >= 0:
                seconds[way].append(taken)
        same &= texts[0] == texts[1]
    return {
        **ratio(seconds["plain"], seconds["recorded"], options.seed),
        "milliseconds_a_step": 1000 * statistics.median(seconds["plain"]) / 16,
        "same_answers": same,
    }


def ratio(plain: Sequence[float], recorded: Sequence[float], seed: int) -> dict[str, float]:
    """The median ratio of pairs, with its 95 % bootstrap interval."""
    ratios = numpy.array(recorded) / numpy.array(plain)
    draws = numpy.random.default_rng(seed).integers(len(ratios), size=(DRAWS, len(ratios)))
    low, high = numpy.quantile(numpy.median(ratios[draws], axis=1), (0.025, 0.975))
    return {"ratio": float(numpy.median(ratios)), "low": float(low), "high": float(high)}


def run(options: Options) -> dict[str, Any]:
    """Measure every cell; the result can be written as JSON."""
    rows = []
    with TemporaryDirectory() as folder:
        for name in options.models:
            model = model_of(name, options.seed)
            for batch_size in options.batch_sizes:
                found = compare(model, batch_size, Path(folder) / SUFFIX, options)
                rows.append({"model": name, "batch_size": batch_size, **found})
    return {"rows": rows, "torch": torch.__version__, "options": asdict(options)}


def table(result: dict[str, Any]) -> str:
    """The cells as Markdown."""
    rows = [
        [
            row["model"],
            row["batch_size"],
            f"{row['milliseconds_a_step']:.2f}",
            f"{100 * (row['ratio'] - 1):+.1f} %",
            f"[{100 * (row['low'] - 1):+.1f}, {100 * (row['high'] - 1):+.1f}]",
            f"{1000 * (row['ratio'] - 1) * row['milliseconds_a_step']:.0f}",
            "yes" if row["same_answers"] else "NO",
        ]
        for row in result["rows"]
    ]
    header = ["model", "batch", "ms a step", "recorded", "95 %", "µs a step", "same answers"]
    return markdown(header, rows)


def agreed(result: dict[str, Any]) -> bool:
    """Are the answers the same with a record and without?"""
    return all(row["same_answers"] for row in result["rows"])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    work: Callable[[Any], dict[str, Any]] = run
    return run_benchmark(Options, "recording", work, table, agreed, argv)


if __name__ == "__main__":
    sys.exit(main())
