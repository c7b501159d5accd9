"""benchmarks.fewest_forwards: its choice in closed form, and its rows against plain answers."""

from __future__ import annotations

import json

import numpy
import pytest

from benchmarks import fewest_forwards
from benchmarks.fewest_forwards import KINDS, ONE, PUBLISHED, Measured, Options
from llada_plugins.engine.engine import Engine
from llada_plugins.engine.request import Request
from llada_plugins.sampling.config import SamplerConfig
from llada_plugins.tasks.registry import SUDOKU4

FEW = {
    "threshold": {"0.9": dict(threshold=0.9)},
    "factor": {"0.1": dict(factor=0.1)},
    "error_budget": {"0.03": dict(error_budget=0.03)},
    "drafts": {"0.9": dict(threshold=0.9, draft_rows=2, draft_odds=0.1)},
}


def measured(num_correct: int, forwards: float, num: int = 100) -> Measured:
    constant = numpy.full(num, forwards)
    return Measured(numpy.arange(num) < num_correct, constant, constant)


def test_every_setting_of_every_kind_is_one_of_the_sampler():
    found = fewest_forwards.settings(KINDS)
    assert set(PUBLISHED) <= set(KINDS) and len(found) == 1 + sum(map(len, KINDS.values()))
    for options in found.values():
        SamplerConfig(gen_length=16, **options)


def test_the_fewest_forwards_within_the_slack_are_chosen():
    found = {
        ONE: measured(90, 16),
        "a": measured(88, 4),
        "b": measured(89, 6),
        "c": measured(90, 7),
    }
    for slack, name in ((0.0, "c"), (0.01, "b"), (0.02, "a")):
        assert fewest_forwards.fewest(found, ["a", "b", "c"], slack) == name
    assert fewest_forwards.fewest(found, ["a", "b"], 0.0) is None


def test_a_ratio_of_constant_forwards_has_an_interval_without_width():
    ratio = fewest_forwards.ratio_interval(numpy.full(50, 3.0), numpy.full(50, 4.0), 100, 0)
    assert ratio == (-0.25, -0.25, -0.25)


def test_a_row_is_what_plain_generation_gives():
    engine = Engine("llada", device="cpu", dtype="float32")
    options = dict(threshold=0.9, draft_rows=4, draft_odds=0.1)
    problems = SUDOKU4.problems("test", 6)
    found = fewest_forwards.measure(engine, SUDOKU4, problems, {ONE: {}, "drafts": options})
    sampler = engine.sampler_for({"gen_length": 16, **options})
    plain = dict(engine.generate([Request(prompt, sampler) for prompt, _ in problems]))
    for number, (prompt, _) in enumerate(problems):
        answer = plain[number]
        assert found["drafts"].correct[number] == SUDOKU4.accepts(prompt, answer.text)
        assert found["drafts"].forwards[number] == answer.num_forwards
        assert found["drafts"].rows[number] == answer.num_forwards + answer.num_branches
    assert (found[ONE].forwards == 16).all()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(num=0), "num must be at least 1, got 0"),
        (dict(task="go"), "task must be of sudoku4, nim, few_shot, got 'go'"),
        (dict(kinds=["luck"]), "kinds must be of .*, got 'luck'"),
        (dict(slack=1.0), "slack must be at least 0 and below 1, got 1.0"),
    ],
    ids=str,
)
def test_a_wrong_option_is_told(given, message):
    with pytest.raises(ValueError, match=message):
        Options(**given)


@pytest.mark.slow
@pytest.mark.parametrize("fewer", [0.0, 0.99])
def test_the_command_says_whether_one_kind_reaches_the_target(tmp_path, monkeypatch, capsys, fewer):
    monkeypatch.setattr(fewest_forwards, "KINDS", FEW)
    monkeypatch.setattr(fewest_forwards, "FEWER", fewer)
    file = tmp_path / "found.json"
    given = ["--task", "nim", "--num", "20", "--num_validation", "10", "--json", str(file)]
    status = fewest_forwards.main([*given, "--kinds", *FEW])
    report = json.loads(file.read_text())
    [model] = report["models"]
    # the model writes most answers in one forward: the best row saves nothing, and loses nothing
    assert status == (fewer > 0) and model["num"] == 20 and report["num_validation"] == 10
    assert [row["name"] for row in model["rows"]][0] == ONE
    assert capsys.readouterr().out.count("\n| ") == len(model["rows"]) + 2
