"""The report on a policy stream: what it measures in closed form on toys, and the whole
command on a random checkpoint.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from llada_plugins import SamplerConfig, SpecialTokens, ups_report
from llada_plugins.diffusion.denoiser import PADDING, Canvas, Prediction
from llada_plugins.diffusion.forward_process import another_of
from llada_plugins.engine.engine import Engine
from llada_plugins.files.atomic import whole_folder
from llada_plugins.methods.policy_head import PolicyHead, save_policy
from llada_plugins.models.fingerprint import backbone_fingerprint
from llada_plugins.models.loading import load_model
from llada_plugins.reports.render import markdown
from llada_plugins.reports.trajectory import MASKED, Change, corrections, expected_masks, record
from llada_plugins.reports.ups_detection import (
    Noise,
    Visible,
    detect,
    detection_report,
    model_samples,
    reliability,
)
from llada_plugins.reports.ups_plots import PLOTS
from llada_plugins.reports.ups_problems import ReportOptions, TokenProblem
from tests.family_checkpoints import with_tokenizer
from tests.tolerance import rounding

pytestmark = pytest.mark.floats

MASK, CLEAN, VOCAB = 9, 7, 10


@pytest.fixture(scope="module")
def head(tiny_checkpoint, tmp_path_factory) -> Path:
    """A random head for the random checkpoint."""
    model, folder = load_model(tiny_checkpoint, device="cpu"), tmp_path_factory.mktemp("head")
    torch.manual_seed(0)
    save_policy(PolicyHead(model.config.d_model, 8), folder, backbone_fingerprint(model))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "data.jsonl"
    path.write_text(
        "".join(
            json.dumps({"prompt": f"{number}+1=", "completion": str(number + 1)}) + "\n"
            for number in range(7, 12)
        )
    )
    return path


def toy_engine(score: float) -> SimpleNamespace:
    """Every right token is CLEAN; h is +score at it and -score at all others; logits
    are equal everywhere.
    """

    def denoise(canvas: Canvas, window: slice) -> Prediction:
        tokens = canvas.tokens[:, window]
        return Prediction.from_logits(
            torch.zeros(*tokens.shape, VOCAB), score * torch.where(tokens == CLEAN, 1.0, -1.0)
        )

    return SimpleNamespace(
        denoise=denoise,
        special=SpecialTokens(MASK),
        model=SimpleNamespace(device=torch.device("cpu")),
    )


@pytest.mark.parametrize("score, expected", [(5.0, 1.0), (0.0, 0.5), (-5.0, 0.0)])
def test_a_perfect_head_has_auc_1_a_constant_one_a_half_and_an_inverted_one_0(score, expected):
    # padded rows too
    problems = [
        TokenProblem("", "", [1] * prompt, [CLEAN] * answer)
        for prompt, answer in ((3, 8), (1, 5), (6, 8))
    ]
    options = ReportOptions(output="unused", noise_draws=50, batch_size=4)
    visible = detect(
        toy_engine(score), problems, Noise(another_of(torch.tensor([6, CLEAN, 8])), 1.0), options
    )
    found = detection_report(visible)
    assert 100 < found["num_incorrect"] < found["num_visible"] < 50 * (8 + 5 + 8)
    assert found["auc"]["policy"] == expected
    assert found["auc"]["tps_prob"] == 0.5
    if expected == 1:
        num_clean = found["num_visible"] - found["num_incorrect"]
        assert found["confusion"] == {
            "tp": num_clean,
            "tn": found["num_incorrect"],
            "fp": 0,
            "fn": 0,
        }


def test_noise_without_an_incorrect_token_is_refused():
    clean = Noise(lambda noisy, chosen, tokens, generator: tokens[chosen], 1.0)
    with pytest.raises(
        ValueError, match="too few to measure with: give more problems, noise_draws or r_samples"
    ):
        detect(
            toy_engine(1.0),
            [TokenProblem("", "", [1], [CLEAN] * 8)],
            clean,
            ReportOptions(output="unused"),
        )


def test_reliability_bins_hold_every_token_and_reproduce_the_calibration_error():
    generator = torch.Generator().manual_seed(0)
    probability = torch.rand(1000, generator=generator)
    clean = torch.rand(1000, generator=generator) < probability**2
    rows = reliability(probability, clean)
    assert sum(row["count"] for row in rows) == 1000
    assert all(row["low"] <= row["mean_probability"] <= row["high"] for row in rows)
    by_hand = (
        sum(row["count"] * abs(row["mean_probability"] - row["share_clean"]) for row in rows) / 1000
    )
    # means of 1000
    assert detection_report(Visible(clean, probability, probability))["calibration_error"][
        "policy"
    ] == pytest.approx(by_hand, abs=rounding(1000, 1.0))


def test_the_models_own_samples_are_drawn_at_the_chosen_positions_which_it_sees_masked():
    seen = []

    def denoise(canvas: Canvas, window: slice) -> Prediction:
        seen.append(canvas.tokens[:, window])
        logits = torch.full((*canvas.tokens.shape, VOCAB), -torch.inf)
        logits[..., 3], logits[..., MASK] = 0.0, 50.0  # would say the mask if it could
        return Prediction.from_logits(logits)

    tokens = torch.tensor([[PADDING, 1, 2, 4, 5], [1, 1, 2, 4, 5]])
    chosen = torch.tensor([[False, False, True, True, False], [False, False, False, False, True]])
    drawn = model_samples(denoise, MASK)(tokens, chosen, tokens, torch.Generator().manual_seed(0))
    assert drawn.tolist() == [3, 3, 3]
    assert torch.equal(seen[0], tokens.masked_fill(chosen, MASK))
    assert (
        model_samples(denoise, MASK)(tokens, chosen & False, tokens, torch.Generator()).numel() == 0
    )


def test_the_mask_counts_of_a_fixed_schedule_are_gen_length_less_k_n():
    assert expected_masks(SamplerConfig(gen_length=16, steps=8, revise=True)) == list(
        range(16, -1, -2)
    )
    assert expected_masks(SamplerConfig(gen_length=16, steps=4, block_length=8, revise=True)) == [
        16,
        12,
        8,
        4,
        0,
    ]
    # K_n = 2, 5, 8: remainder last
    assert expected_masks(SamplerConfig(gen_length=8, steps=3, revise=True)) == [8, 6, 3, 0]
    assert expected_masks(SamplerConfig(gen_length=8, steps=3)) == [8, 5, 2, 0]  # LLaDA's: first


@pytest.mark.parametrize("options", [dict(steps=8), dict(steps=4, block_length=4)], ids=str)
def test_recorded_answers_end_as_the_samples_and_follow_the_schedule(
    tiny_checkpoint, head, options
):
    engine = Engine("llada_ups", pretrained=str(tiny_checkpoint), ups=str(head), device="cpu")
    config = SamplerConfig(gen_length=8, revise=True, confidence_source="ups", **options)
    run = record(engine, [engine.encode("one"), engine.encode("seven")], config)
    assert run.history[-1].tolist() == [sample.answer for sample in run.samples]
    assert (run.history == MASKED).sum(-1).tolist() == [
        [count, count] for count in expected_masks(config)
    ]


def test_a_correction_is_a_token_that_was_masked_again_and_ended_as_another():
    # 4 came back
    history = torch.tensor(
        [[MASKED, MASKED, MASKED], [4, 5, MASKED], [MASKED, MASKED, 6], [4, 8, 6]]
    )[:, None]
    assert corrections(history) == [[Change(step=2, position=1, first=5, final=8)]]


def run_report(tiny_checkpoint: Path, head: Path | None, output: Path, *arguments: str) -> int:
    given = [
        "--pretrained",
        str(tiny_checkpoint),
        "--output",
        str(output),
        "--device",
        "cpu",
        *arguments,
    ]
    return ups_report.main(given + (["--ups", str(head)] if head else []))


def test_the_command_writes_report_trajectories_and_plots(
    tiny_checkpoint, head, data, tmp_path, capsys
):
    sources = ["plain", "tps_prob", "ups", "ups_all", "random", "entropy", "margin"]
    output = tmp_path / "made" / "report"
    assert (
        run_report(
            tiny_checkpoint,
            head,
            output,
            "--data",
            str(data),
            "--gen_length",
            "8",
            "--steps",
            "4",
            "--sources",
            *sources,
            "--batch_size",
            "2",
        )
        == 0
    )
    report = json.loads((output / "ups_report.json").read_text())
    assert set(report) == {
        "model",
        "num_problems",
        "batch_size",
        "device",
        "detection",
        "decoding",
        "options",
    }
    assert report["num_problems"] == 5
    assert set(report["detection"]) == {"answer_alphabet", "vocabulary", "model_samples"}
    for found in report["detection"].values():
        assert set(found) == {
            "num_visible",
            "num_incorrect",
            "auc",
            "calibration_error",
            "confusion",
            "reliability",
        }
        assert sum(found["confusion"].values()) == found["num_visible"]
    assert list(report["decoding"]) == sources
    for source, found in report["decoding"].items():
        assert found["mask_count"] == [8, 6, 4, 2, 0], source
        assert found["mask_count_follows_schedule"] and found["mask_count_never_rises"]
        assert found["mean_forwards"] == 4 and found["milliseconds_per_step_and_batch"] > 0
    assert (
        report["decoding"]["plain"]["masked_again"]
        == 0
        < report["decoding"]["random"]["masked_again"]
    )
    for name in PLOTS:
        assert (output / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (output / f"{name}.png").stat().st_size > 5000
    assert all(f"== {source}" in (output / "trajectories.txt").read_text() for source in sources)
    assert [path.name for path in output.parent.iterdir()] == ["report"]
    assert "| ups | " in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--sources", "ups", "tps"], "sources must be among plain, tps_prob"),
        (["--num", "0"], "num must be at least 1, got 0"),
        (["--r_incorrect", "0"], "r_incorrect must be above 0"),
        (["--data", "nowhere.jsonl"], "nowhere.jsonl: no such data file"),
        (["--data", "{bad}"], "bad.jsonl:2: expected"),
        (["--output", "{full}"], "is not empty: give another folder"),
        (["--ups", "{full}"], "ups_config.json"),
    ],
)
def test_what_the_user_got_wrong_is_one_line_and_leaves_nothing(
    tiny_checkpoint, head, tmp_path, arguments, message
):
    (tmp_path / "bad.jsonl").write_text(
        '{"prompt": "a", "completion": "b"}\n{"prompt": "a", "completion": 3}\n'
    )
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    places = dict(bad=tmp_path / "bad.jsonl", full=tmp_path / "full")
    given = [
        "--pretrained",
        str(tiny_checkpoint),
        "--output",
        str(tmp_path / "report"),
        "--ups",
        str(head),
        "--device",
        "cpu",
    ]
    with pytest.raises(SystemExit) as refused:
        ups_report.main(given + [argument.format(**places) for argument in arguments])
    assert message in str(refused.value) and "\n" not in str(refused.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_checkpoint_without_a_head_is_refused(tiny_checkpoint, data, tmp_path):
    with pytest.raises(SystemExit, match="has no policy head beside it: pass --ups FOLDER"):
        run_report(tiny_checkpoint, None, tmp_path / "report", "--data", str(data))


def test_a_block_causal_model_is_refused_by_name(data, tmp_path):
    folder = with_tokenizer("sdar", tmp_path / "sdar")
    model = load_model(folder, device="cpu")
    head = PolicyHead(model.config.d_model, 8)
    save_policy(head, tmp_path / "ups", backbone_fingerprint(model))
    with pytest.raises(SystemExit, match="has block-causal attention, and this report puts"):
        run_report(folder, tmp_path / "ups", tmp_path / "report", "--data", str(data))


def test_without_matplotlib_the_install_line_comes_before_any_work(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SystemExit, match="plots need matplotlib: pip install"):
        ups_report.main(["--pretrained", "/no/such/folder", "--output", str(tmp_path / "report")])


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    with (
        pytest.raises(RuntimeError, match="half way"),
        whole_folder(tmp_path / "out") as folder,
    ):
        (folder / "file").write_text("half")
        raise RuntimeError("half way")
    assert not list(tmp_path.iterdir())
    with whole_folder(tmp_path / "out") as folder:
        (folder / "file").write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "file").read_text() == "whole"


def test_markdown_has_a_header_a_rule_and_the_rows():
    assert markdown(["a", "b"], [[1, "x"]]) == "| a | b |\n| --- | --- |\n| 1 | x |"
