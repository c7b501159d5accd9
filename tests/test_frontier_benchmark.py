"""The frontier benchmark measures what its rows say."""

from __future__ import annotations

import json

import pytest

from benchmarks import frontier
from llada_plugins.engine.engine import Engine
from llada_plugins.tasks.registry import NIM, SUDOKU4


def test_every_setting_is_one_that_its_engine_takes():
    engines = {method: Engine(method, device="cpu") for method in ("llada", "llada_ups")}
    found = frontier.settings(SUDOKU4, with_head=True)
    assert len({(each.curve, each.name) for each in found}) == len(found)
    for setting in found:
        sampler = engines[setting.method].sampler_for({"gen_length": 16, **setting.options})
        if setting.curve.startswith("cache"):
            assert sampler.num_blocks == 4
    assert not [each for each in frontier.settings(NIM, False) if each.method == "llada_ups"]


def test_a_row_counts_forwards_and_the_columns_that_they_compute():
    engine = Engine("llada", device="cpu", batch_size=3)
    exact, cached = (
        frontier.measure(engine, frontier.Setting("c", "n", "llada", options), SUDOKU4, 4)
        for options in (dict(steps=8), dict(steps=8, block_length=8, cache="dual"))
    )
    assert exact["forwards"] == cached["forwards"] == 8 and exact["tokens_per_forward"] == 2
    length = len(engine.encode(SUDOKU4.prompts(1)[0])) + 16
    assert exact["columns"] == 8 * length
    assert cached["columns"] == 2 * (length + 3 * 8)  # a whole first step, then the block


def test_scores_take_the_best_row_of_the_task_as_y_max():
    rows = [
        dict(curve="a", accuracy=0.8, tokens_per_forward=1.0),
        dict(curve="a", accuracy=0.8, tokens_per_forward=2.0),
        dict(curve="b", accuracy=0.9, tokens_per_forward=1.5),
    ]
    found = frontier.scores(rows)
    assert found["b"] == pytest.approx(1.5 * 90) and found["a"] < 2 * 80


@pytest.mark.slow
def test_the_command_prints_every_row(tmp_path, capsys):
    assert frontier.main(["--num", "4", "--tasks", "nim", "--json", str(tmp_path / "f.json")]) == 0
    report = json.loads((tmp_path / "f.json").read_text())
    rows = report["tasks"]["nim"]["rows"]
    assert len(rows) == len(frontier.settings(NIM, False))
    assert capsys.readouterr().out.count("\n| ") >= len(rows)
