"""OpenCompass: one manifest of a model's processes, and what it refuses to go on with."""

from __future__ import annotations

import functools
import json
import operator
from pathlib import Path

import pytest

pytest.importorskip("opencompass")

from mmengine.config import ConfigDict
from opencompass.partitioners import NumWorkerPartitioner
from opencompass.tasks.openicl_infer import OpenICLInferTask

from llada_plugins.opencompass_models import LLaDA
from llada_plugins.provenance.rerun import predictions
from tests.commands import python
from tests.faults.runs import CONFIG
from tests.test_opencompass_repeats import elsewhere, entry  # noqa: F401  # a fixture

OPTIONS = dict(gen_length=8, steps=2)


@pytest.fixture
def ask(tiny_checkpoint, tmp_path):
    """Runs stock inference tasks of one model in one folder; returns that folder."""

    def run(
        num_split: int = 1,
        *,
        abbr: str = "tiny",
        only: int | None = None,
        data: dict | None = None,
        **options,
    ) -> Path:
        model = ConfigDict(
            type=LLaDA, abbr=abbr, path=str(tiny_checkpoint), batch_size=2, **OPTIONS | options
        )
        asked = entry()
        for name, value in (data or {}).items():
            *places, last = name.split(".")
            functools.reduce(operator.getitem, places, asked)[last] = value
        folder = tmp_path / "run"
        cut = NumWorkerPartitioner(
            str(folder / "predictions"),
            num_split=num_split,
            min_task_size=1,
            dataset_size_path=str(tmp_path / "sizes.json"),
        )
        parts = dict(models=[model], datasets=[asked])
        tasks = cut.partition([parts], str(folder), str(folder / "predictions"))
        for task in tasks[:only]:
            OpenICLInferTask(task).run()
        return folder

    return run


def manifest(folder: Path, abbr: str = "tiny") -> dict:
    return json.loads((folder / "manifests" / f"{abbr}.json").read_text())


def test_parts_of_a_data_set_stand_in_one_manifest_with_their_rows_and_costs(ask):
    found = manifest(ask(2))
    assert {name: part["rows"] for name, part in found["parts"].items()} == {
        "rows_0": "[0:3]",
        "rows_1": "[3:6]",
    }
    assert [part["decoding"]["answers"] for part in found["parts"].values()] == [3, 2]
    assert found["options"]["steps"] == {"value": 2, "from": "config file"}
    assert found["run"]["entry"]["chat"] is False
    (answers,) = predictions(Path(ask(2)), "tiny").values()
    assert len(answers) == 5


def test_a_model_that_writes_no_manifest_reads_no_weights_for_one(tiny_checkpoint, monkeypatch):
    read = []
    monkeypatch.setattr("llada_plugins.provenance.manifest.state", lambda *of: read.append(of))
    LLaDA(path=str(tiny_checkpoint), **OPTIONS)  # in no task
    assert not read


@pytest.mark.parametrize("change", [{"steps": 4}, {"stop_words": ["a"]}, {"seed": 1}])
def test_answers_of_other_options_are_never_gone_on_with(ask, change):
    folder = ask(2, only=1)
    (name,) = change
    with pytest.raises(ValueError, match=f"(options|entry).{name}: .*another abbr") as refusal:
        ask(2, **change)
    assert "\n" not in str(refusal.value)
    assert len(list((folder / "predictions/tiny").glob("*.json"))) == 1
    ask(2)  # as it began
    assert set(manifest(folder)["parts"]) == {"rows_0", "rows_1"}


@pytest.mark.parametrize(
    "change",
    [
        {"infer_cfg.prompt_template.template": "Q: {question}"},
        {"infer_cfg.inferencer.max_out_len": 4},
        {"infer_cfg.inferencer.stopping_criteria": ["a"]},
        {"marked": True},  # an option of the data set's own
    ],
    ids=lambda change: next(iter(change)),
)
def test_answers_to_questions_asked_otherwise_are_never_gone_on_with(ask, change):
    (name,) = change
    ask(2, only=1)
    with pytest.raises(ValueError, match=rf"rows.*{name}(\.0)?: .*another abbr") as refusal:
        ask(2, data=change)
    assert "\n" not in str(refusal.value)
    ask(2)  # as it began


@pytest.mark.parametrize("name", ["versions.torch", "code"])
def test_answers_of_another_version_are_never_gone_on_with(ask, name):
    folder = ask(2, only=1)
    path = folder / "manifests" / "tiny.json"
    whole = path.read_text()
    found = json.loads(whole)
    *places, last = name.split(".")
    functools.reduce(operator.getitem, places, found["state"])[last] = "1.0"
    path.write_text(json.dumps(found))
    with pytest.raises(ValueError, match=f"version.*{name}: 1.0 then.*another abbr") as refusal:
        ask(2)
    assert "\n" not in str(refusal.value)
    found = json.loads(whole)
    found["state"]["versions"]["datasets"] = "1.0"  # decides no answer
    path.write_text(json.dumps(found))
    ask(2)


def test_an_entrys_max_out_len_counts_where_the_data_set_has_none(ask):
    none = {"infer_cfg.inferencer.max_out_len": None}
    ask(2, only=1, max_out_len=8, data=none)
    with pytest.raises(ValueError, match="max_out_len: 8 then, 6 now"):
        ask(2, max_out_len=6, data=none)
    ask(2, max_out_len=6)  # the data set has its own, which is 8


def test_what_changes_no_answer_may_change_when_a_run_is_resumed(ask):
    ask(2, only=1)
    ask(2, batch_tokens=64, data={"infer_cfg.inferencer.batch_size": 3, "eval_cfg.seed": 1})


def test_a_run_that_is_cut_otherwise_is_not_resumed(ask):
    ask(2, only=1)
    with pytest.raises(ValueError, match=r"rows_0 was rows \[0:3\] when this run began"):
        ask(3)


def test_a_model_outside_of_a_task_leaves_nothing(tiny_checkpoint, tmp_path):
    model = LLaDA(str(tiny_checkpoint), **OPTIONS)
    assert len(model.generate(["ab"], 8)) == 1
    assert not list(tmp_path.rglob("manifests"))


@pytest.mark.slow
def test_a_run_of_opencompass_is_repeated_to_equality_and_a_change_is_seen(tmp_path):
    config = tmp_path / "run.py"
    options = dict(kind="LLaDA", number=4, batch=4, options=dict(steps=8), rows="''")
    config.write_text(CONFIG.format(**options, partitioner="dict(type=NaivePartitioner)"))
    words = (str(config), "-w", str(tmp_path / "first"), "--debug")
    done = python("-m", "opencompass.cli.main", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    (path,) = (tmp_path / "first").glob("*/manifests/tiny.json")
    rerun = ("-m", "llada_plugins.rerun", str(path), "--output")
    again = python(*rerun, str(tmp_path / "second"), cwd=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr[-3000:]
    assert "sudoku4: 4 answers equal" in again.stdout
    assert "sudoku4: accuracy" in again.stdout and "NOT equal" not in again.stdout
    answers = path.parents[1] / "predictions" / "tiny" / "sudoku4.json"
    rows = json.loads(answers.read_text())
    rows["2"]["prediction"] = "1" * 16  # as if another model had made it
    answers.write_text(json.dumps(rows))
    again = python(*rerun, str(tmp_path / "third"), cwd=tmp_path)
    assert again.returncode == 3, again.stderr[-3000:]
    assert "sudoku4: 1 of 4 answers differ" in again.stdout and "NOT equal" in again.stdout


@pytest.mark.parametrize(
    ("models", "datasets", "told"),
    [
        (
            [dict(abbr="tiny", steps=2), dict(abbr="tiny", steps=4)],
            [],
            "two entries of models are called tiny and differ in steps: .* an abbr of its own",
        ),
        (
            [dict(abbr="tiny")],
            [dict(abbr="ab", path="1"), dict(abbr="ab", path="2", n=3)],
            "two entries of datasets are called ab and differ in path, n: ",
        ),
        ([dict(abbr="tiny", steps=2)] * 2, [dict(abbr="ab")] * 2, None),  # by two read_base
    ],
    ids=["models", "datasets", "equal"],
)
def test_entries_of_one_name_are_refused(ask, tmp_path, models, datasets, told):
    """OpenCompass keeps their answers in one file, and says nothing."""
    (tmp_path / "run" / "configs").mkdir(parents=True)
    dumped = tmp_path / "run" / "configs" / "20260101_000000_1.py"
    dumped.write_text(f"{models=}\n{datasets=}\n")
    if told is None:
        ask()
        return
    with pytest.raises(ValueError, match=told):
        ask()
    assert not (tmp_path / "run" / "predictions").exists()
