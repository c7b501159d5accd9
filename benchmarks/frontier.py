"""Every way to fewer forwards or fewer columns, on both tiny models, as curves with AUP scores.

    python -m benchmarks.frontier
        both tasks, 500 problems each (about 15 minutes of one CPU)
    python -m benchmarks.frontier --num 60 --tasks nim --json frontier.json
    python -m benchmarks.frontier --num 200 --few_shot outputs/few_shot

A row is a setting of a decoder: accuracy with Wilson's 95 % interval, tokens a forward, forwards,
the rows that they had of an answer (several where steps branch or draft), and columns computed of
it, which is what a cache saves. A column is a token's pass through the layers, counted by the
products with their weights: of a column of which a layer computes the values alone, as partial
does to choose among them, it is the share of the weights that values have (1/12 here, 1/13 of
few_shot and of LLaDA-8B). Not counted are attention's own products, norms, the choice and the
head. A curve is what one rule's values make; y_max of the AUP score is the best accuracy of any
row of the task. Rules decode the answer as one block, caches in blocks, and so do the rows that
say it. The ups rows need the head that ships beside the sudoku model. Accuracies of caches say
something of these prompts alone, which ask about every token of theirs.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor, nn

from llada_plugins.engine.engine import Engine, Request
from llada_plugins.engine.interval import wilson
from llada_plugins.models.llada import LLaDA
from llada_plugins.options.fields import arg
from llada_plugins.reports.aup import Measured, aup
from llada_plugins.reports.render import markdown
from llada_plugins.tasks.registry import FEW_SHOT, TASKS, ExactTask

from .accuracy import BLOCK_LENGTHS
from .command import check_folder, run_benchmark

BATCH = 50
THRESHOLDS = (0.5, 0.7, 0.9, 0.95, 0.99)
# options of decoding by the label of a curve and of a row
RULES: dict[str, dict[str, dict[str, Any]]] = {
    "threshold": {f"{value}": dict(threshold=value) for value in THRESHOLDS},
    "threshold_entropy": {
        f"{value}": dict(threshold_entropy=value) for value in (1.0, 0.5, 0.2, 0.1, 0.05)
    },
    "factor": {f"{value}": dict(factor=value) for value in (1.2, 0.8, 0.4, 0.1)},
    "threshold, max_dependence 0.02": {
        f"{value}": dict(threshold=value, max_dependence=0.02) for value in (0.6, 0.8, 0.9, 0.95)
    },
    "branches": {
        "0.998, 0.6 and 0.8": dict(threshold=0.998, branches="0.6:0.1+0.6:0.02+0.8:0.02"),
        "0.99, 0.8 to 0.95": dict(threshold=0.99, branches="0.8:0.02+0.9:0.02+0.95:0.02"),
    },
    "drafts": {
        f"{value}, {rows} rows": dict(threshold=value, draft_rows=rows)
        for value, rows in ((0.9, 4), (0.97, 4), (0.99, 4), (0.99, 8))
    },
    "drafts from 0.9": {
        f"{value}, {rows} rows": dict(threshold=value, draft_rows=rows, draft_threshold=0.9)
        for value, rows in ((0.97, 4), (0.99, 4), (0.99, 8))
    },
    "drafts, odds 0.1": {
        f"{value}, {rows} rows": dict(threshold=value, draft_rows=rows, draft_odds=0.1)
        for value, rows in ((0.95, 2), (0.99, 2), (0.99, 4), (0.99, 8))
    },
    "error_budget": {f"{value}": dict(error_budget=value) for value in (0.5, 0.2, 0.1, 0.05, 0.01)},
}
UPS = {f"{value}": dict(threshold=value, revise_below=0.5) for value in THRESHOLDS}
# in blocks: one after another, and several at once
SEVERAL = dict(block_add_threshold=0.1, decoded_token_threshold=0.95)
IN_BLOCKS: dict[str, dict[str, dict[str, Any]]] = {
    "blocks": RULES["threshold"],
    "several blocks": {
        name: {**options, **SEVERAL} for name, options in RULES["threshold"].items()
    },
    "several blocks, entropy": {
        name: {**options, **SEVERAL} for name, options in RULES["threshold_entropy"].items()
    },
}
SEVERAL_CACHED: dict[str, dict[str, Any]] = {
    "prefix": dict(cache="prefix"),
    "prefix, refresh 2": dict(cache="prefix", cache_refresh=2),
    "prefix, delay 1": dict(cache="prefix", cache_delay_iter=1),
    "prefix, delay 1, refresh 2": dict(cache="prefix", cache_delay_iter=1, cache_refresh=2),
}
CACHES: dict[str, dict[str, Any]] = {
    "none": {},
    "prefix": dict(cache="prefix"),
    "dual": dict(cache="dual"),
    "dual, refresh 2": dict(cache="dual", cache_refresh=2),
    "dual, vicinity 2": dict(cache="dual", cache_vicinity=2),
    "dual, vicinity 16": dict(cache="dual", cache_vicinity=16),
    "dual, delayed": dict(cache="dual", cache_delayed=True),
    "dual, prompt every 2 blocks": dict(cache="dual", cache_prompt_refresh=2),
    "dual, prompt once": dict(cache="dual", cache_prompt_refresh=0),
    "dual, delayed, prompt once": dict(cache="dual", cache_delayed=True, cache_prompt_refresh=0),
    "prompt once, answer always": dict(cache="dual", cache_prompt_refresh=0, cache_refresh=1),
    "partial": dict(cache="partial"),
    "partial, half": dict(cache="partial", transfer_ratio=0.5),
    "partial, answer every 2": dict(cache="partial", gen_interval_steps=2),
    "partial, prompt every 2": dict(cache="partial", prompt_interval_steps=2),
    "partial, both every 2": dict(cache="partial", gen_interval_steps=2, prompt_interval_steps=2),
    "partial, prompt once": dict(cache="partial", cache_prompt_refresh=0),
}
# in one block, where the others freeze the prompt alone
ONE_BLOCK_CACHES: dict[str, dict[str, Any]] = {
    "prefix": dict(cache="prefix"),
    "partial": dict(cache="partial"),
    "partial, answer every 4": dict(cache="partial", gen_interval_steps=4),
    "partial, both every 4": dict(cache="partial", gen_interval_steps=4, prompt_interval_steps=4),
    "partial, half, both every 4": dict(
        cache="partial", transfer_ratio=0.5, gen_interval_steps=4, prompt_interval_steps=4
    ),
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is measured, on how many problems."""

    num: int = arg(500, "test problems of each task")
    tasks: list[str] = field(
        default_factory=lambda: list(TASKS), metadata={"help": f"any of {', '.join(TASKS)}"}
    )
    few_shot: str | None = arg(
        None, "folder of a model made by training.sft --preset few_shot: that task's rows too"
    )
    json: str | None = arg(None, "file for the numbers")
    threads: int = arg(1, "CPU threads; one is fastest for models this small")

    def __post_init__(self) -> None:
        if self.num < 1 or self.threads < 1:
            raise ValueError(f"num and threads must be at least 1, got {self.num}, {self.threads}")
        if unknown := [name for name in self.tasks if name not in TASKS]:
            raise ValueError(f"tasks must be of {', '.join(TASKS)}, got {unknown[0]!r}")
        check_folder("json", self.json)


class Setting(NamedTuple):
    """A row to be measured."""

    curve: str
    name: str
    method: str
    options: dict[str, Any]


def settings(task: ExactTask, with_head: bool) -> list[Setting]:
    """All rows of a task; with_head: those of learned remasking too."""
    # four blocks, or three, so that prompts are met again
    block = 2 if task is FEW_SHOT else BLOCK_LENGTHS[task.name] // 2
    return [
        *_of_one_block(task.answer_length, with_head),
        *_in_blocks(block, with_head),
        *_cached(block),
        *_cached_in_one_block(),
    ]


def _of_one_block(length: int, with_head: bool) -> Iterator[Setting]:
    fixed = {str(steps): dict(steps=steps) for steps in (length, length // 2, length // 4)}
    for curve, rows in {"steps": fixed, **RULES}.items():
        for name, options in rows.items():
            yield Setting(curve, name, "llada", options)
    if with_head:
        for curve, rows in {"ups": UPS, "ups branches": RULES["branches"]}.items():
            for name, options in rows.items():
                yield Setting(curve, name, "llada_ups", options)


def _in_blocks(block: int, with_head: bool) -> Iterator[Setting]:
    for curve, rows in IN_BLOCKS.items():
        for name, options in rows.items():
            own = dict(options, block_length=block)
            yield Setting(curve, name, "llada", own)
            if with_head and curve != "blocks":
                yield Setting(f"ups, {curve}", name, "llada_ups", dict(own, revise_below=0.5))


def _cached(block: int) -> Iterator[Setting]:
    for name, options in SEVERAL_CACHED.items():
        cached = dict(threshold=0.99, block_length=block, **SEVERAL, **options)
        yield Setting("several blocks, cache", name, "llada", cached)
    for name, options in CACHES.items():
        for value in (0.9, 0.99):
            cached = dict(threshold=value, block_length=block, **options)
            yield Setting(f"cache: {name}", str(value), "llada", cached)


def _cached_in_one_block() -> Iterator[Setting]:
    for name, options in ONE_BLOCK_CACHES.items():
        yield Setting("one block, cache", name, "llada", dict(threshold=0.99, **options))


class Columns:
    """How many columns went through the layers, by the products with their weights."""

    def __init__(self) -> None:
        self.products = self.of_one = 0  # weights that were multiplied by; those of all layers

    @property
    def number(self) -> float:
        """A column that a part of the weights worked on counts as that part."""
        return self.products / self.of_one

    @contextmanager
    def of(self, model: LLaDA) -> Iterator[None]:
        """Count what the model computes in here."""

        def count(module: nn.Module, arguments: tuple, _: Tensor) -> None:
            assert isinstance(module, nn.Linear)
            self.products += arguments[0].numel() // module.in_features * module.weight.numel()

        parts = [part for block in model.blocks for part in block.modules()]
        linear = [part for part in parts if isinstance(part, nn.Linear)]
        self.of_one = sum(part.weight.numel() for part in linear)
        handles = [part.register_forward_hook(count) for part in linear]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def measure(engine: Engine, setting: Setting, task: ExactTask, num: int) -> dict[str, Any]:
    """A row: the setting's answers to the first problems."""
    prompts = task.prompts(num)
    sampler = engine.sampler_for({"gen_length": task.answer_length, **setting.options})
    columns = Columns()
    with columns.of(engine.model):
        found = dict(engine.generate([Request(prompt, sampler) for prompt in prompts]))
    completions = [found[number] for number in range(num)]
    right = sum(task.accepts(prompt, each.text) for prompt, each in zip(prompts, completions))
    forwards = sum(each.num_forwards for each in completions)
    interval = wilson(right / num, num)
    return {
        "curve": setting.curve,
        "setting": setting.name,
        "accuracy": right / num,
        "low": interval.low,
        "high": interval.high,
        "tokens_per_forward": sum(each.num_tokens for each in completions) / forwards,
        "forwards": forwards / num,
        "rows": (forwards + sum(each.num_branches for each in completions)) / num,
        "columns": columns.number / num,
        "revised": sum(each.num_revised for each in completions) / num,
    }


def run(options: Options) -> dict[str, Any]:
    """All rows of the tasks, and the scores of their curves."""
    report: dict[str, Any] = {"num": options.num, "tasks": {}}
    models = {TASKS[name]: name for name in options.tasks}
    if options.few_shot is not None:
        models[FEW_SHOT] = options.few_shot
    for task, name in models.items():
        plain = Engine("llada", pretrained=name, device="cpu", batch_size=BATCH)
        engines = {"llada": plain}
        if (plain.folder / "ups").is_dir():
            engines["llada_ups"] = Engine(
                "llada_ups", pretrained=name, device="cpu", batch_size=BATCH
            )
        rows = [
            measure(engines[setting.method], setting, task, options.num)
            for setting in settings(task, "llada_ups" in engines)
        ]
        report["tasks"][task.name] = {"rows": rows, "aup": scores(rows)}
    return report


def scores(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """AUP by curve, with the best accuracy of all rows as y_max."""
    best = 100 * max(row["accuracy"] for row in rows) or None
    curves: dict[str, list[Measured]] = {}
    for row in rows:
        point = Measured(row["tokens_per_forward"], 100 * row["accuracy"])
        curves.setdefault(row["curve"], []).append(point)
    return {curve: aup(points, best) for curve, points in curves.items()}


def table(report: dict[str, Any]) -> str:
    """The rows of each task, and its scores."""
    header = [
        "curve",
        "setting",
        "accuracy",
        "95 %",
        "tokens a forward",
        "forwards",
        "rows",
        "columns",
    ]
    parts = []
    for name, found in report["tasks"].items():
        lines = [
            [
                *(row["curve"], row["setting"], f"{row['accuracy']:.3f}"),
                f"{row['low']:.3f} to {row['high']:.3f}",
                f"{row['tokens_per_forward']:.2f}",
                f"{row['forwards']:.2f}",
                f"{row['rows']:.2f}",
                f"{row['columns']:.0f}",
            ]
            for row in found["rows"]
        ]
        told = ", ".join(f"{curve} {score:.0f}" for curve, score in found["aup"].items())
        parts.append(f"{name}, {report['num']} problems, costs of an answer")
        parts.append(f"{markdown(header, lines)}\n\nAUP: {told}")
    return "\n\n".join(parts)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    return run_benchmark(Options, "frontier", run, table, lambda _: True, argv)


if __name__ == "__main__":
    sys.exit(main())
