"""The ablation: its statistics in closed form, its cells against the Engine, and the
claim that the shipped head makes.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy
import pytest
import torch

from benchmarks import ablation, ups_sweep
from benchmarks.ablation import cell, frontier_rows, measure, remembered, verdicts
from benchmarks.paired import Interval, Outcome, paired_interval
from llada_plugins import SamplerConfig
from llada_plugins.diffusion.denoiser import Canvas, Prediction
from llada_plugins.engine.engine import Engine, Request
from llada_plugins.methods.policy_head import PolicyHead, save_policy
from llada_plugins.models.fingerprint import backbone_fingerprint
from llada_plugins.models.folder import TINY
from llada_plugins.models.loading import load_model
from llada_plugins.reports.ups_problems import SOURCES
from llada_plugins.tasks import sudoku
from tests.report_pages import check_report_page

pytestmark = pytest.mark.floats

CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.fixture(scope="module")
def head(tmp_path_factory) -> Path:
    """A random head for the shipped tiny model."""
    model, folder = load_model(device="cpu"), tmp_path_factory.mktemp("head")
    torch.manual_seed(0)
    save_policy(PolicyHead(model.config.d_model, 8), folder, backbone_fingerprint(model))
    return folder


# --- statistics -----------------------------------------------------------------------


def test_a_constant_difference_has_an_interval_of_no_width():
    assert paired_interval(numpy.ones(50, bool), numpy.zeros(50, bool)) == Interval(1.0, 1.0, 1.0)
    assert paired_interval(numpy.arange(50), numpy.arange(50) + 2) == Interval(-2.0, -2.0, -2.0)


def test_the_interval_of_many_items_is_the_normal_one_and_pairing_narrows_it():
    stream = numpy.random.default_rng(0)
    first = stream.random(4000) < 0.8
    second = first & (stream.random(4000) < 0.9)  # wrong wherever the first is
    found = paired_interval(first, second)
    half = 1.96 * (first.astype(float) - second).std() / 4000**0.5
    assert found.difference == pytest.approx(first.mean() - second.mean())
    # 2000 draws know a 2.5 % quantile to about 6 % of the half width; three times that
    assert found.low == pytest.approx(found.difference - half, abs=0.18 * half)
    assert found.high == pytest.approx(found.difference + half, abs=0.18 * half)
    apart = paired_interval(first, stream.permutation(second))
    assert found.high - found.low < 0.7 * (apart.high - apart.low)


def test_the_interval_holds_the_true_difference_in_95_of_100_simulated_comparisons():
    stream, runs, covered = numpy.random.default_rng(1), 400, 0
    for run in range(runs):
        first = stream.random(300) < 0.8
        # true difference .3 (.8 - .5)
        second = numpy.where(stream.random(300) < 0.7, first, stream.random(300) < 0.5)
        found = paired_interval(first, second, num_draws=400, seed=run)
        covered += found.low <= 0.09 <= found.high
    # 4 sigma, and .01 for the percentile method at n = 300
    assert abs(covered / runs - 0.95) < 4 * (0.95 * 0.05 / runs) ** 0.5 + 0.01


def test_the_interval_is_the_same_every_time():
    first, second = numpy.arange(500) ** 2 % 7, numpy.arange(500) ** 2 % 11
    assert (
        paired_interval(first, second)
        == paired_interval(first, second)
        != paired_interval(first, second, seed=1)
    )


def outcome(num_correct: int, forwards: float, num: int = 100) -> Outcome:
    return Outcome(numpy.arange(num) < num_correct, numpy.full(num, forwards))


def test_frontier_and_verdicts_follow_their_definitions():
    options = ablation.Options(steps=[8])
    outcomes = {name: outcome(50, 8) for name in options.settings()}
    outcomes |= {
        cell("ups", 8): outcome(60, 8),
        cell("plain", 8): outcome(55, 8),
        cell("random", 8): outcome(45, 8),
        "threshold 0.9": outcome(90, 5.5),
        "threshold 0.9 revised": outcome(95, 6),
        "threshold 0.95 revised": outcome(99, 6.01),
    }
    rows = {row["name"]: row for row in frontier_rows(outcomes, options)}
    best = {name for name, row in rows.items() if row["on_frontier"]}
    assert best == {"threshold 0.9", "threshold 0.9 revised", "threshold 0.95 revised"}
    assert rows["threshold 0.9 revised"]["less_unrevised"]["difference"] == pytest.approx(0.05)
    assert [row["mean_forwards"] for row in frontier_rows(outcomes, options)] == sorted(
        row["mean_forwards"] for row in rows.values()
    )
    found = verdicts(outcomes, list(rows.values()), options)
    assert [round(each["value"], 6) for each in found] == [0.05, 0.10, 0.05, 0.95]
    assert [each["met"] for each in found] == [True, True, False, True]
    assert found[-1]["row"] == "threshold 0.9 revised at 6.00"


# --- decoding -------------------------------------------------------------------------


def test_a_remembered_denoiser_says_the_same_and_evaluates_a_row_once():
    evaluated = []

    def denoise(canvas: Canvas, window: slice) -> Prediction:
        evaluated.extend(canvas.tokens.tolist())
        tokens = canvas.tokens[:, window]
        return Prediction.from_logits(
            torch.nn.functional.one_hot(tokens, 12).float(), tokens.float()
        )

    sparing = remembered(denoise)
    for tokens in ([[1, 2, 3], [4, 5, 6], [1, 2, 3]], [[7, 8, 9], [4, 5, 6]], [[4, 5, 6]]):
        canvas = Canvas(torch.tensor(tokens), torch.zeros(len(tokens), dtype=torch.long), False)
        at = torch.tensor([[1, 0]] * len(tokens))
        ours, plain = sparing(canvas, slice(1, 3)), denoise(canvas, slice(1, 3))
        assert torch.equal(ours.logits_at(at), plain.logits_at(at))
        assert torch.equal(ours.confidence, plain.confidence)
        del evaluated[-len(tokens) :]
    assert sorted(evaluated) == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]


@pytest.mark.parametrize(
    "options",
    [
        dict(steps=4, revise=True, confidence_source="ups"),
        dict(steps=4, revise=True, confidence_source="random"),
        dict(threshold=0.8, revise_below=0.5, confidence_source="ups"),
    ],
    ids=str,
)
def test_a_cell_is_the_engines_accuracy_and_forwards(head, options):
    # the 22nd repeats the third, and Engine gives a repeat other random numbers
    problems = sudoku.problems("test", 21)
    config = SamplerConfig(gen_length=16, **options)
    engine = ablation.load(None, str(head))
    # what is remembered of one setting serves the next
    others = {"before": SamplerConfig(gen_length=16, steps=4)}
    found = measure(engine, problems, {**others, "cell": config}, batch_size=7)["cell"]
    reference = Engine(
        "llada_ups", ups=str(head), device="cpu", batch_size=21, gen_length=16, **options
    )
    requests = [Request(problem.puzzle, reference.sampler) for problem in problems]
    answers = dict(reference.generate(requests))
    assert found.correct.tolist() == [
        sudoku.is_valid(problem.puzzle, answers[number].text)
        for number, problem in enumerate(problems)
    ]
    assert found.forwards.tolist() == [answers[number].num_forwards for number in range(21)]


def test_the_command_writes_tables_json_and_a_plot(head, tmp_path, capsys):
    few = ["--num", "3", "--steps", "2", "8", "--num_draws", "50", "--html"]
    assert ablation.main(["--ups", str(head), "--output", str(tmp_path / "out"), *few]) == 0
    result = json.loads((tmp_path / "out" / "ablation.json").read_text())
    assert set(result) == {
        "sources",
        "frontier",
        "targets",
        "model",
        "torch",
        "cpu_seconds",
        "options",
    }
    assert [(row["steps"], row["source"]) for row in result["sources"]] == [
        (steps, source) for steps in (2, 8) for source in SOURCES
    ]
    assert all(row["mean_forwards"] == row["steps"] for row in result["sources"])
    assert all(
        row["ups_less_this"]["difference"] == 0
        for row in result["sources"]
        if row["source"] == "ups"
    )
    assert len(result["frontier"]) == 2 * len(SOURCES) + 2 * (
        len(ablation.THRESHOLDS) + len(ablation.FACTORS)
    )
    assert all(row["mean_forwards"] <= row["cap"] for row in result["frontier"] if row["cap"])
    assert len(result["targets"]) == 4
    assert (tmp_path / "out" / "frontier.png").stat().st_size > 5000
    printed = capsys.readouterr().out
    assert printed.strip() == (tmp_path / "out" / "tables.md").read_text().strip()
    assert "| threshold 0.95 revised |" in printed and "| at the cap of 16 |" in printed
    words = ["threshold 0.95 revised", "at the cap of 16", "3 problems, greedy"]
    rows = 3 + len(SOURCES) + len(result["frontier"]) + len(result["targets"])
    check_report_page(tmp_path / "out" / "report.html", plots=1, rows=rows, words=words)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--num", "0"], "num must be at least 1, got 0"),
        (["--steps", "0"], "steps must be at least 1, got 0"),
        (["--revise_below", "2"], "revise_below must be above 0 and at most 1"),
        (["--ups", "/no/such/folder"], "/no/such/folder"),
        (["--output", "{full}"], "is not empty: give another folder"),
    ],
)
def test_bad_options_are_one_line_and_leave_nothing(tmp_path, arguments, message):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(SystemExit) as refused:
        ablation.main(
            [
                "--output",
                str(tmp_path / "out"),
                *(argument.format(full=tmp_path / "full") for argument in arguments),
            ]
        )
    assert message in str(refused.value) and "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_the_opencompass_config_has_the_ablations_settings():
    config = pytest.importorskip("mmengine.config").Config.fromfile(
        CONFIGS / "eval_llada_ups_ablation.py"
    )
    settings = ablation.Options(max_forwards=16).settings()
    kept = ("type", "abbr", "path", "batch_size", "run_cfg")
    entries = {
        entry["abbr"]: SamplerConfig(
            **{name: value for name, value in entry.items() if name not in kept}
        )
        for entry in config.models
    }
    assert len(entries) == len(config.models) == 27
    ours = {
        SamplerConfig(
            **{**vars(setting), "max_forwards": None, "confidence_source": setting.source}
        )
        for setting in settings.values()
    }
    theirs = {
        SamplerConfig(**{**vars(entry), "confidence_source": entry.source})
        for entry in entries.values()
    }
    assert theirs <= ours


# --- the claim ------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(
    not (TINY / "ups").is_dir(), reason="the shipped model has no policy head beside it"
)
def test_the_shipped_head_beats_decoding_that_never_takes_a_token_back():
    # greedy on fixed problems, so the numbers are the same every time; 8 steps, because
    # at 16 plain decoding solves nearly all
    settings = {
        source: ablation.compared(source, gen_length=16, steps=8) for source in ("plain", "ups")
    }
    found = measure(ablation.load(None, None), sudoku.problems("test", 300), settings)
    assert paired_interval(found["ups"].correct, found["plain"].correct).low > 0


# --- the sweep ------------------------------------------------------------------------


@pytest.mark.parametrize("option", ups_sweep.SWEEPS)
def test_every_run_of_a_sweep_is_a_command_that_training_accepts(tmp_path, option):
    from training.runs import launch
    from training.runs.presets import UPS_PRESETS
    from training.runs.remask_options import RemaskOptions

    for value in ups_sweep.SWEEPS[option]:
        flags = ups_sweep.flags(option, value, tmp_path / "run", ups_sweep.Options())
        options, arguments = launch.parse(RemaskOptions, "", flags, UPS_PRESETS)
        assert getattr(options if hasattr(options, option) else arguments, option) == value
        assert options.joint == (option == "lambda_ups")


@pytest.mark.slow
def test_a_sweep_trains_judges_and_reports_every_value(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(ups_sweep.SWEEPS, "ups_width", (0, 16))
    assert (
        ups_sweep.main(
            [
                "--sweep",
                "ups_width",
                "--max_steps",
                "3",
                "--num",
                "5",
                "--output",
                str(tmp_path / "out"),
            ]
        )
        == 0
    )
    result = json.loads((tmp_path / "out" / "ups_sweep.json").read_text())
    assert [row["value"] for row in result["rows"]] == [0, 16]
    assert all(
        {"ups_auc", "tps_prob_auc", "plain", "tps_prob", "ups", "ups_less_plain"} <= row.keys()
        for row in result["rows"]
    )
    assert "| ups_width 16 |" in capsys.readouterr().out
