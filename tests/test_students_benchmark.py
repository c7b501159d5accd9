"""benchmarks.students: its choices in closed form, and its rows against plain answers."""

from __future__ import annotations

import json

import numpy
import pytest

from benchmarks import students
from benchmarks.fewest_forwards import ONE, Measured
from benchmarks.students import DRAFTS, KINDS, RULES, Asked, Options
from llada_plugins.engine.engine import Engine
from llada_plugins.engine.request import Request
from llada_plugins.sampling.config import SamplerConfig
from llada_plugins.tasks.registry import SUDOKU4

FEW = {
    RULES: {"threshold=0.9": dict(threshold=0.9), "factor=0.1": dict(factor=0.1)},
    "2 rows of drafts": {
        "0.9": dict(threshold=0.9, draft_rows=2, draft_odds=0.1),
        "0.95": dict(threshold=0.95, draft_rows=2, draft_odds=0.1),
    },
}


def measured(num_correct: int, forwards: float, num: int = 100) -> Measured:
    constant = numpy.full(num, forwards)
    return Measured(numpy.arange(num) < num_correct, constant, constant)


def row(who: str, kind: str, less: float, fewer: float) -> dict[str, object]:
    return {
        "who": who,
        "kind": kind,
        "less_one": {"difference": less},
        "less_best": {"difference": less},
        "fewer_best": {"difference": fewer},
    }


def test_every_setting_of_every_kind_is_one_of_the_sampler():
    for settings in KINDS.values():
        assert len(settings) > 24
        for options in settings.values():
            SamplerConfig(gen_length=16, **options)


def test_screening_drops_what_misses_by_a_point_or_takes_a_tenth_more():
    found = {
        "misses by more": measured(88, 4),
        "misses by a point": measured(89, 5),
        "reaches it": measured(90, 6),
        "a tenth more": measured(95, 6.6),
        "beyond that": measured(99, 6.7),
    }
    kept = students.promising(found, list(found), 0.9)
    assert kept == ["misses by a point", "reaches it", "a tenth more"]
    # where none reaches it, none is too slow
    assert students.promising(found, list(found), 0.995) == ["beyond that"]


def test_what_is_asked_follows_the_reference_on_the_same_first_problems():
    found = {ONE: measured(40, 16, 50)}
    assert Asked(None, 0.1).of(found) == pytest.approx(0.7)
    assert Asked(measured(45, 4), 0.1).of(found) == pytest.approx(0.8)  # of its first 50


def test_a_choice_is_the_same_with_and_without_screening(monkeypatch):
    monkeypatch.setattr(students, "KINDS", FEW)
    engine = Engine("llada", device="cpu", dtype="float32")
    problems = SUDOKU4.problems("validation", 8)
    asked = {RULES: Asked(None, 0.5), "2 rows of drafts": Asked(None, 0.5)}
    whole, screened = (
        students.choose(engine, SUDOKU4, problems, asked, screen) for screen in (8, 5)
    )
    assert list(whole) == list(screened) == [ONE, RULES, "2 rows of drafts"]
    for kind in whole:
        assert whole[kind].name == screened[kind].name
        assert (whole[kind].validation.correct == screened[kind].validation.correct).all()
        assert (whole[kind].validation.forwards == screened[kind].validation.forwards).all()
    sampler = engine.sampler_for({"gen_length": 16, **whole[RULES].options})
    plain = dict(engine.generate([Request(prompt, sampler) for prompt, _ in problems]))
    forwards = [plain[number].num_forwards for number in range(8)]
    assert whole[RULES].validation.forwards.tolist() == forwards


def test_a_kind_without_a_setting_that_reaches_what_is_asked_is_left_out(monkeypatch):
    monkeypatch.setattr(students, "KINDS", FEW)
    engine = Engine("llada", device="cpu", dtype="float32")
    problems = SUDOKU4.problems("validation", 2)
    asked = {RULES: Asked(measured(100, 4, 2), -1.0)}
    assert list(students.choose(engine, SUDOKU4, problems, asked, 1)) == [ONE]


@pytest.mark.parametrize(
    ("student", "rows", "reached"),
    [
        ("x", [row("student", RULES, -0.005, -0.3)], True),
        ("x", [row("student", RULES, -0.006, -0.3)], False),
        ("x", [row("student", RULES, 0.0, -0.29)], False),
        ("x", [row("teacher", next(iter(DRAFTS)), 0.0, -0.9)], False),
        (None, [row("teacher", next(iter(DRAFTS)), -0.005, -0.25)], True),
        (None, [row("teacher", next(iter(DRAFTS)), 0.0, -0.24)], False),
        (None, [], False),
    ],
    ids=str,
)
def test_the_target_is_of_the_student_or_of_drafts_without_one(student, rows, reached):
    assert students.met({"options": {"student": student}, "rows": rows}) is reached


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(screen=0), "screen must be at least 1, got 0"),
        (dict(skip=-1), "skip must be at least 0, got -1"),
        (dict(task="go"), "task must be of sudoku4, nim, few_shot, got 'go'"),
        (dict(task="few_shot"), "no model ships for few_shot: give --teacher FOLDER"),
        (dict(margin=1.0), "margin must be at least 0 and below 1, got 1.0"),
    ],
    ids=str,
)
def test_a_wrong_option_is_told(given, message):
    with pytest.raises(ValueError, match=message):
        Options(**given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--skip", "4000", "--task", "nim"], "skip=4000 leaves no test problem of nim"),
        (["--student", "./absent"], "absent"),
    ],
    ids=str,
)
def test_a_wrong_input_ends_with_one_line_before_anything_is_decoded(capsys, given, message):
    with pytest.raises(SystemExit) as ended:
        students.main(["--num", "2", "--num_validation", "2", *given])
    told = str(ended.value.code) + capsys.readouterr().err
    assert ended.value.code not in (0, None) and message in told


@pytest.mark.slow
def test_the_command_compares_a_student_with_its_teacher(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(students, "KINDS", FEW)
    monkeypatch.setattr(students, "DRAFTS", {"2 rows of drafts": FEW["2 rows of drafts"]})
    file = tmp_path / "found.json"
    given = ["--num", "10", "--num_validation", "10", "--screen", "5", "--skip", "3"]
    # a student that is its teacher saves nothing
    given += ["--loss", "0.5", "--margin", "0.5", "--student", "sudoku4", "--json", str(file)]
    assert students.main(given) == 1
    report = json.loads(file.read_text())
    rows = {(each["who"], each["kind"]): each for each in report["rows"]}
    assert report["num"] == report["num_validation"] == 10 and len(rows) == 6
    for kind in (ONE, *FEW):
        same = rows["student", kind]["fewer_same_kind"]
        assert same == {"difference": 0.0, "low": 0.0, "high": 0.0}
    assert "MISSED" in capsys.readouterr().out
