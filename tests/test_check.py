"""llada_plugins.check: every wrong setting of a run is named, and the status is honest."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path

import pytest

from llada_plugins import check as door
from llada_plugins.engine.engine import Engine
from llada_plugins.engine.interval import wilson
from llada_plugins.harness.lmeval_record import Samplers
from llada_plugins.provenance.drift import compare, described, differences
from llada_plugins.provenance.finding_runs import runs_in
from llada_plugins.provenance.manifest import Recorder, plain
from llada_plugins.provenance.origins import option_origins
from llada_plugins.settings.table import all_presets, find

GSM8K = "llada-8b-base/gsm8k-256"  # published with lm-eval: 70.0, 4 shots
CHOICES = "llada-8b-base/arc-challenge-cfg"


@pytest.fixture(scope="module")
def named_checkpoint(tmp_path_factory, tiny_checkpoint) -> Path:
    """A random model under the name of a published one."""
    folder = tmp_path_factory.mktemp("models") / "LLaDA-8B-Base"
    return Path(shutil.copytree(tiny_checkpoint, folder))


@pytest.fixture
def results_file(named_checkpoint, tmp_path):
    """A results file of lm-eval whose `config` is written by the code that writes real ones."""

    def write(
        task: str = "gsm8k",
        *,
        score: float = 0.70,
        questions: int = 1319,
        shots: int = 4,
        template: str | None = None,
        metric: str = "exact_match,flexible-extract",
        request: dict | None = None,
        **options,
    ) -> Path:
        engine = Engine(pretrained=str(named_checkpoint), **options)
        samplers = Samplers()
        if request is not None:
            samplers.note(task, [engine.sampler_for(request)])
        manifest = Recorder(engine).manifest("lm-eval", option_origins(engine, {}), {})
        config = {**engine.info(), **samplers.info(), "manifest": manifest}
        raw = {
            "results": {task: {"alias": task, metric: score}},
            "config": plain(config),
            "n-shot": {task: shots},
            "n-samples": {task: {"original": questions, "effective": questions}},
            "lm_eval_version": "0.4.13",
            "chat_template": template,
            "chat_template_sha": template and "a" * 64,
        }
        path = tmp_path / "results_1.json"
        path.write_text(json.dumps(raw), encoding="utf-8")
        return path

    return write


def right() -> dict:
    """What lm-eval is told by the preset."""
    return {"preset": GSM8K, "request": {}}


def test_a_run_as_published_agrees_within_its_interval(results_file, capsys):
    assert door.main([str(results_file(**right()))]) == 0
    told = capsys.readouterr().out
    low, high = wilson(0.70, 1319)
    assert f"interval     {100 * low:.2f} to {100 * high:.2f} (95 %, 1319 questions)" in told
    assert "published    70" in told and "difference   +0.00" in told
    assert "version      lm_eval 0.4.13, published with 0.4.8" in told
    assert "setting" not in told and "verdict      agrees" in told


def test_a_score_beyond_the_interval_differs(results_file, capsys):
    assert door.main([str(results_file(**right(), score=0.66))]) == 1
    assert "verdict      differs beyond the interval" in capsys.readouterr().out


WRONG = {
    "shots": ({"shots": 5}, "shots: 5, published 4"),
    "questions": ({"questions": 100}, "questions: 100, published 1319"),
    "template": ({"template": "{{ messages }}"}, "chat template: True, published False"),
    "length": ({"gen_length": 128, "block_length": 128, "steps": 128}, "length: 128, published"),
    "block": ({"block_length": 32}, "block: 32, published 256"),
    "steps": ({"steps": 128}, "steps: 128, published 256"),
    "gating": (
        {"confidence_eos_eot_inf": True},
        "gating (confidence_eos_eot_inf): True, published False",
    ),
    "temperature": ({"request": {"temperature": 0.5}}, "temperature: 0.5, published 0.0"),
    "confidence": ({"confidence_source": "random"}, "confidence: random, published tps_prob"),
    "dtype": ({"dtype": "float32"}, "dtype: float32, published bfloat16"),
    "cache": ({"cache": "prefix"}, "cache: prefix, published exact or none"),
}


@pytest.mark.parametrize("name", WRONG)
def test_one_wrong_setting_is_named_and_nothing_else(results_file, capsys, name):
    change, line = WRONG[name]
    assert door.main([str(results_file(**right() | change))]) == 3
    told = capsys.readouterr().out
    settings = [each for each in told.splitlines() if each.startswith("  setting")]
    assert line in settings[0]
    assert len(settings) == (3 if name == "length" else 1)  # block and steps go with the length
    assert "verdict      not comparable because of: " + line.partition(":")[0] in told


def test_another_template_of_a_chat_is_named_by_its_hash(results_file):
    (run, _), *_ = runs_in(results_file(**right(), template="{{ other }}"))
    lines = differences(run, find("llada-8b-instruct/gsm8k-block8"))
    assert any(line.startswith(f"template hash: {'a' * 64}, published b48c47") for line in lines)


def test_the_settings_of_a_likelihood_are_named(results_file):
    arguments = dict(task="arc_challenge", shots=0, questions=1172, metric="acc_norm,none")
    path = results_file(**arguments, score=0.479, preset=CHOICES)
    ((run, presets),) = runs_in(path)
    assert compare(run, presets).verdict == "agrees"
    path = results_file(
        **arguments, preset=CHOICES, mc_num=64, cfg_scale=0.0, estimator="count", mc_batch="none"
    )
    ((run, presets),) = runs_in(path)
    names = [line.partition(":")[0] for line in compare(run, presets).differences]
    assert names == ["estimator", "mc_num", "mc_batch", "cfg_scale"]


def test_a_run_without_preset_is_held_against_the_nearest(results_file, capsys):
    options = {"gen_length": 512, "steps": 512, "block_length": 512, "dtype": "bfloat16"}
    assert door.main([str(results_file(**options, request={}, score=0.71))]) == 0
    assert "preset llada-8b-base/gsm8k-512 (nearest: " in capsys.readouterr().out


def test_a_score_of_another_harness_is_not_compared(results_file, capsys):
    path = results_file(preset="llada-8b-instruct/gsm8k-block8", request={})
    assert door.main([str(path)]) == 3
    told = capsys.readouterr().out
    assert "harness: lm_eval, published of another" in told
    assert "checkpoint: " in told  # the folder's name is another model's


def test_what_cannot_be_read_is_status_2(results_file, tmp_path, capsys):
    path = results_file(**right())
    path.write_text(path.read_text().replace('"gsm8k"', '"chess"'))
    (tmp_path / "empty").mkdir()
    for place, message in (
        (tmp_path / "absent", "no such file"),
        (tmp_path / "empty", "holds neither"),
        (path, "nothing is published"),
    ):
        assert door.main([str(place)]) == 2
        assert message in capsys.readouterr().err


def test_wilsons_interval_holds_the_shares_that_a_score_test_does_not_refuse():
    number = 50
    for right_answers in range(number + 1):
        low, high = wilson(right_answers / number, number)
        for bound in (low, high):
            if 0 < bound < 1:  # where the test's statistic is exactly its limit
                error = math.sqrt(bound * (1 - bound) / number)
                z = abs(right_answers / number - bound) / error
                assert round(z, 6) == 1.959964
        assert 0 <= low <= right_answers / number <= high <= 1


def test_every_preset_agrees_with_itself():
    for preset in all_presets().values():
        own = {"gen_length": 256, **preset.options}
        lines = differences(_bare_run(preset, own), preset)
        assert lines == [], preset.name


def _bare_run(preset, options):
    from llada_plugins.provenance.runs import Run

    return Run(harness="lm_eval", task="", model=preset.pretrained, preset=None, options=options)


# --- OpenCompass


@pytest.fixture
def work_dir(tmp_path, named_checkpoint):
    """A run of OpenCompass of GSM8K's first four rows; parts of it are left out by tests."""
    pytest.importorskip("opencompass")
    run = tmp_path / "out" / "20260101_000000"
    (run / "configs").mkdir(parents=True)
    (run / "configs" / "a.py").write_text(
        "from mmengine.config import read_base\n"
        "with read_base():\n"
        "    from opencompass.configs.datasets.gsm8k.gsm8k_gen_1d7fe4 import gsm8k_datasets\n"
        "from llada_plugins.opencompass_models import LLaDA\n"
        "datasets = gsm8k_datasets\n"
        "datasets[0]['reader_cfg']['test_range'] = '[:4]'\n"
        f"models = [dict(type=LLaDA, abbr='base', path={str(named_checkpoint)!r}, "
        f"preset={GSM8K!r}, batch_size=8, run_cfg=dict(num_gpus=0))]\n"
    )
    engine = Engine(pretrained=str(named_checkpoint), preset=GSM8K)
    found = Recorder(engine).manifest("OpenCompass", option_origins(engine, {}), {"entry": {}})
    write(run / "manifests" / "base.json", found)
    rows = {str(n): {"origin_prompt": f"q{n}", "prediction": "a", "gold": "a"} for n in range(4)}
    write(run / "predictions" / "base" / "gsm8k.json", rows)
    write(run / "results" / "base" / "gsm8k.json", {"accuracy": 71.9})
    return run


def write(path: Path, value: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def told(run: Path) -> str:
    ((found, presets),) = runs_in(run.parent)
    return "\n".join(described(compare(found, presets)))


def test_a_run_of_opencompass_is_compared_too(work_dir):
    lines = told(work_dir)
    assert "ours         71.90 (accuracy)" in lines
    assert "published    71.9  ML-GSAI/LLaDA EVAL.md" in lines
    assert "problem" not in lines
    assert "setting      questions: 4, published 1319" in lines


def test_tasks_that_failed_are_told_whatever_opencompass_exits_with(work_dir, capsys):
    shutil.rmtree(work_dir / "predictions")
    shutil.rmtree(work_dir / "results")
    assert "gsm8k: no predictions, its task failed: see" in told(work_dir)
    assert door.main([str(work_dir)]) == 3


@pytest.mark.parametrize("trap", ["failed", "no score", "rows", "options", "none"])
def test_a_data_set_of_which_nothing_is_published_is_told_where_something_is_wrong(
    work_dir, capsys, trap
):
    config = work_dir / "configs" / "a.py"
    config.write_text(config.read_text() + "datasets[0]['abbr'] = 'chess'\n")
    line = spoil(work_dir, trap)
    status = door.main([str(work_dir)])
    told = capsys.readouterr()
    if line is None:
        assert (status, "nothing is published" in told.err) == (2, True)
    else:
        assert status == 3 and "base chess: nothing is published of it" in told.out
        [problem] = [each for each in told.out.splitlines() if each.startswith("  problem")]
        assert line in problem


def spoil(work_dir: Path, trap: str) -> str | None:
    """Make the run of chess as a trap leaves it; what is to be told of it."""
    if trap == "failed":
        return "chess: no predictions, its task failed: see"
    rows = {str(n): {"origin_prompt": f"q{n}", "prediction": "a"} for n in range(4)}
    if trap == "rows":
        rows.popitem()
    write(work_dir / "predictions" / "base" / "chess.json", rows)
    if trap == "no score":
        return "chess: no score: see"
    write(work_dir / "results" / "base" / "chess.json", {"won": 25.0})
    if trap == "rows":
        return "3 of 4 rows have answers"
    if trap == "options":
        path = work_dir / "manifests" / "base.json"
        found = json.loads(path.read_text())
        found["asked"]["steps"] = 8
        write(path, found)
        return "made with other options than its newest config has: steps: 8 then"
    return None


def test_an_evaluation_that_failed_is_told(work_dir):
    shutil.rmtree(work_dir / "results")
    assert "gsm8k: no score: see" in told(work_dir)


@pytest.mark.parametrize(
    "torn", ["predictions/base/gsm8k.json", "results/base/gsm8k.json", "manifests/base.json"]
)
def test_a_torn_file_is_named_and_all_else_is_told(work_dir, capsys, torn):
    config, abbr = work_dir / "configs" / "a.py", "chess"
    config.write_text(
        config.read_text() + f"datasets = [*datasets, {{**datasets[0], 'abbr': {abbr!r}}}]\n"
    )
    path = work_dir / torn
    path.write_text(path.read_text()[:-1])
    assert door.main([str(work_dir)]) == 3
    told = capsys.readouterr().out
    lines = [each for each in told.splitlines() if f"{path} cannot be read: not JSON" in each]
    assert lines and all(each.startswith("  problem") for each in lines)
    assert "published    71.9" in told and "chess: no predictions, its task failed: see" in told


@pytest.mark.parametrize("content", ["[]", '{"0": 1}'])
def test_predictions_that_are_none_are_named(work_dir, content):
    path = work_dir / "predictions" / "base" / "gsm8k.json"
    path.write_text(content)
    assert f"{path} cannot be read: it holds no predictions by number" in told(work_dir)


def test_a_preset_that_is_unknown_is_told_in_one_line(work_dir, capsys):
    config = work_dir / "configs" / "a.py"
    text = config.read_text().replace(GSM8K, "llada-8b-base/chess")
    config.write_text(re.sub("path='[^']*', ", "", text))
    assert door.main([str(work_dir)]) == 2
    assert "llada-8b-base/chess" in capsys.readouterr().err


def test_rows_that_a_remembered_size_left_out_are_told(work_dir):
    rows = {str(n): {"origin_prompt": f"q{n}", "prediction": "a"} for n in range(2)}
    write(work_dir / "predictions" / "base" / "gsm8k.json", rows)
    assert "2 of 4 rows have answers: .cache/dataset_size.json" in told(work_dir)


def test_parts_that_lie_beside_other_rows_are_told(work_dir):
    rows = {str(n): {"origin_prompt": f"q{n % 3}", "prediction": "a"} for n in range(4)}
    write(work_dir / "predictions" / "base" / "gsm8k.json", rows)
    assert "1 prompts have several answers" in told(work_dir)


def test_unfinished_parts_and_answers_of_other_options_are_told(work_dir):
    (work_dir / "predictions/base/tmp_gsm8k_1.jsonl").write_text("")
    path = work_dir / "manifests" / "base.json"
    found = json.loads(path.read_text())
    found["asked"]["steps"] = 8
    write(path, found)
    lines = told(work_dir)
    assert "answers are unfinished" in lines
    assert "made with other options than its newest config has: steps: 8 then, nothing now" in lines


def test_answers_to_questions_that_were_asked_otherwise_are_told(work_dir):
    from mmengine.config import Config

    from llada_plugins.provenance.opencompass_asked import asked_of

    config, path = work_dir / "configs" / "a.py", work_dir / "manifests" / "base.json"
    [dataset] = Config.fromfile(config)["datasets"]
    part = {"data": "gsm8k", "rows": "[:4]", "asked": asked_of(dataset, {})}
    write(path, {**json.loads(path.read_text()), "parts": {"gsm8k": part}})
    assert "problem" not in told(work_dir)
    inferencer = "datasets[0]['infer_cfg']['inferencer']['max_out_len']"
    config.write_text(config.read_text() + f"{inferencer} = 64\n")
    changed = "infer_cfg.inferencer.max_out_len: 512 then, 64 now"
    assert f"gsm8k was asked otherwise than the newest config says: {changed}" in told(work_dir)


def test_other_shots_and_prompts_are_named(work_dir):
    config = work_dir / "configs" / "a.py"
    text = config.read_text().replace("gsm8k_gen_1d7fe4", "gsm8k_0shot_v2_gen_a58960")
    config.write_text(text)
    lines = told(work_dir)
    assert "shots: 0, published 4" in lines
    assert "prompts: version " in lines


def settings(run: Path) -> set[str]:
    """The lines that name settings of a run which differ."""
    lines = told(run).splitlines()
    return {line for line in lines if line.startswith("  setting")}


OPTIONS = [name for name in WRONG if name not in ("shots", "questions", "template")]


@pytest.mark.parametrize("name", OPTIONS)
def test_one_wrong_option_of_opencompass_is_named_and_nothing_else(
    work_dir, named_checkpoint, name
):
    right = settings(work_dir)  # the four questions, and the shots of that data set config
    change, line = WRONG[name]
    options = change.get("request", change)
    added = "".join(f"{key}={value!r}, " for key, value in options.items())
    config = work_dir / "configs" / "a.py"
    config.write_text(config.read_text().replace("batch_size=8, ", f"batch_size=8, {added}"))
    engine = Engine(pretrained=str(named_checkpoint), preset=GSM8K, **options)
    found = Recorder(engine).manifest("OpenCompass", option_origins(engine, {}), {"entry": {}})
    write(work_dir / "manifests" / "base.json", found)
    new = settings(work_dir) - right
    assert any(line in each for each in new) and right < settings(work_dir)
    assert len(new) == (3 if name == "length" else 1)  # block and steps go with the length
    assert door.main([str(work_dir)]) == 3


def test_a_chat_of_opencompass_where_none_is_published_is_named(work_dir):
    right = settings(work_dir)
    config = work_dir / "configs" / "a.py"
    config.write_text(config.read_text().replace("batch_size=8, ", "batch_size=8, chat=True, "))
    [new] = settings(work_dir) - right
    assert "chat template: True, published False" in new
