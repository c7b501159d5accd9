"""The task whose prompt decides the order of filling: its answers, its splits, and that
one small run makes backbone, routers, report.
"""

from __future__ import annotations

import json

import pytest

from benchmarks import ala_order
from benchmarks.ala_order import OrderOptions, problems, solve


def naive(prompt: str) -> str:
    """Each place from its neighbour, until nothing changes."""
    adds = {place: "0123abcd".index(symbol) % 4 for place, symbol in enumerate(prompt[1:9])}
    root = next(place for place, symbol in enumerate(prompt[1:9]) if symbol in "abcd")
    known = {root: adds[root]}
    while len(known) < 8:
        for place in range(8):
            before = (place - 1 if prompt[0] == ">" else place + 1) % 8
            if place != root and before in known:
                known[place] = (known[before] + adds[place]) % 4
    return "".join(str(known[place]) for place in range(8))


def test_answers_are_those_of_the_documented_example_and_of_a_naive_solver():
    assert solve("<301c2213=") == "23322021"
    drawn = problems("train", 300) + problems("test", 300)
    assert all(problem.answer == naive(problem.prompt) for problem in drawn)
    assert {problem.prompt[0] for problem in drawn} == {">", "<"}
    assert {symbol for problem in drawn for symbol in problem.prompt[1:9]} == set("0123abcd")


def test_no_prompt_is_in_both_splits_whatever_the_seed_and_a_seed_decides_the_problems():
    train, test = problems("train", 3000, seed=1), problems("test", 3000)
    assert not {problem.prompt for problem in train} & {problem.prompt for problem in test}
    assert problems("test", 20) == test[:20] != problems("test", 20, seed=1)


def test_knowing_the_place_before_is_enough_and_the_roots_symbol_tells_where_to_begin():
    prompt, answer = problems("test", 1)[0]
    changed = prompt[:1] + prompt[1:9].translate(str.maketrans("abcd", "bcda")) + "="
    assert [(int(new) - int(old)) % 4 for new, old in zip(solve(changed), answer)] == [1] * 8


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--variants", "wide"], "--variants must be of router, bias,"),
        (["--seeds", "x"], "--seeds must be whole numbers"),
    ],
)
def test_bad_input_ends_with_one_clear_line(flags, message):
    with pytest.raises(SystemExit, match=f"^error: {message}"):
        ala_order.main(flags)


def test_a_backbone_of_another_run_is_refused_and_the_same_runs_is_taken(tmp_path):
    (tmp_path / "backbone").mkdir()
    command = "python -m benchmarks.ala_order --backbone_steps 7"
    (tmp_path / "backbone" / "config.json").write_text(
        json.dumps({"training": {"command": command}})
    )
    task = ala_order.prepare(OrderOptions(backbone_steps=7, output_dir=str(tmp_path)))
    assert task.judge("<301c2213=", "23322021") and not task.judge("<301c2213=", "23322020")
    assert json.loads((tmp_path / "data.jsonl").read_text().splitlines()[0]) == dict(
        zip(("prompt", "completion"), problems("train", 1, seed=1)[0])
    )
    with pytest.raises(SystemExit, match="holds a backbone of another run .*--backbone_steps 7"):
        ala_order.main(["--backbone_steps", "8", "--output_dir", str(tmp_path)])


@pytest.mark.slow
def test_a_short_run_trains_a_backbone_and_routers_and_writes_the_report(tmp_path):
    command = [
        "--variants",
        "block_router,block_bias",
        "--seeds",
        "0",
        "--num",
        "20",
        "--backbone_steps",
        "2",
        "--max_steps",
        "2",
        "--output_dir",
        str(tmp_path),
    ]
    ala_order.main(command)
    report = json.loads((tmp_path / "order" / "report.json").read_text())
    assert set(report["variants"]) == {"block_router", "block_bias"}
    assert set(report["problems"].values()) == {20}
    assert list(report["plain"]) == ["cross_entropy", "test@2", "test@4", "test@8"]
    config = json.loads((tmp_path / "order" / "block_router-0" / "router_config.json").read_text())
    assert (config["blocks"], config["layers"], config["use_prompt"]) == (4, 2, True)
