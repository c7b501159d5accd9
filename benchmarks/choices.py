"""What mc_num=auto saves on questions with choices, and what it costs in accuracy.

Measured on the shipped Nim model; random weights cannot tell.

    python -m benchmarks.choices        500 questions, a minute of one CPU thread

A question is a test position; its choices are the right answer and others that end in a
move which does not win. The choice of the highest log-likelihood is the answer. `rows`
are masked sequences run for a question, all choices together.
"""

from __future__ import annotations

import itertools
import random
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from llada_plugins import log_likelihood
from llada_plugins.engine.engine import Engine
from llada_plugins.options.fields import arg
from llada_plugins.tasks import nim

from .command import check_counts, check_folder, run_benchmark


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is measured."""

    num: int = arg(500, "questions")
    num_choices: int = arg(4, "choices of a question, one of them right")
    mc_num: int = arg(128, "rows drawn for every choice, what auto is compared with")
    target: float = arg(0.1, "standard error in nats at which auto is content")
    threads: int = arg(1, "CPU threads")
    seed: int = arg(0, "of wrong choices and masks")
    json: str | None = arg(None, "file for the results as JSON")

    def __post_init__(self) -> None:
        check_counts(self, "num", "mc_num", "threads")
        if self.num_choices < 2:
            raise ValueError(f"num_choices must be at least 2, got {self.num_choices}")
        check_folder("json", self.json)


def choices(problem: nim.NimProblem, num: int, stream: random.Random) -> list[str]:
    """The right answer and num - 1 wrong ones, where there are as many.

    These have its running xors and a losing move.
    """
    heaps = [int(size) for size in problem.position.removesuffix("=").rstrip(".")]
    moves = [f"{name}{left}" for name, size in zip(nim.HEAP_NAMES, heaps) for left in range(size)]
    wrong = [
        move
        for move in [*moves, nim.LOST]
        if not nim.is_winning(problem.position, problem.answer[:-2] + move)
    ]
    return [
        problem.answer,
        *(problem.answer[:-2] + move for move in stream.sample(wrong, min(num - 1, len(wrong)))),
    ]


def run(options: Options) -> dict[str, Any]:
    """The whole benchmark; its result can be written as JSON."""
    engine = Engine("llada", pretrained="nim", device="cpu", dtype="float32")
    stream = random.Random(options.seed)
    sets = [
        [
            (engine.encode(problem.position), engine.encode(answer))
            for answer in choices(problem, options.num_choices, stream)
        ]
        for problem in nim.problems("test", options.num)
    ]
    ways: dict[str, dict[str, Any]] = {
        "fixed": dict(mc_num=options.mc_num),
        "auto": dict(mc_num=f"auto:{options.target}"),
    }
    found: dict[str, dict[str, float]] = {}
    answers: dict[str, list[int]] = {}
    for name, way in ways.items():
        values = iter(
            log_likelihood(
                engine.model,
                list(itertools.chain(*sets)),
                seed=options.seed,
                batch_size=512,
                special=engine.special,
                **way,
            )
        )
        questions = [[next(values) for _ in choice] for choice in sets]
        answers[name] = [
            max(range(len(question)), key=lambda n: question[n].value) for question in questions
        ]
        found[name] = {
            "accuracy": answers[name].count(0) / options.num,
            "same_answers": sum(a == b for a, b in zip(answers[name], answers["fixed"]))
            / options.num,
            "rows": statistics.mean(
                sum(value.num_forwards for value in question) for question in questions
            ),
            "stderr": statistics.mean(
                value.stderr**2 for question in questions for value in question
            )
            ** 0.5,
        }
    return {
        "ways": found,
        "rows_saved": 1 - found["auto"]["rows"] / found["fixed"]["rows"],
        "options": asdict(options),
    }


def table(result: dict[str, Any]) -> str:
    """Both ways as text."""
    lines = [f"{'':<24}{'accuracy':>10}{'as fixed':>10}{'rows':>10}{'std. error':>12}"]
    for name, each in result["ways"].items():
        lines.append(
            f"{name:<24}{each['accuracy']:>10.3f}{each['same_answers']:>10.3f}"
            f"{each['rows']:>10.1f}{each['stderr']:>12.3f}"
        )
    return "\n".join([*lines, f"rows saved by auto: {100 * result['rows_saved']:.0f} %"])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    return run_benchmark(Options, "choices", run, table, lambda result: True, argv)


if __name__ == "__main__":
    sys.exit(main())
