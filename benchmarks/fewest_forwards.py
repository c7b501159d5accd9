"""Which rule takes the fewest forwards at equal accuracy, on given weights?

    python -m benchmarks.fewest_forwards --models outputs/seed0 outputs/seed1 outputs/seed2
        500 validation and 4000 test problems for each model of the task
    python -m benchmarks.fewest_forwards --task nim --num 200 --num_validation 100
        a quick look at the shipped Nim model

Of each kind of rule, KINDS, one setting is chosen for all models, on validation problems: the
fewest mean forwards among those that lose no more than --slack of accuracy there against one
token a forward. What was chosen is decoded once on test problems: greedy, one block, float32.
Settings of the PUBLISHED kinds are all tested but those that lose two points on validation, and
the best of them on each model is what the others are held against: the fewest forwards of those
that lose no more than half a point on these very test problems, a choice in their favour. [] are
paired 95 % bootstrap intervals over problems: of the accuracy less that of one token a forward,
and of the ratio of forwards to the best published setting's. Rows are what the forwards had of an
answer.

Exits with 1 unless one kind takes a quarter fewer forwards than the best published setting at
no more than half a point less than one token a forward, on every model.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy

from llada_plugins import SamplerConfig, generate
from llada_plugins.engine.engine import Engine
from llada_plugins.options.fields import arg
from llada_plugins.reports.render import markdown
from llada_plugins.tasks import nim
from llada_plugins.tasks.registry import FEW_SHOT, NIM, TASKS, ExactTask

from .ablation import remembered
from .command import check_counts, check_folder, run_benchmark
from .fewest_forwards_kinds import KINDS, Settings
from .paired import Interval, paired_interval

ONE = "one a forward"
MAX_LOSS, FEWER = 0.005, 0.25  # the target
NEAR = 0.02  # published settings that lose more on validation problems are not tested
BATCH = 250  # problems that share forwards on canvases that settings have in common
PUBLISHED = ("threshold", "factor", "error_budget")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Which weights, and on how many problems."""

    task: str = arg("sudoku4", f"{', '.join(TASKS)} or {FEW_SHOT.name}")
    models: list[str] = dataclasses.field(
        default_factory=list, metadata={"help": "folders (default: the model shipped for the task)"}
    )
    kinds: list[str] = dataclasses.field(
        default_factory=lambda: list(KINDS), metadata={"help": f"of {', '.join(KINDS)}"}
    )
    ups: bool = arg(False, "decode with the head that lies beside each model: it judges branches")
    num_validation: int = arg(2000, "validation problems of each model, as far as there are any")
    num: int = arg(4000, "test problems of each model, as far as there are any")
    slack: float = arg(0.0, "accuracy that a chosen setting may lose on validation")
    num_draws: int = arg(2000, "bootstrap draws")
    threads: int = arg(1, "CPU threads; one is fastest for models this small")
    seed: int = arg(0, "of the bootstrap")
    json: str | None = arg(None, "file for the numbers")

    def __post_init__(self) -> None:
        check_counts(self, "num_validation", "num", "num_draws", "threads")
        if self.task not in known_tasks():
            raise ValueError(f"task must be of {', '.join(known_tasks())}, got {self.task!r}")
        if unknown := [kind for kind in self.kinds if kind not in KINDS]:
            raise ValueError(f"kinds must be of {', '.join(KINDS)}, got {unknown[0]!r}")
        if not 0 <= self.slack < 1:
            raise ValueError(f"slack must be at least 0 and below 1, got {self.slack}")
        check_folder("json", self.json)


def known_tasks() -> dict[str, ExactTask]:
    """All tasks by name, those for which no model is shipped too."""
    return {**TASKS, FEW_SHOT.name: FEW_SHOT}


class Measured(NamedTuple):
    """What a setting did with n problems."""

    correct: numpy.ndarray  # (n,) bool
    forwards: numpy.ndarray  # (n,)
    rows: numpy.ndarray  # (n,) that these forwards had of an answer

    @property
    def accuracy(self) -> float:
        return float(self.correct.mean())

    @property
    def mean_forwards(self) -> float:
        return float(self.forwards.mean())


def settings(kinds: Iterable[str]) -> Settings:
    """All settings of these kinds by kind and name, after one token a forward."""
    found: Settings = {ONE: {}}
    for kind in kinds:
        found |= {f"{kind}: {name}": options for name, options in KINDS[kind].items()}
    return found


def measure(
    engine: Engine, task: ExactTask, problems: Sequence[tuple[str, str]], chosen: Settings
) -> dict[str, Measured]:
    """Decode every problem under every setting; they share forwards on canvases in common."""
    samplers = {
        name: engine.sampler_for({"gen_length": task.answer_length, **options})
        for name, options in chosen.items()
    }
    found: dict[str, list[tuple[bool, int, int]]] = {name: [] for name in samplers}
    for first in range(0, len(problems), BATCH):
        batch = [prompt for prompt, _ in problems[first : first + BATCH]]
        denoise = remembered(engine.denoise)
        for name, sampler in samplers.items():
            found[name] += decoded(engine, task, batch, sampler, denoise)
    return {name: Measured(*map(numpy.array, zip(*each))) for name, each in found.items()}


def decoded(
    engine: Engine, task: ExactTask, prompts: Sequence[str], sampler: SamplerConfig, denoise: Any
) -> list[tuple[bool, int, int]]:
    """Of each prompt: is the answer right, its forwards, and its rows in them."""
    encoded = [engine.encode(prompt) for prompt in prompts]
    samples = generate(engine.model, encoded, sampler, special=engine.special, denoise=denoise)
    texts = engine.tokenizer.batch_decode([sample.answer for sample in samples])
    return [
        (
            bool(task.accepts(prompt, text)),
            sample.num_forwards,
            sample.num_forwards + sample.num_branches,
        )
        for prompt, text, sample in zip(prompts, texts, samples)
    ]


def fewest(found: Mapping[str, Measured], names: Sequence[str], slack: float) -> str | None:
    """The name of the fewest mean forwards that loses at most so much to one a forward."""
    least = found[ONE].accuracy - slack - 1e-9
    kept = [name for name in names if found[name].accuracy >= least]
    return min(kept, key=lambda name: found[name].mean_forwards, default=None)


def ratio_interval(
    first: numpy.ndarray, second: numpy.ndarray, num_draws: int, seed: int
) -> Interval:
    """mean(first) / mean(second) - 1 over the same n items, with its bootstrap interval."""
    numbers = numpy.random.default_rng(seed).integers(len(first), size=(num_draws, len(first)))
    ratios = first[numbers].mean(1) / second[numbers].mean(1) - 1
    low, high = numpy.quantile(ratios, (0.025, 0.975))
    return Interval(float(first.mean() / second.mean() - 1), float(low), float(high))


def of_kind(name: str) -> str:
    """The kind that a setting's name begins with."""
    return name.split(": ")[0]


def choose(engines: Sequence[Engine], options: Options) -> dict[str, Measured]:
    """Every setting on the validation problems of all models, one after another."""
    task = known_tasks()[options.task]
    problems = first_problems(task, "validation", options.num_validation)
    every = settings(dict.fromkeys([*PUBLISHED, *options.kinds]))
    found = [measure(engine, task, problems, every) for engine in engines]
    return {
        name: Measured(*map(numpy.concatenate, zip(*(each[name] for each in found))))
        for name in every
    }


def compare(
    engine: Engine, chosen: Sequence[str], validation: Mapping[str, Measured], options: Options
) -> dict[str, Any]:
    """What the chosen settings do with the test problems: the rows of one model."""
    task = known_tasks()[options.task]
    least = validation[ONE].accuracy - NEAR
    published = [name for name in settings(PUBLISHED) if validation[name].accuracy >= least]
    every = {name: own for name, own in settings(KINDS).items() if name in {*published, *chosen}}
    tested = measure(engine, task, first_problems(task, "test", options.num), {ONE: {}, **every})
    best = fewest(tested, published, MAX_LOSS) or ONE  # which is one of them, and loses nothing
    rows = [
        _row(name, tested, tested[best], validation[name], options)
        for name in dict.fromkeys((ONE, best, *chosen))
    ]
    return {
        "model": str(engine.folder),
        "num": len(tested[ONE].correct),
        "best_published": best,
        "rows": rows,
    }


def first_problems(task: ExactTask, split: str, num: int) -> Sequence[tuple[str, str]]:
    """The first problems of a split, as many as there are at most."""
    if task is NIM:  # which repeats no position
        num = min(num, nim.num_positions(split))
    return task.problems(split, num)


def _row(
    name: str,
    tested: Mapping[str, Measured],
    best: Measured,
    on_validation: Measured,
    options: Options,
) -> dict[str, Any]:
    found, draws = tested[name], (options.num_draws, options.seed)
    less_one = paired_interval(found.correct, tested[ONE].correct, *draws)
    fewer = ratio_interval(found.forwards, best.forwards, *draws)
    return {
        "name": name,
        "validation_accuracy": on_validation.accuracy,
        "validation_forwards": on_validation.mean_forwards,
        "accuracy": found.accuracy,
        "less_one": less_one._asdict(),
        "forwards": found.mean_forwards,
        "fewer": fewer._asdict(),
        "rows": float(found.rows.mean()),
        "met": less_one.difference >= -MAX_LOSS - 1e-9 and fewer.difference <= -FEWER,
    }


def run(options: Options) -> dict[str, Any]:
    """Choose a setting of each kind, and measure it on every model."""
    method = "llada_ups" if options.ups else "llada"
    engines = [
        Engine(method, pretrained=model, device="cpu", dtype="float32")
        for model in options.models or [options.task]
    ]
    validation = choose(engines, options)
    by_kind = {
        kind: fewest(validation, [f"{kind}: {name}" for name in KINDS[kind]], options.slack)
        for kind in options.kinds
    }
    chosen = [name for name in by_kind.values() if name is not None]
    return {
        "options": asdict(options),
        "num_validation": len(validation[ONE].correct),
        "without": [kind for kind, name in by_kind.items() if name is None],
        "models": [compare(engine, chosen, validation, options) for engine in engines],
    }


def met(report: Mapping[str, Any]) -> bool:
    """Does one setting reach the target on every model?"""
    reached = [{row["name"] for row in each["rows"] if row["met"]} for each in report["models"]]
    return bool(set.intersection(*reached))


def table(report: Mapping[str, Any]) -> str:
    """A table for each model."""
    header = ["rule", "validation", "test", "less one", "forwards", "less best", "rows"]
    parts = [f"{report['num_validation']} validation problems of all models together"]
    if report["without"]:
        parts.append(f"no setting within the slack there: {', '.join(report['without'])}")
    for each in report["models"]:
        lines = [
            [
                row["name"],
                f"{row['validation_accuracy']:.4f} @ {row['validation_forwards']:.2f}",
                f"{row['accuracy']:.4f}",
                points(Interval(**row["less_one"])),
                f"{row['forwards']:.2f}",
                percent(Interval(**row["fewer"])),
                f"{row['rows']:.1f}",
            ]
            for row in each["rows"]
        ]
        parts.append(
            f"{each['model']}: {each['num']} test problems; best published setting on them: "
            f"{each['best_published']}"
        )
        parts.append(markdown(header, lines))
    parts.append(f"a quarter fewer on every model: {'met' if met(report) else 'MISSED'}")
    return "\n\n".join(parts)


def points(interval: Interval) -> str:
    """A difference of accuracies."""
    return f"{interval.difference:+.4f} [{interval.low:+.4f}, {interval.high:+.4f}]"


def percent(interval: Interval) -> str:
    """A ratio's distance from 1."""
    return f"{interval.difference:+.1%} [{interval.low:+.1%}, {interval.high:+.1%}]"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    return run_benchmark(Options, "fewest_forwards", run, table, met, argv)


if __name__ == "__main__":
    sys.exit(main())
