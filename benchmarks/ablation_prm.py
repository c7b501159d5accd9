"""What does a process reward model buy, per forward?

Accuracy on 4x4 sudoku, the tiny model and its tiny PRM.

    make ablation-prm
        the table at its defaults; 500 problems, one CPU thread
    python -m benchmarks.ablation_prm --num 100 --output DIR
        a quick look

A row of the sudoku is a block and a step, filled in one forward. `greedy` decodes once.
`best of n` decodes the whole answer n times, greedily once and n - 1 times at the
candidates' temperature, and takes the answer whose steps the PRM scores highest on
average. The other rows are `--model llada_prm` with the options in their second column;
beside each accuracy stands the paired 95 % bootstrap interval of that row less best of
4. Writes ablation_prm.json and tables.md into --output, all or nothing.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import torch

from benchmarks.paired import paired_interval
from llada_plugins.engine.engine import Completion, Engine, Request
from llada_plugins.files.atomic import check_empty, whole_folder
from llada_plugins.options.command_line import run_command
from llada_plugins.options.fields import arg
from llada_plugins.reports.render import markdown
from llada_plugins.rewards.block_review import summary
from llada_plugins.tasks import sudoku

from .command import check_counts

SAMPLER = dict(gen_length=16, block_length=4, steps=4)
ONE_BY_ONE = dict(method="backmask", backmasking_rule="only_low", backmasking_lookback=2)
AT_THE_END = dict(
    method="backmask", backmasking_rule="only_low", backmasking_lookback=4, backmasking_frequency=4
)
LEGACY = dict(method="backmask", backmasking_rule="legacy", backmasking_lookback=2)
SETTINGS: dict[str, dict[str, Any]] = {
    "vanilla, 2 candidates": dict(method="vanilla", num_candidates_per_block=2),
    "vanilla, 4 candidates": dict(method="vanilla", num_candidates_per_block=4),
    "legacy back-mask": dict(LEGACY, num_candidates_per_block=1, num_demasking_candidates=1),
    "legacy back-mask, 5 + 5 candidates": LEGACY,
    "window of 2 blocks, 4 samples": dict(
        method="window", backmasking_frequency=2, num_refinement_samples=4
    ),
    "window of 4 blocks, 12 samples": dict(method="window", backmasking_frequency=4),
    "only_low after every block, 1 round": dict(ONE_BY_ONE, max_retry_attempts=1),
    "only_low after every block, 2 rounds": dict(ONE_BY_ONE, max_retry_attempts=2),
    "only_low after every block, 4 rounds": dict(ONE_BY_ONE, max_retry_attempts=4),
    "only_low at the end, 4 rounds": dict(AT_THE_END, max_retry_attempts=4),
}
# row, accuracy above best of 4, forwards at most
TARGETS = (("only_low", 0.10, 10.0), ("vanilla, 4 candidates", 0.0, 16.0))


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is compared, on how many problems."""

    pretrained: str | None = arg(
        None,
        "checkpoint folder that answers 4x4 sudoku (default: the tiny model shipped in the "
        "package)",
    )
    prm: str | None = arg(
        None, "folder of the process reward model (default: 'prm' in the checkpoint's folder)"
    )
    output: str = arg("outputs/ablation_prm", "folder for the results; must be empty or absent")
    num: int = arg(500, "test problems")
    temperature: float = arg(0.7, "of candidates after the first, and of refills")
    num_draws: int = arg(2000, "bootstrap draws")
    batch_size: int = arg(50, "problems decoded together; does not change any answer")
    threads: int = arg(1, "CPU threads; one is fastest for models this small")
    seed: int = arg(0, "of all random numbers")

    def __post_init__(self) -> None:
        check_counts(self, "num", "num_draws", "batch_size", "threads")


class Outcome(NamedTuple):
    """What one setting did with n problems."""

    correct: numpy.ndarray  # (n,) bool
    forwards: numpy.ndarray  # (n,)
    prm_calls: numpy.ndarray  # (n,)
    seconds: float  # of all problems
    prm_share: float  # of the seconds, spent in the PRM


def decode(
    engine: Engine, problems: Sequence[sudoku.SudokuProblem], options: Options, **sampler: Any
) -> list[Completion]:
    """One completion per problem."""
    config = engine.sampler_for(sampler)
    found = dict(
        engine.generate(
            [Request(problem.puzzle, config) for problem in problems], options.batch_size
        )
    )
    return [found[number] for number in range(len(problems))]


def outcome(completions: Sequence[Completion], problems: Sequence[sudoku.SudokuProblem]) -> Outcome:
    """Counts of one setting's completions."""
    seconds = sum(each.seconds for each in completions)
    return Outcome(
        numpy.array(
            [
                sudoku.is_valid(problem.puzzle, each.text)
                for problem, each in zip(problems, completions)
            ]
        ),
        numpy.array([each.num_forwards for each in completions]),
        numpy.array([each.num_prm_calls for each in completions]),
        seconds,
        sum(each.prm_seconds for each in completions) / seconds,
    )


def best_of(
    runs: Sequence[Sequence[Completion]], engine: Engine, problems: Sequence[sudoku.SudokuProblem]
) -> Outcome:
    """The best of several completions of each problem by the mean score of its steps."""
    judge, began = engine.prepared.judge, time.perf_counter()
    assert judge is not None  # the engine was made with one
    solutions = [
        (
            judge.question(problem.puzzle),
            [each.text[first : first + 4] for first in range(0, 16, 4)],
        )
        for run in runs
        for problem, each in zip(problems, run)
    ]
    values = [summary(scores, "mean") for scores in judge.scorer.score(solutions)]
    chosen = numpy.array(values).reshape(len(runs), len(problems)).argmax(0)
    prm_seconds = time.perf_counter() - began
    seconds = prm_seconds + sum(each.seconds for run in runs for each in run)
    return Outcome(
        numpy.array(
            [
                sudoku.is_valid(problem.puzzle, runs[best][number].text)
                for number, (problem, best) in enumerate(zip(problems, chosen))
            ]
        ),
        numpy.sum([[each.num_forwards for each in run] for run in runs], 0),
        numpy.full(len(problems), len(runs)),
        seconds,
        prm_seconds / seconds,
    )


def measure(
    options: Options, settings: Mapping[str, Mapping[str, Any]] = SETTINGS
) -> dict[str, Outcome]:
    """Every row of the table."""
    problems = sudoku.problems("test", options.num)
    common = dict(
        pretrained=options.pretrained,
        prm=options.prm,
        device="cpu",
        seed=options.seed,
        candidate_temperature=options.temperature,
        **SAMPLER,
    )
    engine = Engine("llada_prm", method="vanilla", num_candidates_per_block=1, **common)
    runs = [decode(engine, problems, options)]
    runs += [
        decode(
            engine, problems, options, temperature=options.temperature, seed=options.seed + 1 + copy
        )
        for copy in range(3)
    ]
    found = {"greedy": outcome(runs[0], problems)}
    found.update({f"best of {count}": best_of(runs[:count], engine, problems) for count in (2, 4)})
    for name, setting in settings.items():
        found[name] = outcome(
            decode(Engine("llada_prm", **setting, **common), problems, options), problems
        )
    return found


def run(options: Options) -> dict[str, Any]:
    """The table's numbers; the result can be written as JSON."""
    outcomes = measure(options)
    reference, rows = outcomes["best of 4"], []
    for name, each in outcomes.items():
        accuracy = float(each.correct.mean())
        rows.append(
            {
                "name": name,
                "options": SETTINGS.get(name, {}),
                "accuracy": accuracy,
                "half": 1.96 * (accuracy * (1 - accuracy) / len(each.correct)) ** 0.5,
                "less_best_of_4": paired_interval(
                    each.correct, reference.correct, options.num_draws, options.seed
                )._asdict(),
                "mean_forwards": float(each.forwards.mean()),
                "mean_prm_calls": float(each.prm_calls.mean()),
                "milliseconds": 1000 * each.seconds / len(each.correct),
                "prm_share": each.prm_share,
            }
        )
    return {
        "rows": rows,
        "targets": verdicts(rows),
        "torch": torch.__version__,
        "options": asdict(options),
    }


def verdicts(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What the project set out to reach."""
    found = []
    for prefix, above, most in TARGETS:
        fitting = [
            row for row in rows if row["name"].startswith(prefix) and row["mean_forwards"] <= most
        ]
        best = max(fitting, key=lambda row: row["less_best_of_4"]["difference"], default=None)
        value: float | None = None if best is None else best["less_best_of_4"]["difference"]
        found.append(
            {
                "target": f"{prefix} less best of 4 {'>=' if above else '>'} {above:.2f} at <= "
                f"{most:.0f} forwards",
                "row": best and best["name"],
                "value": value,
                "met": value is not None and (value >= above if above else value > 0),
            }
        )
    return found


def tables(result: Mapping[str, Any]) -> str:
    """The table and the verdicts as Markdown."""
    rows = [
        [
            row["name"],
            " ".join(f"{name}={value}" for name, value in row["options"].items()),
            f"{row['accuracy']:.3f} ± {row['half']:.3f}",
            "{difference:+.3f} [{low:+.3f}, {high:+.3f}]".format(**row["less_best_of_4"]),
            f"{row['mean_forwards']:.2f}",
            f"{row['mean_prm_calls']:.2f}",
            f"{100 * row['prm_share']:.0f} %",
        ]
        for row in result["rows"]
    ]
    targets = [
        [
            each["target"],
            each["row"] or "–",
            "–" if each["value"] is None else f"{each['value']:+.3f}",
            "met" if each["met"] else "MISSED",
        ]
        for each in result["targets"]
    ]
    return "\n\n".join(
        [
            f"{result['options']['num']} problems; ± and [] are 95 % intervals, the latter paired",
            markdown(
                [
                    "method",
                    "options",
                    "accuracy",
                    "less best of 4",
                    "forwards",
                    "PRM calls",
                    "PRM share of time",
                ],
                rows,
            ),
            markdown(["target", "row", "measured", ""], targets),
        ]
    )


def work(options: Options) -> str:
    """Run, write the output folder, return the tables."""
    torch.set_num_threads(options.threads)
    check_empty(Path(options.output))
    result = run(options)
    with whole_folder(Path(options.output)) as folder:
        (folder / "ablation_prm.json").write_text(
            json.dumps(result, indent=1) + "\n", encoding="utf-8"
        )
        (folder / "tables.md").write_text(tables(result) + "\n", encoding="utf-8")
    return tables(result)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    return run_command(Options, "python -m benchmarks.ablation_prm", work, argv)


if __name__ == "__main__":
    sys.exit(main())
