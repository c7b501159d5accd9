"""What a student, or drafts, save of its teacher's forwards, settings fixed on validation.

    python -m benchmarks.students --teacher sudoku4 --student outputs/student
        4000 validation and 4000 test problems, about 15 CPU minutes
    python -m benchmarks.students --task few_shot --teacher outputs/few_shot
        drafts on the teacher's own weights alone

Every setting is chosen on validation problems, and test problems decide nothing. Of each kind the
setting with the fewest mean forwards is taken among those whose accuracy there is at least

- the teacher's with one token a forward less --loss, for the published rules on the teacher;
- the same less --margin, for drafts on the teacher;
- that of the rule so chosen less --margin, for the student, with drafts and without.

All settings decode the first --screen validation problems. Those that miss what is asked there by
more than a point, or take over a tenth more forwards than another that reaches it, go no further.
[] are paired 95 % bootstrap intervals over test problems: of accuracies less the teacher's with
one token a forward, and less its best rule's, and of the ratio of forwards to that rule's. All is
greedy, one block, float32. Rows are what the forwards had of an answer.

Exits with 1 unless the student takes 30 % fewer forwards than the teacher's best rule, at half a
point less than that; without --student, unless a kind of drafts takes 25 % fewer, at half a point
less than one token a forward.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy

from llada_plugins.engine.engine import Engine
from llada_plugins.models.folder import resolve
from llada_plugins.options.fields import arg
from llada_plugins.reports.render import markdown
from llada_plugins.tasks.registry import FEW_SHOT, TASKS, ExactTask

from .command import check_counts, check_folder, run_benchmark
from .fewest_forwards import (
    MAX_LOSS,
    ONE,
    Measured,
    fewest,
    first_problems,
    known_tasks,
    measure,
    percent,
    points,
    ratio_interval,
)
from .fewest_forwards_kinds import Settings
from .paired import Interval, paired_interval

FEWER_OF_STUDENTS, FEWER_OF_DRAFTS = 0.3, 0.25  # the targets
MISSED, MORE = 0.01, 0.1  # accuracy and share of forwards that end a setting's screening
RULES = "threshold, factor or error_budget"
GRID: dict[str, tuple[float, ...]] = {
    "threshold": (0.7, 0.8, 0.9, 0.93, 0.95, 0.96, 0.97, 0.975)
    + (0.98, 0.985, 0.99, 0.993, 0.995, 0.997, 0.998, 0.999),
    "factor": (0.5, 0.3, 0.2, 0.15, 0.12, 0.1, 0.085, 0.07, 0.06, 0.05, 0.04)
    + (0.03, 0.02, 0.015, 0.01, 0.007),
    "error_budget": (0.3, 0.2, 0.15, 0.1, 0.085, 0.07, 0.06, 0.05, 0.04, 0.03)
    + (0.02, 0.015, 0.01, 0.007, 0.005, 0.003),
}
DRAFTED: dict[str, tuple[float, ...]] = {
    "threshold": (0.9, 0.95, 0.97, 0.98, 0.99, 0.995, 0.998, 0.999),
    "factor": (0.2, 0.1, 0.05, 0.03, 0.02),
    "error_budget": (0.1, 0.05, 0.03, 0.02, 0.01),
}
ODDS = (None, 0.3, 0.1)


def _rules() -> Settings:
    return {f"{rule}={value:g}": {rule: value} for rule, values in GRID.items() for value in values}


def _drafts(rows: int) -> Settings:
    return {
        f"{rule}={value:g},draft_rows={rows}" + (f",draft_odds={odds:g}" if odds else ""): {
            rule: value,
            "draft_rows": rows,
            "draft_odds": odds,
        }
        for rule, values in DRAFTED.items()
        for value in values
        for odds in ODDS
    }


DRAFTS: dict[str, Settings] = {f"{rows} rows of drafts": _drafts(rows) for rows in (2, 4)}
KINDS: dict[str, Settings] = {RULES: _rules(), **DRAFTS}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Which weights, on how many problems, and what a setting may lose."""

    task: str = arg("sudoku4", f"{', '.join(TASKS)} or {FEW_SHOT.name}")
    teacher: str | None = arg(None, "folder (default: the model shipped for the task)")
    student: str | None = arg(None, "folder (default: drafts on the teacher alone)")
    num_validation: int = arg(4000, "validation problems, as far as there are any")
    screen: int = arg(500, "validation problems that every setting decodes")
    num: int = arg(4000, "test problems, as far as there are any")
    skip: int = arg(0, "test problems before the first of them")
    loss: float = arg(MAX_LOSS, "accuracy that the teacher's best rule may lose on validation")
    margin: float = arg(0.0025, "accuracy that students and drafts may lose on validation")
    num_draws: int = arg(2000, "bootstrap draws")
    threads: int = arg(1, "CPU threads; one is fastest for models this small")
    seed: int = arg(0, "of the bootstrap")
    json: str | None = arg(None, "file for the numbers")

    def __post_init__(self) -> None:
        check_counts(self, "num_validation", "screen", "num", "num_draws", "threads")
        if self.skip < 0:
            raise ValueError(f"skip must be at least 0, got {self.skip}")
        if self.task not in known_tasks():
            raise ValueError(f"task must be of {', '.join(known_tasks())}, got {self.task!r}")
        if self.task == FEW_SHOT.name and self.teacher is None:
            raise ValueError(f"no model ships for {self.task}: give --teacher FOLDER")
        for name in ("loss", "margin"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(
                    f"{name} must be at least 0 and below 1, got {getattr(self, name)}"
                )
        check_folder("json", self.json)


class Chosen(NamedTuple):
    """The setting of a kind, and what it did with the validation problems."""

    name: str
    options: dict[str, Any]
    validation: Measured


class Asked(NamedTuple):
    """The accuracy that a kind's setting must reach on validation problems."""

    reference: Measured | None  # None: the model's own, one token a forward
    less: float

    def of(self, found: Mapping[str, Measured]) -> float:
        """As accuracy on the problems that `found` has, the first of validation."""
        correct = (self.reference or found[ONE]).correct[: len(next(iter(found.values())).correct)]
        return float(correct.mean()) - self.less


def promising(found: Mapping[str, Measured], names: Sequence[str], least: float) -> list[str]:
    """Which of these settings may still be the one of the fewest forwards that reaches `least`."""
    reached = [found[name].mean_forwards for name in names if found[name].accuracy >= least - 1e-9]
    most = (1 + MORE) * min(reached, default=numpy.inf)
    return [
        name
        for name in names
        if found[name].accuracy >= least - MISSED - 1e-9 and found[name].mean_forwards <= most
    ]


def choose(
    engine: Engine,
    task: ExactTask,
    problems: Sequence[tuple[str, str]],
    asked: Mapping[str, Asked],
    screen: int,
) -> dict[str, Chosen]:
    """The setting of each kind with the fewest forwards; no entry where none reaches what is asked.

    One token a forward is always among them, as ONE.
    """
    every: Settings = {ONE: {}}
    for kind in asked:
        every |= KINDS[kind]
    found = measure(engine, task, problems[:screen], every)
    rest = [ONE]
    for kind, ask in asked.items():
        rest += promising(found, list(KINDS[kind]), ask.of(found))
    if len(problems) > screen:
        later = measure(engine, task, problems[screen:], {name: every[name] for name in rest})
        found = {
            name: Measured(*map(numpy.concatenate, zip(found[name], later[name]))) for name in rest
        }
    chosen = {ONE: Chosen(ONE, {}, found[ONE])}
    for kind, ask in asked.items():
        names = [name for name in rest if name in KINDS[kind]]
        against = {**found, ONE: ask.reference or found[ONE]}
        if (best := fewest(against, names, ask.less)) is not None:
            chosen[kind] = Chosen(best, every[best], found[best])
    return chosen


class Side(NamedTuple):
    """A model's chosen settings, and what they did with the test problems."""

    chosen: dict[str, Chosen]
    tested: dict[str, Measured]  # by kind


def test(
    engine: Engine, task: ExactTask, problems: Sequence[tuple[str, str]], chosen: dict[str, Chosen]
) -> Side:
    """Decode the test problems under what was chosen."""
    found = measure(engine, task, problems, {each.name: each.options for each in chosen.values()})
    return Side(chosen, {kind: found[each.name] for kind, each in chosen.items()})


def run(options: Options) -> dict[str, Any]:
    """Choose the settings of teacher and student on validation, and test them."""
    task = known_tasks()[options.task]
    validation = first_problems(task, "validation", options.num_validation)
    problems = first_problems(task, "test", options.skip + options.num)[options.skip :]
    if not problems:
        raise ValueError(f"skip={options.skip} leaves no test problem of {options.task}")
    models = {"teacher": options.teacher or options.task}
    if options.student is not None:
        models["student"] = options.student
    folders = {who: resolve(model, option=who) for who, model in models.items()}
    engines = {
        who: Engine("llada", pretrained=str(folder), device="cpu", dtype="float32")
        for who, folder in folders.items()
    }
    margin = Asked(None, options.margin)
    asked = {RULES: Asked(None, options.loss), **dict.fromkeys(DRAFTS, margin)}
    chosen = choose(engines["teacher"], task, validation, asked, options.screen)
    chosen.setdefault(RULES, chosen[ONE])
    sides = {"teacher": test(engines["teacher"], task, problems, chosen)}
    if "student" in engines:
        margin = Asked(chosen[RULES].validation, options.margin)
        of_student = dict.fromkeys(KINDS, margin)
        chosen = choose(engines["student"], task, validation, of_student, options.screen)
        sides["student"] = test(engines["student"], task, problems, chosen)
    return {
        "options": asdict(options),
        "num_validation": len(validation),
        "num": len(problems),
        "rows": [
            _row(who, kind, sides, options) for who, side in sides.items() for kind in side.chosen
        ],
        "without": [
            f"{who}: {kind}"
            for who, side in sides.items()
            for kind in KINDS
            if kind not in side.chosen
        ],
    }


def _row(who: str, kind: str, sides: Mapping[str, Side], options: Options) -> dict[str, Any]:
    side, teacher = sides[who], sides["teacher"].tested
    found, chosen, draws = side.tested[kind], side.chosen[kind], (options.num_draws, options.seed)
    row = {
        "who": who,
        "kind": kind,
        "name": chosen.name,
        "validation_accuracy": chosen.validation.accuracy,
        "validation_forwards": chosen.validation.mean_forwards,
        "accuracy": found.accuracy,
        "forwards": found.mean_forwards,
        "rows": float(found.rows.mean()),
    }
    for name, other in (("one", ONE), ("best", RULES), ("same_kind", kind)):
        if other in teacher:
            less = paired_interval(found.correct, teacher[other].correct, *draws)
            fewer = ratio_interval(found.forwards, teacher[other].forwards, *draws)
            row |= {f"less_{name}": less._asdict(), f"fewer_{name}": fewer._asdict()}
    return row


def met(report: Mapping[str, Any]) -> bool:
    """Does the student reach its target, or without one a kind of drafts?"""
    rows = {(row["who"], row["kind"]): row for row in report["rows"]}
    if report["options"]["student"] is not None:
        row = rows.get(("student", RULES))
        return row is not None and _within(row, "less_best", FEWER_OF_STUDENTS)
    return any(
        _within(rows["teacher", kind], "less_one", FEWER_OF_DRAFTS)
        for kind in DRAFTS
        if ("teacher", kind) in rows
    )


def _within(row: Mapping[str, Any], less: str, fewer: float) -> bool:
    return bool(
        row[less]["difference"] >= -MAX_LOSS - 1e-9 and row["fewer_best"]["difference"] <= -fewer
    )


def table(report: Mapping[str, Any]) -> str:
    """What was chosen and how it tested, then the student beside its teacher kind by kind."""
    header = [
        "",
        "setting",
        "validation",
        "test",
        "less one",
        "less best",
        "fewer than best",
        "rows",
    ]
    lines = [
        [
            row["who"],
            row["name"],
            f"{row['validation_accuracy']:.4f} @ {row['validation_forwards']:.2f}",
            f"{row['accuracy']:.4f} @ {row['forwards']:.2f}",
            points(Interval(**row["less_one"])),
            points(Interval(**row["less_best"])),
            percent(Interval(**row["fewer_best"])),
            f"{row['rows']:.1f}",
        ]
        for row in report["rows"]
    ]
    parts = [
        f"{report['num_validation']} validation and {report['num']} test problems",
        markdown(header, lines),
    ]
    beside = [
        [
            row["kind"],
            points(Interval(**row["less_same_kind"])),
            percent(Interval(**row["fewer_same_kind"])),
        ]
        for row in report["rows"]
        if row["who"] == "student" and "less_same_kind" in row
    ]
    if beside:
        parts.append(markdown(["student less teacher", "accuracy", "forwards"], beside))
    if report["without"]:
        parts.append(f"no setting reached what was asked: {', '.join(report['without'])}")
    parts.append(f"the target: {'met' if met(report) else 'MISSED'}")
    return "\n\n".join(parts)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    return run_benchmark(Options, "students", run, table, met, argv)


if __name__ == "__main__":
    sys.exit(main())
