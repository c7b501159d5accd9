"""llada_prm as users meet it: the shipped model with its shipped process reward model,
in the Engine and in both harnesses.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks import ablation_prm
from llada_plugins.engine.engine import Completion, Engine, Request
from llada_plugins.lmeval_models import LLaDAPRM
from llada_plugins.models import loading as checkpoint
from llada_plugins.models.folder import TINY
from llada_plugins.tasks import sudoku
from tests.test_lmeval import ROOT, TASKS, generation, run_lm_eval
from tests.test_opencompass import predictions_of, run_opencompass

pytestmark = pytest.mark.floats

PRM = TINY / "prm"
PROBLEMS = sudoku.problems("test", 80)
ROWS = dict(gen_length=16, steps=4, device="cpu")


def completions(engine: Engine, problems=PROBLEMS, batch_size: int = 40) -> list[Completion]:
    found = dict(
        engine.generate(
            [Request(problem.puzzle, engine.sampler) for problem in problems], batch_size
        )
    )
    return [found[number] for number in range(len(problems))]


def accuracy(found: list[Completion], problems=PROBLEMS) -> float:
    return sum(
        sudoku.is_valid(problem.puzzle, each.text) for problem, each in zip(problems, found)
    ) / len(found)


def test_the_shipped_judge_helps_and_is_counted():
    plain = completions(Engine("llada", block_length=4, **ROWS))
    judged = completions(Engine("llada_prm", **ROWS))
    assert accuracy(judged) > accuracy(plain) + 0.1
    assert {each.num_prm_calls for each in plain} == {0}
    assert all(each.num_prm_calls >= 4 and each.num_forwards >= 4 for each in judged)
    assert all(0 < each.prm_seconds < each.seconds for each in judged)


def test_budgets_are_options_of_the_engine():
    engine = Engine("llada_prm", max_forwards=7, max_prm_calls=5, **ROWS)
    assert all(
        each.num_forwards <= 7 and each.num_prm_calls <= 5
        for each in completions(engine, PROBLEMS[:20])
    )


def test_results_say_who_judged_and_the_fingerprint_follows_the_judges_weights(tmp_path):
    folder = shutil.copytree(TINY, tmp_path / "model")
    engine = Engine("llada_prm", pretrained=str(folder), **ROWS)
    info, before = engine.info(), engine.fingerprint()
    assert (info["method"], info["method_options"]["method"], engine.sampler.block_length) == (
        "llada_prm",
        "backmask",
        4,
    )
    state = load_file(folder / "prm" / "model.safetensors")
    save_file(
        {name: tensor + 0.001 for name, tensor in state.items()},
        folder / "prm" / "model.safetensors",
        metadata={"format": "pt"},
    )
    assert Engine("llada_prm", pretrained=str(folder), **ROWS).fingerprint() != before


@pytest.fixture
def sealed(monkeypatch):
    """No weight of the diffusion model may be read."""

    def refuse(*_, **__):
        raise AssertionError("weights were read before the options were checked")

    monkeypatch.setattr(checkpoint, "load_model", refuse)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(prm="./nowhere"), "prm='./nowhere': no such folder"),
        (dict(pretrained="nim"), "llada_prm needs a process reward model: pass prm="),
        (dict(prm=str(PRM), prm_family="chat"), "contradicts the files"),
        (dict(prm=str(PRM), prm_marker="+"), "prm_marker has no effect"),
        (
            dict(method="backmasking"),
            "method must be one of 'vanilla', 'backmask', 'window', got 'backmasking'",
        ),
        (dict(num_candidates_per_blok=3), r"did you mean 'num_candidates_per_block'\?"),
        (dict(backmasking_threshold=2), "backmasking_threshold must be between 0 and 1"),
        (dict(question_pattern="Q: .*"), "has no group"),
        (dict(question_pattern="("), "is no regular expression"),
        (
            dict(step_split="sentence"),
            "step_split must be one of 'block', 'line', 'blank_line', got 'sentence'",
        ),
    ],
    ids=str,
)
def test_mistakes_are_told_before_weights_are_read(sealed, options, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        Engine("llada_prm", **{**ROWS, **options})
    assert "\n" not in str(caught.value)


def test_a_judge_that_gives_no_number_is_an_error_and_what_was_finished_stays(tmp_path):
    folder = shutil.copytree(PRM, tmp_path / "prm")
    state = load_file(folder / "model.safetensors")
    state["score.weight"] = torch.full_like(state["score.weight"], torch.nan)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="model.safetensors: score.weight holds NaN or infinity"):
        Engine("llada_prm", prm=str(folder), **ROWS)

    engine, finished = Engine("llada_prm", **ROWS), []
    stream = engine.generate(
        [Request(problem.puzzle, engine.sampler) for problem in PROBLEMS[:8]], 4
    )
    finished += [next(stream) for _ in range(4)]
    engine.prepared.judge.scorer.model.score.weight.data.fill_(torch.nan)
    with pytest.raises(RuntimeError, match="no number came out"):
        next(stream)
    assert len(finished) == 4


def test_a_solution_too_long_for_the_judge_names_the_remedy():
    with pytest.raises(ValueError, match="prm_max_length"):
        completions(Engine("llada_prm", prm_max_length=12, **ROWS), PROBLEMS[:2])


def test_the_judge_is_told_the_question_that_the_pattern_finds(monkeypatch):
    engine = Engine("llada_prm", question_pattern=r"Q: (.*?)\nA:", **{**ROWS, "max_length": 128})
    asked: list[str] = []
    scorer, score = engine.prepared.judge.scorer, engine.prepared.judge.scorer.score
    monkeypatch.setattr(
        scorer,
        "score",
        lambda solutions, heard: (
            asked.extend(question for question, _ in solutions) or score(solutions, heard)
        ),
    )
    list(
        engine.generate(
            [Request("Q: 12..............\nA: 34\nQ: ..34............\nA:", engine.sampler)]
        )
    )
    assert set(asked) == {"..34............"}
    with pytest.raises(ValueError, match="is not in the prompt that begins"):
        list(engine.generate([Request("12..", engine.sampler)]))


def test_lm_eval_gives_the_engines_answers():
    model = LLaDAPRM(batch_size=8, method="vanilla", num_candidates_per_block=3, **ROWS)
    engine = Engine("llada_prm", method="vanilla", num_candidates_per_block=3, **ROWS)
    prompts = [problem.puzzle for problem in PROBLEMS[:6]]
    assert model.generate_until(generation(prompts, until=[]), disable_tqdm=True) == [
        each.text for each in completions(engine, PROBLEMS[:6])
    ]


@pytest.mark.slow
def test_stock_lm_eval_runs_the_shipped_model_with_its_shipped_judge(tmp_path):
    done = run_lm_eval(
        "--model",
        "llada_prm",
        "--tasks",
        "sudoku4",
        "--include_path",
        str(TASKS),
        "--limit",
        "40",
        "--batch_size",
        "40",
        "--gen_kwargs",
        "steps=4",
        "--output_path",
        str(tmp_path),
        "--log_samples",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(next(tmp_path.rglob("results_*.json")).read_text())
    assert results["results"]["sudoku4"]["acc,none"] > 0.4
    assert results["config"]["method_options"]["method"] == "backmask"
    refused = run_lm_eval(
        "--model",
        "llada_prm",
        "--model_args",
        "pretrained=nim",
        "--tasks",
        "sudoku4",
        "--include_path",
        str(TASKS),
        cwd=tmp_path,
    )
    assert refused.returncode != 0 and "llada_prm needs a process reward model" in refused.stderr


def test_ablation_compares_every_setting_on_the_same_problems(tmp_path):
    options = ablation_prm.Options(num=12, num_draws=50, output=str(tmp_path / "out"))
    settings = {
        name: ablation_prm.SETTINGS[name]
        for name in ("vanilla, 2 candidates", "only_low after every block, 2 rounds")
    }
    found = ablation_prm.measure(options, settings)
    assert found["best of 4"].forwards.tolist() == [16] * 12
    assert found["greedy"].prm_calls.tolist() == [0] * 12
    assert found["vanilla, 2 candidates"].prm_calls.tolist() == [8] * 12
    for name, each in found.items():
        assert len(each.correct) == 12 and 0 <= each.prm_share < 1, name
    plain = completions(Engine("llada", block_length=4, **ROWS), PROBLEMS[:12])
    assert found["greedy"].correct.tolist() == [
        sudoku.is_valid(problem.puzzle, each.text) for problem, each in zip(PROBLEMS, plain)
    ]


def test_targets_are_judged_by_the_rows_that_keep_the_budget():
    def row(name: str, difference: float, forwards: float) -> dict:
        return {
            "name": name,
            "less_best_of_4": {"difference": difference, "low": 0, "high": 0},
            "mean_forwards": forwards,
        }

    rows = [
        row("only_low a", 0.2, 10.5),
        row("only_low b", 0.12, 9.0),
        row("vanilla, 4 candidates", 0.0, 16.0),
    ]
    assert [(each["row"], each["met"]) for each in ablation_prm.verdicts(rows)] == [
        ("only_low b", True),
        ("vanilla, 4 candidates", False),
    ]
    assert [each["met"] for each in ablation_prm.verdicts(rows[:1])] == [False, False]


def test_the_judges_folder_is_small_and_whole():
    assert sum(path.stat().st_size for path in Path(PRM).iterdir()) < 1_000_000
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
        path.name for path in Path(PRM).iterdir()
    }


def test_methods_that_change_decoding_only_say_so_and_score_as_the_baseline(caplog):
    pairs = [
        (Engine("llada", **ROWS).encode(problem.puzzle), Engine("llada", **ROWS).encode("12"))
        for problem in PROBLEMS[:3]
    ]
    expected = dict(Engine("llada", **ROWS).log_likelihood(pairs))
    assert not caplog.messages
    for method in ("llada_ups", "llada_prm", "llada_ala"):
        engine = Engine(method, **ROWS)
        found = dict(engine.log_likelihood(pairs))
        assert (found == expected) == (method != "llada_ala"), method
        assert f"{method}: likelihoods are {engine.info()['likelihood']}" in caplog.messages


@pytest.mark.slow
def test_stock_opencompass_runs_the_three_methods(tmp_path):
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    config = tmp_path / "small.py"
    config.write_text(
        "from mmengine.config import read_base\nfrom llada_plugins.opencompass_models import "
        "unwrap_prediction\nwith read_base():\n    from .configs.eval_llada_prm import *\n"
        "datasets[0]['reader_cfg']['test_range'] = '[:12]'\nmodels = models[1:]\nfor model in "
        "models:\n    model['record_stats'] = True\n"
        "    model['pred_postprocessor'] = dict(type=unwrap_prediction)\n"
    )
    done = run_opencompass(tmp_path, config, "--debug")
    assert done.returncode == 0, done.stderr[-3000:]
    for method, forwards in (("vanilla", {16}), ("backmask", None), ("window", None)):
        rows = predictions_of(
            tmp_path,
            f"LLaDA-PRM-tiny-gen_length=16-steps=4-block_length=4-method={method}",
            "sudoku4",
        )
        assert len(rows) == 12 and all(row["prediction"]["prm_calls"] >= 2 for row in rows)
        assert forwards is None or {row["prediction"]["nfe"] for row in rows} == forwards
