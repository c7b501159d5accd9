"""Published settings by name: the table, what a run takes from it, and the files made of it."""

from __future__ import annotations

import copy
import fnmatch
import functools
import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from llada_plugins import presets as door
from llada_plugins.engine.asked import Asked
from llada_plugins.engine.engine import Engine
from llada_plugins.sampling import published
from llada_plugins.settings import config_files, table
from llada_plugins.settings.commands import lm_eval_command, opencompass_command
from llada_plugins.settings.table import all_presets, chosen, find
from tests.commands import python

ROOT = Path(__file__).parents[1]
DATA = ROOT / "tests" / "data"
BLOCK8 = "llada-8b-instruct/gsm8k-block8"


@functools.cache
def stored_table() -> dict:
    return yaml.safe_load(table.TABLE.read_text(encoding="utf-8"))


@pytest.fixture
def edited(tmp_path):
    """The table with one edit, as a file."""

    def write(edit) -> Path:
        raw = copy.deepcopy(stored_table())
        edit(raw)
        path = tmp_path / "table.yaml"
        path.write_text(json.dumps(raw), encoding="utf-8")  # which is YAML too
        return path

    return write


def first_preset(raw) -> dict:
    return raw["models"]["llada-1.5"]["presets"]["gsm8k"]


@pytest.mark.parametrize(
    "edit, message",
    [
        (lambda raw: first_preset(raw).update(score=1), r"models\['llada-1.5'\].*\['score'\]"),
        (lambda raw: first_preset(raw)["scores"].update({"llada-toolkit": 838}), "from 0 to 100"),
        (lambda raw: first_preset(raw).update(task="gsm9k"), "llada-1.5/gsm8k 'gsm9k'"),
        (lambda raw: first_preset(raw)["scores"].update(dllm2=3), "source in llada-1.5/gsm8k"),
        (lambda raw: raw["tasks"]["gsm8k"].pop("questions"), "questions is missing"),
    ],
)
def test_what_is_wrong_in_the_table_is_named(edited, edit, message):
    with pytest.raises(ValueError, match=message):
        table.read(edited(edit))


@pytest.mark.parametrize("name", all_presets())
def test_every_preset_is_options_that_an_engine_takes(name):
    preset = find(name)
    asked = Asked("llada", {"preset": name})
    family = "dream" if "dream" in preset.options.get("schedule", "") else "llada"
    assert asked.config.pretrained == preset.pretrained
    assert asked.config.dtype == preset.dtype
    if "estimator" in preset.options:
        assert asked.config.budget().limit == preset.options["mc_num"]
    else:
        assert asked.sampler(family)["gen_length"] == preset.options["gen_length"]
    effective = {**asked.sampler(family), **vars(asked.config)}
    assert {key: effective[key] for key in preset.defaults} == preset.defaults


LLADA21 = {"max_post_steps": 16, "block_length": 32, "gen_length": 16384}


@pytest.mark.parametrize(
    "name, family, published_options",
    [
        (
            "llada2.0-mini/ifeval",
            "llada2",
            {"steps": 32, "block_length": 32, "threshold": 0.95, "gen_length": 2048},
        ),
        (
            "llada2.1-mini/ifeval-quality",
            "llada2",
            {**LLADA21, "threshold": 0.7, "editing_threshold": 0.5},
        ),
        (
            "llada2.1-mini/ifeval-speed",
            "llada2",
            {**LLADA21, "threshold": 0.5, "editing_threshold": 0.0},
        ),
        (
            "sdar-8b-chat/gsm8k",
            "sdar",
            {"gen_length": 4096, "block_length": 4, "denoising_steps": 4},
        ),
        (
            "fast-dllm-v2-7b/gsm8k",
            "fast_dllm_v2",
            {"max_new_tokens": 2048, "block_size": 32, "small_block_size": 8, "threshold": 0.9},
        ),
    ],
)
def test_presets_of_block_causal_models_are_their_published_options(
    name, family, published_options
):
    own = published.native(published_options, family)
    assert find(name).options == {"sampling_method": "block_causal", **own}


def test_presets_are_found_by_parts_of_names_and_by_hub_ids():
    of_task = [preset.name for preset in chosen("GSAI-ML/LLaDA-8B-Instruct", "gsm8k")]
    assert of_task == ["llada-8b-instruct/gsm8k", BLOCK8]
    with pytest.raises(ValueError, match="no preset of model qwen"):
        chosen("qwen")
    with pytest.raises(ValueError, match=f"did you mean '{BLOCK8}'"):
        find("llada-8b-instruct/gsm8k-block_8")


# --- in a run


def test_explicit_options_go_before_those_of_a_preset(tiny_checkpoint):
    engine = Engine(
        preset=BLOCK8, pretrained=str(tiny_checkpoint), dtype="float32", gen_length=16, steps=16
    )
    assert engine.given == {"gen_length": 16, "steps": 16, "block_length": 8}
    assert engine.asked.preset_part(engine.given) == {"block_length": 8}
    assert engine.folder == tiny_checkpoint


def test_another_name_of_an_option_goes_before_a_preset_too():
    name = "dream-v0-base-7b/gsm8k"
    asked = Asked("llada", {"preset": name, "alg": "maskgit_plus", "max_new_tokens": 32})
    sampler = asked.sampler("dream")
    assert (sampler["confidence_source"], sampler["gen_length"]) == ("tps_prob", 32)
    asked = Asked("llada", {"preset": name, "remasking": "random"})
    assert "confidence_source" not in asked.sampler("dream")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"preset": "llada-8b/gsm8k"}, "unknown preset"),
        ({"preset": BLOCK8, "gen_length": 24}, rf"steps=256 from preset {BLOCK8}"),
    ],
)
def test_a_preset_that_is_unknown_or_does_not_fit_is_refused_in_one_line(options, message):
    with pytest.raises(ValueError, match=message) as refusal:
        Engine(**options)
    assert "\n" not in str(refusal.value)


def test_the_harnesses_take_what_no_engine_decides_from_the_preset(tiny_checkpoint, caplog):
    pytest.importorskip("opencompass")
    from llada_plugins.opencompass_models import LLaDA

    given = {"path": str(tiny_checkpoint), "dtype": "float32", "gen_length": 16, "steps": 16}
    entry = {**given, "preset": "llada-8b-base/math-256", "block_length": 16}
    assert LLaDA(**entry).stop_words == ("Problem:",)
    assert LLaDA(**entry, stop_words=[]).stop_words == ()
    assert LLaDA(**given, preset=BLOCK8).template_parser.chat
    assert not LLaDA(**given, preset=BLOCK8, chat=False).template_parser.chat


def test_lm_eval_is_told_which_flag_a_preset_needs(tiny_checkpoint, caplog):
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance

    from llada_plugins.lmeval_models import LLaDA

    given = {"dtype": "float32", "gen_length": 16, "steps": 2, "block_length": 8}
    model = LLaDA(pretrained=str(tiny_checkpoint), preset=BLOCK8, **given)
    model.generate_until([Instance("generate_until", {}, ("a", {"until": []}), 0)], True)
    assert f"preset {BLOCK8} is not this: give --apply_chat_template" in caplog.text
    caplog.clear()
    model.apply_chat_template([{"role": "user", "content": "a"}])
    model.generate_until([Instance("generate_until", {}, ("b", {"until": []}), 0)], True)
    assert "preset" not in caplog.text


# --- what is printed, and what is made


def test_the_door_lists_and_shows(capsys):
    assert door.main(["--model", "llada-1.5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(chosen("llada-1.5"))
    assert lines[0].split()[:3] == ["llada-1.5/gsm8k", "GSM8K", "83.6"]
    assert door.main(["show", BLOCK8]) == 0
    shown = capsys.readouterr().out
    assert lm_eval_command(find(BLOCK8)) in shown
    assert opencompass_command(find(BLOCK8)) in shown
    for words in (["show"], ["show", "llada"], ["--task", "chess"]):
        with pytest.raises(SystemExit, match="^error: "):
            door.main(words)


def test_configs_are_what_the_table_says(tmp_path):
    assert door.main(["write", str(tmp_path)]) == 0
    for place, text in config_files.files().items():
        told = f"{place}: run python -m llada_plugins.presets write configs"
        assert (tmp_path / place).read_text(encoding="utf-8") == text
        assert (ROOT / "configs" / place).read_text(encoding="utf-8") == text, told
    made = {Path(place).name for place in config_files.files() if "lmeval" in place}
    assert made == {path.name for path in (ROOT / "configs" / "lmeval_published").iterdir()}


def test_presets_of_one_config_differ_in_the_task_alone():
    for name, group in config_files._by_config(all_presets().values()).items():
        kinds = {(str(each.defaults), each.shots, each.chat, str(each.until)) for each in group}
        assert len(kinds) == 1, name


def test_data_set_configs_of_opencompass_exist_and_hold_what_the_table_names():
    opencompass = pytest.importorskip("opencompass")
    folder = Path(opencompass.__file__).parent / "configs" / "datasets"
    for name, preset in all_presets().items():
        task = preset.task.opencompass
        if task:
            source = (folder / f"{task.config}.py").read_text(encoding="utf-8")
            assert re.search(rf"^{task.variable} = ", source, re.MULTILINE), name


@pytest.mark.slow  # reads every task of lm-eval
def test_tasks_of_lm_eval_exist():
    pytest.importorskip("lm_eval")
    from lm_eval.tasks import TaskManager

    known = set(TaskManager().all_tasks)
    tasks = {preset.task.lm_eval.task for preset in all_presets().values() if preset.task.lm_eval}
    assert tasks <= known


@pytest.mark.slow  # reads data set configs of OpenCompass
def test_data_sets_of_opencompass_have_the_names_that_the_table_says():
    config = pytest.importorskip("mmengine.config").Config
    datasets = config.fromfile(ROOT / "configs/opencompass/datasets/published.py").datasets_of
    for preset in all_presets().values():
        if preset.task.opencompass:
            found = [each["abbr"] for each in datasets[preset.task_name]]
            assert found == fnmatch.filter(found, preset.task.opencompass.data)


# --- the printed commands, run


@pytest.fixture(scope="module")
def roomy_checkpoint(make_checkpoint) -> Path:
    """A random model whose context holds examples and an answer of published length."""
    return make_checkpoint(max_sequence_length=1024)


def local_gsm8k(folder: Path) -> Path:
    """lm-eval's own gsm8k with the rows of files here in place of the hub's."""
    import lm_eval.tasks

    stock = Path(lm_eval.tasks.__file__).parent / "gsm8k" / "gsm8k.yaml"
    rows = {
        "include": str(stock),
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {
            "data_files": {
                "train": str(DATA / "gsm8k/train.jsonl"),
                "test": str(DATA / "gsm8k/test.jsonl"),
            }
        },
    }
    (folder / "gsm8k.yaml").write_text(yaml.safe_dump(rows), encoding="utf-8")
    return folder


@pytest.mark.slow
def test_the_command_for_lm_eval_runs(tmp_path, roomy_checkpoint):
    words = shlex.split(lm_eval_command(find(BLOCK8)))
    assert words.pop(0) == "lm_eval"
    place = words.index("--model_args") + 1
    words[place] += f",pretrained={roomy_checkpoint}"
    include = ["--include_path", str(local_gsm8k(tmp_path)), "--limit", "2", "--device", "cpu"]
    done = python("-m", "lm_eval", *words, *include, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    (found,) = tmp_path.rglob("results_*.json")
    results = json.loads(found.read_text(encoding="utf-8"))
    sampler = results["config"]["sampler"]
    assert {name: sampler[name] for name in find(BLOCK8).options} == find(BLOCK8).options
    assert results["chat_template_sha"]


@pytest.mark.slow
def test_the_command_for_opencompass_runs(tmp_path, roomy_checkpoint):
    command = opencompass_command(find(BLOCK8))
    setting, program, config = command.replace('"', "").split(" ", 2)
    assert program == "opencompass"
    config = config.replace("$(python -m llada_plugins.configs)", str(ROOT / "configs"))
    done = python(
        *("-m", "opencompass.cli.main", config, "--debug", "-w", "out"),
        cwd=tmp_path,
        **dict([setting.split("=", 1)]),
        LLADA_LIMIT="2",
        LLADA_GPUS="0",
        LLADA_PRETRAINED=str(roomy_checkpoint),
        COMPASS_DATA_CACHE=str(DATA.parent),
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (found,) = tmp_path.glob("out/*/predictions/*/gsm8k-first2.json")
    assert len(json.loads(found.read_text(encoding="utf-8"))) == 2
    assert found.parent.name.endswith("gsm8k-block8")
