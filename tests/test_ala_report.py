"""The ALA report: what it averages, what it pairs, and that it trains what it says."""

from __future__ import annotations

import json
import math

import pytest
import torch

from benchmarks import ala_report
from benchmarks.ala_report import ROUTER_TASKS, Measured, Options, masked_cross_entropy, mean
from llada_plugins.engine.engine import Engine
from llada_plugins.tasks import nim
from tests.tolerance import rounding, token_error
from training.loop.random_streams import random_stream

pytestmark = pytest.mark.floats


def test_the_masked_cross_entropy_is_a_naive_mean_over_every_number_of_masks(tiny_checkpoint):
    engine = Engine(pretrained=str(tiny_checkpoint), device="cpu")
    problems = nim.problems("test", 3)
    ids = [engine.tokenizer(position + answer)["input_ids"] for position, answer in problems]
    draws = [torch.rand(3, 8, generator=random_stream("report", number)) for number in range(1, 9)]
    for row, found in enumerate(masked_cross_entropy(engine, problems)):
        costs = []
        for number, draw in enumerate(draws, 1):
            at = [7 + place for place in range(8) if sum(draw[row] < draw[row, place]) < number]
            tokens = torch.tensor(
                [
                    [
                        engine.special.mask if place in at else token
                        for place, token in enumerate(ids[row])
                    ]
                ]
            )
            log_probs = engine.model(tokens)[0].log_softmax(-1)
            costs.append(-sum(float(log_probs[place, ids[row][place]]) for place in at) / number)
        bound = token_error(engine.model) + rounding(8 * 8, costs)  # a mean of means of float32
        assert float(found) == pytest.approx(sum(costs) / 8, abs=bound)


def test_an_interval_is_the_normal_one_of_a_mean():
    values = torch.tensor([1.0] * 30 + [0.0] * 70, dtype=torch.float64)
    assert mean(values) == {
        "mean": pytest.approx(0.3),
        "half_width": pytest.approx(1.96 * math.sqrt(0.3 * 0.7 / 99)),
    }


def test_differences_are_paired_by_problem_and_seed_and_the_control_is_subtracted_from_its_router(
    monkeypatch, tmp_path
):
    values = {
        "plain": [1.0, 2.0],
        "router-0": [0.5, 1.0],
        "router-1": [0.5, 2.0],
        "bias-0": [1.0, 1.5],
        "bias-1": [0.0, 2.0],
    }

    def measured(task, num, router):
        row = torch.tensor(values["plain" if router is None else router.name], dtype=torch.float64)
        return Measured(row, {"test@8": row})

    monkeypatch.setattr(ala_report, "measure", measured)
    monkeypatch.setattr(
        ala_report, "train", lambda task, options, variant, seed: tmp_path / f"{variant}-{seed}"
    )
    result = ala_report.run(ROUTER_TASKS["nim"], Options(variants="router,bias", seeds="0,1"))
    differences = {
        (each["of"], each["less"]): each["cross_entropy"] for each in result["differences"]
    }
    assert differences.keys() == {("router", "plain"), ("bias", "plain"), ("router", "bias")}
    assert [seed["mean"] for seed in differences["router", "bias"]["seeds"]] == [-0.5, 0.25]
    assert differences["router", "bias"]["pooled"]["mean"] == pytest.approx(-0.125)
    assert differences["router", "plain"]["pooled"]["mean"] == pytest.approx(-0.5)
    text = ala_report.tables(result)
    assert "| router - bias | all | -0.1250 ±" in text and text.count("| bias | ") == 2


@pytest.mark.parametrize(
    "flags, message",
    [
        (
            ["--variants", "router,wide"],
            "--variants must be of router, bias, deep_router, deep_bias, block_router, "
            "block_bias, got wide",
        ),
        (["--seeds", "0,x"], "--seeds must be whole numbers with commas between them, got '0,x'"),
    ],
)
def test_bad_input_ends_with_one_clear_line(flags, message):
    with pytest.raises(SystemExit) as exit_info:
        ala_report.main(flags)
    assert str(exit_info.value.code) == f"error: {message}"


@pytest.mark.slow
def test_a_short_run_trains_measures_and_takes_up_where_it_was(tmp_path):
    command = [
        "--variants",
        "router,bias",
        "--seeds",
        "0",
        "--num",
        "40",
        "--output_dir",
        str(tmp_path),
    ]
    ala_report.main([*command, "--max_steps", "1"])
    first = json.loads((tmp_path / "nim" / "report.json").read_text())
    assert first["problems"] == {
        "cross_entropy": 40,
        "test@4": 40,
        "test@8": 40,
        "ood_heaps@4": 20,
        "ood_heaps@8": 20,
        "ood_sizes@4": 20,
        "ood_sizes@8": 20,
    }
    written = (tmp_path / "nim" / "router-0" / "router.safetensors").stat().st_mtime_ns
    ala_report.main([*command, "--max_steps", "1"])
    assert (tmp_path / "nim" / "router-0" / "router.safetensors").stat().st_mtime_ns == written
    assert json.loads((tmp_path / "nim" / "report.json").read_text()) == first
    with pytest.raises(SystemExit, match="holds a router of another run"):
        ala_report.main([*command, "--max_steps", "2"])
