"""benchmarks.parallel: matched forwards in closed form, its rows against plain
generation, and the command.
"""

from __future__ import annotations

import json

import numpy
import pytest

from benchmarks import parallel
from benchmarks.ablation import remembered
from benchmarks.paired import Interval, Outcome
from llada_plugins import SamplerConfig, generate
from llada_plugins.engine.engine import Engine
from llada_plugins.sampling.facts import ADAPTIVE_RULES
from llada_plugins.tasks import nim
from tests.tolerance import EPS64, rounding

pytestmark = pytest.mark.floats

FEW = {
    "threshold": (0.4, 0.9, 0.999),
    "threshold_entropy": (0.2,),
    "factor": (3.0, 0.01),
    "error_budget": (0.2, 0.03),
}


def outcome(num_correct: int, forwards: float, num: int = 100) -> Outcome:
    return Outcome(numpy.arange(num) < num_correct, numpy.full(num, forwards))


def test_the_grid_has_every_adaptive_rule_in_order_of_fewer_tokens_at_once():
    assert set(parallel.GRID) == set(ADAPTIVE_RULES)
    assert all(
        list(values) == sorted(values, reverse=rule != "threshold")
        for rule, values in parallel.GRID.items()
    )


def test_accuracy_at_equal_forwards_lies_on_the_line_between_two_settings():
    curve = [outcome(40, 2), outcome(80, 4), outcome(90, 8)]
    for num_correct, forwards, expected in (
        (70, 3, 0.1),
        (40, 2, 0.0),
        (82, 6, -0.03),
        (90, 8, 0.0),
    ):
        found = parallel.less_curve(outcome(num_correct, forwards), curve)
        assert found.difference == pytest.approx(expected)
        assert found.low <= found.difference <= found.high
    assert parallel.less_curve(outcome(40, 1.9), curve) is None
    assert parallel.less_curve(outcome(90, 8.1), curve) is None
    assert parallel.less_curve(outcome(70, 3), curve[::-1]) == parallel.less_curve(
        outcome(70, 3), curve
    )


def test_a_setting_of_the_curve_differs_from_it_by_nothing_in_any_draw():
    stream = numpy.random.default_rng(0)
    curve = [
        Outcome(stream.random(200) < rate, stream.integers(most - 2, most + 1, 200))
        for rate, most in ((0.5, 3), (0.7, 6), (0.9, 9))
    ]
    for each in curve:
        assert parallel.less_curve(each, curve) == pytest.approx(
            Interval(0.0, 0.0, 0.0), abs=rounding(100, 1.0, eps=EPS64)
        )


def test_the_interval_at_equal_forwards_is_the_normal_one():
    stream = numpy.random.default_rng(1)
    low, high, other = (
        Outcome(stream.random(4000) < rate, numpy.full(4000, forwards))
        for rate, forwards in ((0.5, 2), (0.7, 4), (0.7, 3))
    )
    found = parallel.less_curve(other, [low, high])
    difference = other.correct - (low.correct.astype(float) + high.correct) / 2
    half = 1.96 * difference.std() / 4000**0.5
    assert found.difference == pytest.approx(difference.mean())
    # 2000 draws know a 2.5 % quantile to about 6 % of the half width; three times that
    assert found.low == pytest.approx(difference.mean() - half, abs=0.18 * half)
    assert found.high == pytest.approx(difference.mean() + half, abs=0.18 * half)


def test_the_fastest_row_within_a_point_is_named_and_judged():
    def fastest(*rows):
        return parallel.fastest(
            [
                {"name": name, "accuracy": accuracy, "mean_forwards": forwards}
                for name, accuracy, forwards in rows
            ]
        )

    one = (parallel.ONE, 0.99, 16.0)
    assert fastest(one, ("a", 0.98, 8.0), ("b", 0.979, 4.0), ("c", 0.99, 9.0)) == {
        "name": "a",
        "times_fewer": 2.0,
        "met": True,
    }
    assert fastest(one, ("a", 0.9, 2.0), ("b", 0.995, 9.0))["met"] is False
    assert fastest(one, ("a", 0.9, 2.0)) == {"name": parallel.ONE, "times_fewer": 1.0, "met": False}


def test_a_row_is_what_plain_generation_gives(monkeypatch):
    monkeypatch.setattr(parallel, "GRID", FEW)
    found = parallel.measure(parallel.TASKS["nim"], parallel.Options(num=7, batch_size=3))
    engine = Engine("llada", pretrained="nim", device="cpu", dtype="float32")
    problems = nim.problems("test", 7)
    assert list(found)[0] == parallel.ONE and set(found[parallel.ONE].forwards) == {8}
    for name, options in (
        ("threshold 0.9", dict(threshold=0.9)),
        ("error_budget 0.2", dict(error_budget=0.2)),
        ("independent, threshold 0.6", dict(threshold=0.6, max_dependence=0.02)),
    ):
        samples = generate(
            engine.model,
            [engine.encode(problem.position) for problem in problems],
            SamplerConfig(gen_length=8, **options),
            special=engine.special,
        )
        texts = engine.tokenizer.batch_decode([sample.answer for sample in samples])
        assert found[name].forwards.tolist() == [sample.num_forwards for sample in samples]
        assert found[name].correct.tolist() == [
            nim.is_winning(problem.position, text) for problem, text in zip(problems, texts)
        ]


def test_a_model_without_a_policy_is_remembered_too():
    engine = Engine("llada", pretrained="nim", device="cpu")
    config = SamplerConfig(gen_length=8, threshold=0.9)
    prompts = [engine.encode(problem.position) for problem in nim.problems("test", 3)]
    plain, ours = (
        generate(engine.model, prompts, config, special=engine.special, denoise=denoise)
        for denoise in (engine.denoise, remembered(engine.denoise))
    )
    assert ours == plain


def test_the_command_prints_a_table_and_writes_json(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(parallel, "GRID", FEW)
    status = parallel.main(
        ["--num", "6", "--num_draws", "20", "--json", str(tmp_path / "result.json")]
    )
    result = json.loads((tmp_path / "result.json").read_text())
    assert set(result["tasks"]) == {"sudoku4", "nim"}
    assert status == (0 if all(task["fastest"]["met"] for task in result["tasks"].values()) else 1)
    for task in result["tasks"].values():
        rows = {row["name"]: row for row in task["rows"]}
        assert set(rows) == {
            parallel.ONE,
            *(f"{rule} {value:g}" for rule, values in FEW.items() for value in values),
            *(f"independent, threshold {value:g}" for value in parallel.INDEPENDENT),
        }
        assert all(
            1 <= row["mean_forwards"] <= rows[parallel.ONE]["mean_forwards"]
            for row in rows.values()
        )
        assert "less_threshold" not in rows["threshold 0.9"]
        assert rows["error_budget 0.2"]["less_threshold"]["low"] is not None
    printed = capsys.readouterr().out
    assert all(
        text in printed for text in ["error_budget 0.03", "sudoku4, 6 problems", "target 2: "]
    )


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--num", "0"], "num must be at least 1, got 0"),
        (["--tasks", "gsm8k"], "tasks must be some of sudoku4, nim, got gsm8k"),
        (["--json", "no/such/folder/result.json"], "its folder does not exist"),
    ],
)
def test_bad_options_are_refused_before_any_work(flags, message):
    with pytest.raises(SystemExit) as refused:
        parallel.main(flags)
    assert message in str(refused.value)


@pytest.mark.slow
def test_on_the_shipped_models_half_the_forwards_cost_no_more_than_a_point():
    result = parallel.run(parallel.Options(num=500, num_draws=200))
    assert all(task["fastest"]["met"] for task in result["tasks"].values())
    rows = {row["name"]: row for row in result["tasks"]["sudoku4"]["rows"]}
    assert all(
        rows[f"error_budget {value}"]["less_threshold"]["low"] > 0 for value in (0.15, 0.2, 0.3)
    )
