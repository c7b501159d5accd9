"""How many tokens to keep at once?

Accuracy over mean forwards of threshold, entropy, factor and error_budget on the shipped tiny
models, and of threshold with max_dependence (rows "independent").

    python -m benchmarks.parallel
        both tasks, 1000 problems each; one CPU minute
    python -m benchmarks.parallel --num 100 --json FILE
        a quick look

Each rule runs over a grid of its parameter, greedy, one block, on the same problems as
one token a forward. Beside each accuracy: its difference to one token a forward, and to
threshold and to factor at as many forwards, where their accuracies are interpolated
between the two settings whose mean forwards enclose the row's. [] are 95 % bootstrap
intervals over problems; each draw matches forwards anew. Exits with 1 if on some task
no row has half the forwards of one token each at no more than a point of accuracy less.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy

from llada_plugins import SamplerConfig, generate
from llada_plugins.engine.engine import Engine
from llada_plugins.options.fields import arg
from llada_plugins.reports.render import markdown
from llada_plugins.tasks.registry import TASKS, ExactTask

from .ablation import remembered
from .command import check_counts, check_folder, run_benchmark
from .paired import Interval, Outcome, paired_interval

ONE = "one a forward"
# close enough that a straight line between two neighbours is fair to a bent curve
GRID: dict[str, tuple[float, ...]] = {
    "threshold": (
        0.4,
        0.5,
        0.55,
        0.6,
        0.65,
        0.7,
        0.75,
        0.8,
        0.85,
        0.875,
        0.9,
        0.92,
        0.94,
        0.95,
        0.96,
        0.97,
        0.98,
        0.985,
        0.99,
        0.995,
        0.999,
    ),
    "threshold_entropy": (1.5, 1.0, 0.7, 0.5, 0.4, 0.3, 0.2, 0.15, 0.1, 0.05, 0.02, 0.01),
    "factor": (
        3.0,
        2.0,
        1.6,
        1.4,
        1.2,
        1.0,
        0.8,
        0.6,
        0.5,
        0.4,
        0.3,
        0.2,
        0.15,
        0.1,
        0.07,
        0.05,
        0.02,
        0.01,
    ),
    "error_budget": (0.6, 0.4, 0.3, 0.2, 0.15, 0.1, 0.07, 0.05, 0.03, 0.02, 0.01),
}
# thresholds to go with max_dependence
DEPENDENCE, INDEPENDENT = 0.02, (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
FASTER, MAX_LOSS = 2.0, 0.01  # the target


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is compared, on how many problems."""

    tasks: list[str] = dataclasses.field(
        default_factory=lambda: list(TASKS), metadata={"help": f"of {', '.join(TASKS)}"}
    )
    num: int = arg(1000, "test problems of each task")
    num_draws: int = arg(2000, "bootstrap draws")
    batch_size: int = arg(250, "problems decoded together; does not change any answer")
    threads: int = arg(1, "CPU threads; one is fastest for models this small")
    seed: int = arg(0, "of the bootstrap")
    json: str | None = arg(None, "file for the numbers")

    def __post_init__(self) -> None:
        check_counts(self, "num", "num_draws", "batch_size", "threads")
        if not self.tasks or set(self.tasks) - set(TASKS):
            raise ValueError(
                f"tasks must be some of {', '.join(TASKS)}, got {' '.join(self.tasks) or 'none'}"
            )
        check_folder("json", self.json)


def settings(gen_length: int) -> dict[str, SamplerConfig]:
    """Every sampler, by the name of its row: one token a forward, then rule by rule."""
    rules: dict[str, dict[str, Any]] = {
        f"{rule} {value:g}": {rule: value} for rule, values in GRID.items() for value in values
    }
    independent = {
        f"independent, threshold {value:g}": dict(threshold=value, max_dependence=DEPENDENCE)
        for value in INDEPENDENT
    }
    return {
        name: SamplerConfig(gen_length=gen_length, **rule)
        for name, rule in {ONE: {}, **rules, **independent}.items()
    }


def measure(task: ExactTask, options: Options) -> dict[str, Outcome]:
    """Decode every problem under every setting.

    Settings share the forwards on canvases that they have in common.
    """
    engine = Engine("llada", pretrained=task.name, device="cpu", dtype="float32")
    problems = task.problems("test", options.num)
    found: dict[str, list[tuple[bool, int]]] = {name: [] for name in settings(task.answer_length)}
    for first in range(0, options.num, options.batch_size):
        batch = problems[first : first + options.batch_size]
        prompts = [engine.encode(prompt) for prompt, _ in batch]
        denoise = remembered(engine.denoise)
        for name, config in settings(task.answer_length).items():
            samples = generate(
                engine.model, prompts, config, special=engine.special, denoise=denoise
            )
            texts = engine.tokenizer.batch_decode([sample.answer for sample in samples])
            found[name] += [
                (task.accepts(prompt, text), sample.num_forwards)
                for (prompt, _), text, sample in zip(batch, texts, samples)
            ]
    return {name: Outcome(*map(numpy.array, zip(*pairs))) for name, pairs in found.items()}


def less_curve(
    other: Outcome, curve: Sequence[Outcome], num_draws: int = 2000, seed: int = 0
) -> Interval | None:
    """Accuracy of `other` less that of a rule's settings at as many mean forwards.

    Linear between two settings; None beyond the fewest or most.
    """
    num, outcomes = len(other.correct), [other, *curve]
    equal = numpy.full(num, 1 / num)
    times = numpy.random.default_rng(seed).multinomial(num, equal, size=num_draws)
    weights = numpy.concatenate([equal[None], times / num])  # first: the problems as they are
    accuracy, forwards = (  # (1 + draws, 1 + K)
        weights @ numpy.stack(values, 1).astype(float) for values in zip(*outcomes)
    )
    if not forwards[0, 1:].min() <= forwards[0, 0] <= forwards[0, 1:].max():
        return None
    order = forwards[:, 1:].argsort(1)
    across, up = (numpy.take_along_axis(values[:, 1:], order, 1) for values in (forwards, accuracy))
    differences = accuracy[:, 0] - [numpy.interp(*each) for each in zip(forwards[:, 0], across, up)]
    return Interval(
        float(differences[0]), *map(float, numpy.quantile(differences[1:], (0.025, 0.975)))
    )


def rows_of(outcomes: Mapping[str, Outcome], options: Options) -> list[dict[str, Any]]:
    """A row a setting."""
    draws, found = (options.num_draws, options.seed), []
    for name, outcome in outcomes.items():
        accuracy = float(outcome.correct.mean())
        row: dict[str, Any] = {
            "name": name,
            "accuracy": accuracy,
            "half": 1.96 * (accuracy * (1 - accuracy) / len(outcome.correct)) ** 0.5,
            "mean_forwards": float(outcome.forwards.mean()),
        }
        if name != ONE:
            row["less_one"] = paired_interval(
                outcome.correct, outcomes[ONE].correct, *draws
            )._asdict()
        for rule in ("threshold", "factor"):
            if name != ONE and not name.startswith(rule):
                curve = [each for other, each in outcomes.items() if other.startswith(rule)]
                interval = less_curve(outcome, curve, *draws)
                row[f"less_{rule}"] = interval and interval._asdict()
        found.append(row)
    return found


def fastest(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The row with the fewest forwards of those that lose no more than MAX_LOSS, and is it FASTER?

    The loss is against one token a forward.
    """
    kept = [row for row in rows if rows[0]["accuracy"] - row["accuracy"] <= MAX_LOSS + 1e-9]
    best = min(kept, key=lambda row: row["mean_forwards"])
    times = rows[0]["mean_forwards"] / best["mean_forwards"]
    return {"name": best["name"], "times_fewer": times, "met": times >= FASTER}


def run(options: Options) -> dict[str, Any]:
    """Measure every task; the result can be written as JSON."""
    found = {}
    for name in options.tasks:
        rows = rows_of(measure(TASKS[name], options), options)
        found[name] = {"rows": rows, "fastest": fastest(rows)}
    return {"tasks": found, "options": asdict(options)}


def table(result: Mapping[str, Any]) -> str:
    """A table and a verdict for each task, as Markdown."""
    texts = []
    header = [
        "rule",
        "accuracy",
        "mean forwards",
        "less one a forward",
        "less threshold at equal forwards",
        "less factor at equal forwards",
    ]
    for name, task in result["tasks"].items():
        lines = [
            [
                row["name"],
                f"{row['accuracy']:.3f} ± {row['half']:.3f}",
                f"{row['mean_forwards']:.2f}",
                *(
                    str(Interval(**row[key])) if row.get(key) else ""
                    for key in ("less_one", "less_threshold", "less_factor")
                ),
            ]
            for row in task["rows"]
        ]
        best = task["fastest"]
        texts += [
            f"{name}, {result['options']['num']} problems, greedy; ± and [] are 95 % intervals, "
            "the latter paired",
            markdown(header, lines),
            f"fewest forwards at no more than {MAX_LOSS:g} of accuracy less: {best['name']}, "
            f"{best['times_fewer']:.2f} times fewer, target {FASTER:g}: "
            f"{'met' if best['met'] else 'MISSED'}",
        ]
    return "\n\n".join(texts)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    return run_benchmark(
        Options,
        "parallel",
        run,
        table,
        lambda result: all(task["fastest"]["met"] for task in result["tasks"].values()),
        argv,
    )


if __name__ == "__main__":
    sys.exit(main())
