"""What each approximate way of decoding costs in accuracy on the shipped sudoku and Nim models.

Random weights cannot tell.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Mapping
from typing import Any, NamedTuple

from llada_plugins import generate
from llada_plugins.engine.engine import Engine
from llada_plugins.sampling.config import SamplerConfig
from llada_plugins.tasks import nim
from llada_plugins.tasks.registry import TASKS, ExactTask

# two blocks each: one before, one after, and several steps that a cache can shorten
BLOCK_LENGTHS = {"sudoku4": 8, "nim": 4}
BATCH = 50


class Accuracy(NamedTuple):
    """Of one way of decoding."""

    accuracy: float
    same_answers: float  # share of answers that are those of exact decoding
    mean_forwards: float


class Way(NamedTuple):
    """A way of decoding."""

    step: str  # form of benchmarks.generation whose steps it takes
    weights: str  # a row of WEIGHTS
    options: dict[str, Any]  # of the sampler


WAYS = {
    "exact": Way("exact", "float32", {}),
    "prefix": Way("prefix", "float32", dict(cache="prefix")),
    "dual": Way("dual", "float32", dict(cache="dual")),
    "dual_refresh2": Way("dual_refresh2", "float32", dict(cache="dual", cache_refresh=2)),
    "low_precision": Way("low_precision", "bfloat16", {}),
    "dual_low_precision": Way("dual_low_precision", "bfloat16", dict(cache="dual")),
    "int8": Way("int8", "int8", {}),
    "dual_int8": Way("dual_int8", "int8", dict(cache="dual")),
    "threshold_0.95": Way("exact", "float32", dict(threshold=0.95)),
    "factor_0.1": Way("exact", "float32", dict(factor=0.1)),
    "error_budget_0.05": Way("exact", "float32", dict(error_budget=0.05)),
    "dual_threshold_0.95": Way("dual", "float32", dict(cache="dual", threshold=0.95)),
    # Fast-dLLM's setting
    "dual_threshold_0.9": Way("dual", "float32", dict(cache="dual", threshold=0.9)),
}
WEIGHTS: dict[str, dict[str, Any]] = {  # options of the engine
    "float32": dict(dtype="float32"),
    "bfloat16": dict(dtype="bfloat16"),
    "int8": dict(dtype="float32", quantize="int8"),
}
# an optional package; the speed of int8 is not measured without it either
if not importlib.util.find_spec("torchao"):
    WAYS = {name: way for name, way in WAYS.items() if way.weights != "int8"}


def most_problems() -> int:
    """How many test problems every task has."""
    return nim.num_positions("test")


def measure(num: int) -> dict[str, dict[str, Accuracy]]:
    """Every way on `num` test problems of each task, greedy; nothing for none.

    All take one token a step but the adaptive rules.
    """
    return (
        {name: _ways(task, BLOCK_LENGTHS[name], num) for name, task in TASKS.items()} if num else {}
    )


def _ways(task: ExactTask, block_length: int, num: int) -> dict[str, Accuracy]:
    problems, found = task.problems("test", num), {}
    load = functools.cache(
        lambda weights: Engine("llada", pretrained=task.name, device="cpu", **WEIGHTS[weights])
    )
    exact: list[list[int]] = []
    for name, way in WAYS.items():
        engine = load(way.weights)
        config = SamplerConfig(
            gen_length=task.answer_length, block_length=block_length, **way.options
        )
        prompts = [engine.encode(prompt) for prompt, _ in problems]
        samples = [
            sample
            for first in range(0, num, BATCH)
            for sample in generate(
                engine.model, prompts[first : first + BATCH], config, special=engine.special
            )
        ]
        answers = [sample.answer for sample in samples]
        exact = exact or answers
        texts = engine.tokenizer.batch_decode(answers)
        found[name] = Accuracy(
            sum(task.accepts(prompt, text) for (prompt, _), text in zip(problems, texts)) / num,
            sum(answer == other for answer, other in zip(answers, exact)) / num,
            sum(sample.num_forwards for sample in samples) / num,
        )
    return found


def table(found: Mapping[str, Mapping[str, Mapping[str, float]]], num: int) -> str:
    """For each task the accuracies, and how many times faster such answers are.

    Faster than the published loop's, of as many forwards.
    """
    lines = []
    for task, rows in found.items():
        lines += [
            f"{task}, {num} problems, greedy, block_length {BLOCK_LENGTHS[task]}; speed: of an "
            "answer, over the published loop's",
            f"{'form':<32}{'accuracy':>10}{'as exact':>10}{'forwards':>10}"
            f"{'answer x faster':>17}{'sampled':>10}",
        ]
        lines += [
            f"{name:<32}{row['accuracy']:>10.3f}{row['same_answers']:>10.3f}"
            f"{row['mean_forwards']:>10.2f}"
            f"{row['times_faster_greedy']:>17.2f}{row['times_faster']:>10.2f}"
            for name, row in rows.items()
        ]
    return "\n".join(lines)
