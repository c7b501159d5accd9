"""What each approximate way of decoding costs in accuracy on the shipped 4x4 sudoku model; random weights cannot tell."""
from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple


from llada_plugins import generate
from llada_plugins.engine import Engine
from llada_plugins.sampler_config import SamplerConfig
from llada_plugins.tasks import sudoku

GEN_LENGTH, BLOCK_LENGTH, BATCH = 16, 8, 50


class Accuracy(NamedTuple):
    """Of one way of decoding."""

    accuracy: float
    same_answers: float        # share of answers that are those of exact decoding
    mean_forwards: float


WAYS: dict[str, tuple[str, dict[str, Any]]] = {        # form -> weights, sampler options; forms of the speed table where it has them
    "exact": ("float32", {}),
    "prefix": ("float32", dict(cache="prefix")),
    "dual": ("float32", dict(cache="dual")),
    "dual_refresh2": ("float32", dict(cache="dual", cache_refresh=2)),
    "low_precision": ("bfloat16", {}),
    "dual_low_precision": ("bfloat16", dict(cache="dual")),
    "int8": ("int8", {}),
    "dual_int8": ("int8", dict(cache="dual")),
    "threshold_0.95": ("float32", dict(threshold=0.95)),
    "factor_0.1": ("float32", dict(factor=0.1)),
    "error_budget_0.05": ("float32", dict(error_budget=0.05)),
}


def weights() -> dict[str, Callable[[], Engine]]:
    """How the engine of each kind of weights is loaded; int8 where torchao is installed."""
    found: dict[str, Callable[[], Engine]] = {dtype: lambda dtype=dtype: Engine("llada", device="cpu", dtype=dtype)
                                              for dtype in ("float32", "bfloat16")}
    if importlib.util.find_spec("torchao"):
        found["int8"] = lambda: Engine("llada", device="cpu", dtype="float32", quantize="int8")
    return found


def measure(num: int) -> dict[str, Accuracy]:
    """Every way on `num` test puzzles, one token a step but for the adaptive rules; nothing for none."""
    if num == 0:
        return {}
    problems = sudoku.problems("test", num)
    engines = {kind: load() for kind, load in weights().items()}
    found: dict[str, Accuracy] = {}
    exact: list[list[int]] = []
    for name, (kind, options) in WAYS.items():
        if kind not in engines:
            continue
        engine, config = engines[kind], SamplerConfig(gen_length=GEN_LENGTH, block_length=BLOCK_LENGTH, **options)
        prompts = [engine.encode(problem.puzzle) for problem in problems]
        samples = [sample for first in range(0, num, BATCH)
                   for sample in generate(engine.model, prompts[first:first + BATCH], config, special=engine.special)]
        answers = [sample.answer for sample in samples]
        exact = exact or answers
        texts = engine.tokenizer.batch_decode(answers)
        found[name] = Accuracy(sum(sudoku.is_valid(problem.puzzle, text) for problem, text in zip(problems, texts)) / num,
                               sum(answer == other for answer, other in zip(answers, exact)) / num,
                               sum(sample.num_forwards for sample in samples) / num)
    return found


def table(found: dict[str, Accuracy], num: int, ratios: dict[str, float]) -> str:
    """Accuracy beside the speed that the same command measured on random weights, where it measured that form."""
    lines = [f"4x4 sudoku, {num} puzzles, block_length {BLOCK_LENGTH}; beside it the speed of the form above",
             f"{'form':<32}{'accuracy':>10}{'as exact':>10}{'forwards':>10}{'x faster':>10}"]
    for name, each in found.items():
        ratio = f"{ratios[name]:.2f}" if name in ratios else ""
        lines.append(f"{name:<32}{each.accuracy:>10.3f}{each.same_answers:>10.3f}{each.mean_forwards:>10.2f}{ratio:>10}")
    return "\n".join(lines)
