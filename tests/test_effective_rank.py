"""Effective rank: closed forms, what it does not depend on, and the command that
compares a static mask embedding with routers.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path

import pytest
import torch

from llada_plugins import effective_rank as command
from llada_plugins.methods.router import Router, RouterConfig, save_router
from llada_plugins.models.fingerprint import backbone_fingerprint
from llada_plugins.models.loading import load_model
from llada_plugins.reports.effective_rank import (
    RankOptions,
    compare,
    effective_rank,
    mask_ranks,
    random_router,
)
from tests.tolerance import EPS64, rounding

pytestmark = pytest.mark.floats

PNG = b"\x89PNG\r\n\x1a\n"
SMALL = ["--prompt_length", "7", "--num_prompts", "3", "--device", "cpu"]


def states(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthogonal(n: int) -> torch.Tensor:
    return torch.linalg.qr(states(n, n, seed=1)).Q


@pytest.fixture(scope="module")
def routed_checkpoint(tiny_checkpoint, tmp_path_factory) -> Path:
    """The tiny checkpoint with a router beside it; for reading only."""
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path_factory.mktemp("routed") / "model"))
    model = load_model(folder, device="cpu")
    save_router(random_router(model, 16, seed=5), folder / "router", backbone_fingerprint(model))
    return folder


# ---- the number


@pytest.mark.parametrize(
    "matrix, expected",
    [
        (torch.eye(7), 7),
        (states(1, 9).expand(16, -1), 1),  # equal rows, as masks of one embedding are
        (states(16, 1) @ states(1, 9), 1),
        (torch.diag(torch.tensor([3.0, 3.0, 0.0, 0.0])), 2),
        (torch.diag(torch.tensor([1.0, 3.0])), 4 / 27**0.25),  # exp(-1/4 ln 1/4 - 3/4 ln 3/4)
        (torch.full((1, 5), 2.0), 1),
    ],
    ids=["identity", "equal rows", "rank 1", "two equal singular values", "1 and 3", "one row"],
)
def test_closed_forms(matrix, expected):
    # Singular values are right to the size of the matrix; an entropy of one that is no
    # more than noise, x ln x, is larger than x.
    noise = rounding(sum(matrix.shape), 1.0, eps=EPS64)
    bound = max(expected, 1) * min(matrix.shape) * noise * (1 - math.log(noise))
    assert effective_rank(matrix).item() == pytest.approx(expected, abs=bound)


def test_scale_rotation_transposition_and_the_order_of_rows_do_not_matter():
    matrix = states(6, 10)
    others = [
        5.0 * matrix,
        orthogonal(6) @ matrix,
        matrix @ orthogonal(10),
        matrix.T,
        matrix[torch.tensor([3, 0, 5, 1, 4, 2])],
    ]
    assert [effective_rank(other).item() for other in others] == pytest.approx(
        [effective_rank(matrix).item()] * 5, rel=rounding(6 * 16 * 10, 1.0, eps=EPS64)
    )
    assert 1 < effective_rank(matrix).item() < 6


def test_a_stack_of_matrices_gives_each_ones_rank_and_bfloat16_is_read_in_fp64():
    stack = states(2, 3, 6, 10)
    ranks = effective_rank(stack)
    assert ranks.shape == (2, 3)
    assert float(ranks[1, 2]) == pytest.approx(
        float(effective_rank(stack[1, 2])), rel=rounding(6 * 16 * 10, 1.0, eps=EPS64)
    )
    low = states(6, 10).bfloat16()
    assert torch.equal(effective_rank(low), effective_rank(low.double()))


# ---- of a model's masked positions


def test_masks_of_one_embedding_span_one_direction_at_the_input_and_random_seeds_many(make_model):
    model = make_model()
    baseline = mask_ranks(model, [[5, 6, 7], [8]], 16)
    random = mask_ranks(model, [[5, 6, 7], [8]], 16, random_router(model, 16, seed=0))
    assert len(baseline) == len(random) == model.config.n_layers + 1
    assert baseline[0] == pytest.approx(1, abs=0.01) and random[0] >= 1.2
    assert all(1 <= rank <= 16 for rank in baseline + random)


def test_a_fresh_residual_router_has_the_baselines_ranks(make_model):
    model = make_model()
    with torch.random.fork_rng():
        router = Router(RouterConfig(d_model=32)).eval()
    assert mask_ranks(model, [[5, 6, 7]], 8, router) == mask_ranks(model, [[5, 6, 7]], 8)


def test_the_random_router_comes_from_the_seed_alone(make_model):
    model = make_model()
    before = torch.random.get_rng_state()
    first, again, other = (random_router(model, 16, seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["out.weight"], other["out.weight"])


def test_the_mean_is_over_prompts_one_by_one(make_model):
    model, router = make_model(), random_router(make_model(), 8, seed=0)
    prompts = [[5, 6, 7], [8], [9, 10, 11, 12]]
    alone = [mask_ranks(model, [prompt], 8, router) for prompt in prompts]
    assert mask_ranks(model, prompts, 8, router) == pytest.approx(
        [sum(ranks) / 3 for ranks in zip(*alone)]
    )


# ---- the command


def report_of(folder: Path) -> dict:
    assert sorted(path.name for path in folder.iterdir()) == [
        "effective_rank.json",
        "effective_rank.png",
    ]
    content = (folder / "effective_rank.png").read_bytes()
    assert content.startswith(PNG) and len(content) > 5000
    return json.loads((folder / "effective_rank.json").read_text())


def test_the_command_writes_ranks_and_a_plot_and_says_that_there_is_no_router(
    tiny_checkpoint, tmp_path, capsys
):
    output = tmp_path / "new" / "report"
    assert (
        command.main(
            [
                "--pretrained",
                str(tiny_checkpoint),
                *SMALL,
                "--num_masks",
                "12",
                "--output",
                str(output),
            ]
        )
        == 0
    )
    report = report_of(output)
    assert "router" not in report and (report["num_masks"], report["num_prompts"]) == (12, 3)
    assert report["baseline"][0] == pytest.approx(1, abs=0.01) and report["random_router"][0] >= 1.2
    printed = capsys.readouterr().out
    assert "| input | 1.00 | " in printed
    assert "| layer 2 | " in printed
    assert "no trained router: none beside the checkpoint" in printed


@pytest.mark.parametrize("where", ["beside", "given"])
def test_a_trained_router_is_found_beside_the_checkpoint_or_given(
    tiny_checkpoint, routed_checkpoint, tmp_path, capsys, where
):
    place = (
        ["--pretrained", str(routed_checkpoint)]
        if where == "beside"
        else ["--pretrained", str(tiny_checkpoint), "--router", str(routed_checkpoint / "router")]
    )
    command.main([*place, *SMALL, "--output", str(tmp_path / "report")])
    report = report_of(tmp_path / "report")
    # the seeds differ
    assert report["router"][0] > 1.2 and report["router"] != report["random_router"]
    assert "trained router" in capsys.readouterr().out


def test_prompts_come_from_a_task_a_file_or_a_seed(tiny_checkpoint, tmp_path):
    (tmp_path / "text.jsonl").write_text(
        '{"prompt": "ab", "completion": "c"}\n\n{"prompt": "longer"}\n'
    )
    (tmp_path / "ids.jsonl").write_text('{"input_ids": [5, 6, 7], "prompt_length": 2}\n')
    found = {}
    for name, options in {
        "task": {},
        "nim": dict(task="nim"),
        "text": dict(data=str(tmp_path / "text.jsonl")),
        "ids": dict(data=str(tmp_path / "ids.jsonl")),
        "random": dict(prompt_length=3),
    }.items():
        found[name] = compare(
            RankOptions(
                output="", pretrained=str(tiny_checkpoint), num_prompts=4, device="cpu", **options
            )
        )
    assert {
        name: (report["num_masks"], report["num_prompts"]) for name, report in found.items()
    } == {"task": (16, 4), "nim": (8, 4), "text": (16, 2), "ids": (16, 1), "random": (16, 4)}


def test_the_shipped_models_masks_span_one_direction_until_rotary_positions_part_them():
    report = compare(RankOptions(output="", num_prompts=8, device="cpu"))
    assert report["baseline"][0] == pytest.approx(1, abs=0.01) and report["random_router"][0] >= 1.2
    assert len(report["baseline"]) == 5 and report["baseline"][1] > 1.5


@pytest.mark.parametrize("checkpoint, layers", [("llada/checkpoint", 3), ("remedi/checkpoint", 32)])
def test_checkpoints_without_tokenizer_in_bfloat16_and_bi_towers_work(golden, checkpoint, layers):
    options = RankOptions(
        output="",
        pretrained=str(golden / checkpoint),
        prompt_length=7,
        num_prompts=3,
        device="cpu",
        dtype="bfloat16",
    )
    report = compare(options)
    assert len(report["baseline"]) == layers + 1 and report["dtype"] == "bfloat16"
    assert report["baseline"][0] == pytest.approx(1, abs=0.01) and report["random_router"][0] >= 1.2


MISTAKES = {
    "no such checkpoint": (["--pretrained", "no/such/folder"], "no such folder"),
    "no such router": (
        ["--router", "no/such/folder"],
        "no/such/folder has no router_config.json: give the folder of a router",
    ),
    "no such data": (["--data", "{tmp}/absent.jsonl"], "absent.jsonl: no such data file"),
    "empty data": (["--data", "{tmp}/empty.jsonl"], "empty.jsonl: no rows"),
    "bad row": (["--data", "{tmp}/bad.jsonl"], "bad.jsonl:2: expected "),
    "two kinds of prompts": (
        ["--task", "nim", "--prompt_length", "4"],
        "task and prompt_length all say what the prompts are: give one",
    ),
    "too long": (
        ["--prompt_length", "120"],
        "a prompt of 120 tokens and num_masks=16 exceed the model's context of 128 tokens",
    ),
    "no masks": (["--num_masks", "0"], "num_masks must be at least 1, got 0"),
    "foreign ids": (["--data", "{tmp}/foreign.jsonl"], "prompt ids must be from 0 to "),
    "output in use": (
        ["--prompt_length", "4", "--output", "{tmp}"],
        "is not empty: give another folder",
    ),
    "too many masks": (
        ["--prompt_length", "4", "--num_masks", "20", "--router", "{tmp}/router"],
        "knows answers of 16 tokens",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_end_in_one_line_and_nothing_is_written(tiny_checkpoint, tmp_path, mistake):
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "bad.jsonl").write_text('{"prompt": "ab"}\n{"prompt": [1, 2]}\n')
    (tmp_path / "foreign.jsonl").write_text('{"input_ids": [5, 99999], "prompt_length": 2}\n')
    model = load_model(tiny_checkpoint, device="cpu")
    save_router(
        Router(RouterConfig(d_model=32, max_positions=16)),
        tmp_path / "router",
        backbone_fingerprint(model),
    )
    before = sorted(path.name for path in tmp_path.iterdir())
    flags, message = MISTAKES[mistake]
    arguments = [
        "--pretrained",
        str(tiny_checkpoint),
        "--device",
        "cpu",
        "--output",
        str(tmp_path / "report"),
    ]
    with pytest.raises(SystemExit) as refused:
        command.main([*arguments, *(flag.format(tmp=tmp_path) for flag in flags)])
    assert str(refused.value).startswith("error: ")
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_without_tokenizer_the_remedy_is_named(golden, tmp_path):
    with pytest.raises(
        SystemExit,
        match="has no tokenizer.json: pass --prompt_length N for random prompts, or --data with",
    ):
        command.main(
            [
                "--pretrained",
                str(golden / "llada" / "checkpoint"),
                "--output",
                str(tmp_path / "report"),
            ]
        )


def test_without_matplotlib_nothing_is_computed_and_the_install_line_is_shown(
    monkeypatch, tmp_path
):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr("llada_plugins.reports.effective_rank.load_model", None)
    with pytest.raises(SystemExit, match="plots need matplotlib: pip install matplotlib"):
        command.main(["--output", str(tmp_path / "report")])
    assert not (tmp_path / "report").exists()
