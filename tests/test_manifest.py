"""The manifest beside results: what it holds, what it refuses, and making a run again."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch

from llada_plugins import rerun as door
from llada_plugins.engine.asked import Asked
from llada_plugins.engine.engine import Engine
from llada_plugins.files import digests
from llada_plugins.files.digests import file_digest, text_digest, weights_digest
from llada_plugins.files.tensors import save_tensors
from llada_plugins.models.folder import TINY
from llada_plugins.provenance.manifest import Recorder, read_manifest, write_manifest
from llada_plugins.provenance.origins import names_after, option_origins
from llada_plugins.provenance.rerun import changed, lm_eval_command
from llada_plugins.provenance.state import differences, state
from tests.commands import python

ROOT = Path(__file__).parents[1]
SUDOKU4 = ["--tasks", "sudoku4", "--include_path", str(ROOT / "configs/lmeval"), "--limit", "4"]


@pytest.fixture
def checkpoint(tiny_checkpoint, tmp_path) -> Path:
    """A copy of a checkpoint, to be changed."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))


def manifest_of(checkpoint: Path, path: Path, **options) -> dict:
    """A manifest as a harness writes it."""
    engine = Engine(pretrained=str(checkpoint), **options)
    found = Recorder(engine).manifest("lm-eval", option_origins(engine, {}), {"tasks": []})
    write_manifest(path, {**found, "command": ["lm_eval"], "results": {}, "answers": {}})
    return read_manifest(path)


# --- digests


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(64, 64, generator=generator) for name in "abc"}


def test_a_digest_of_weights_does_not_depend_on_their_shards(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    state = tensors()
    save_tensors(state, one / "model.safetensors")
    save_tensors({"b": state["b"]}, two / "1.safetensors")
    save_tensors({"c": state["c"], "a": state["a"]}, two / "2.safetensors")
    assert weights_digest(one) == weights_digest(two)
    assert weights_digest(one)[:2] == (3, 3 * 64 * 64 * 4)


@pytest.mark.parametrize("place", [0, 63, 31])  # the rows in which samples are
def test_a_changed_value_changes_the_sampled_digest_alone(tmp_path, place):
    state = tensors()
    save_tensors(state, tmp_path / "model.safetensors")
    before = weights_digest(tmp_path)
    state["b"][place, 60] += 1
    save_tensors(state, tmp_path / "model.safetensors")
    after = weights_digest(tmp_path)
    assert after.headers == before.headers and after.sampled != before.sampled


def test_a_full_digest_sees_every_byte_and_is_remembered_by_path_size_and_time(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    state, path = tensors(), tmp_path / "model.safetensors"
    save_tensors(state, path)
    before, status = weights_digest(tmp_path, full=True), path.stat()
    state["b"][10, 0] += 1  # between the samples
    save_tensors(state, path)
    after = weights_digest(tmp_path, full=True)
    assert after.sampled == before.sampled and after.full != before.full
    memory = digests._memory()
    assert len(json.loads(memory.read_text())) == 2
    known = file_digest(path)
    path.write_bytes(bytes(path.stat().st_size))
    os.utime(path, ns=(status.st_atime_ns, path.stat().st_mtime_ns + 1))
    assert file_digest(path) != known
    memory.write_text("{torn")
    assert file_digest(path) == file_digest(path)


def test_files_that_are_no_safetensors_are_named(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 20)
    with pytest.raises(ValueError, match="model.safetensors is not a readable safetensors"):
        weights_digest(tmp_path)
    assert text_digest([tmp_path / "absent.json"]) is None


# --- what a manifest holds


def test_every_option_says_where_its_value_comes_from(tiny_checkpoint):
    options = {"preset": "llada-8b-instruct/gsm8k", "gen_length": 16, "steps": 8}
    engine = Engine(pretrained=str(tiny_checkpoint), block_length=16, dtype="float32", **options)
    found = option_origins(engine, {"steps": "command line"})
    origins = {name: each["from"] for name, each in found.items()}
    assert origins["steps"] == "command line"
    assert origins["gen_length"] == origins["dtype"] == "given"
    assert origins["confidence_eos_eot_inf"] == "preset llada-8b-instruct/gsm8k"
    assert origins["temperature"] == "default"
    assert found["steps"]["value"] == 8


@pytest.mark.parametrize(
    "words, names",
    [
        (["--model_args", "steps=8,alg=entropy", "--tasks", "a=b"], {"steps", "alg"}),
        (["-a", "steps=8", "top_p=0.5", "--x"], {"steps", "top_p"}),
        (["--model_args=steps=8"], {"steps"}),
        (["--model_args", '{"steps": 8, "alg": "entropy"}'], {"steps", "alg"}),
        (["--tasks", "steps=8"], set()),
    ],
)
def test_options_on_a_command_line_are_told_from_others(words, names):
    assert names_after(["lm_eval", *words], "--model_args", "-a") == names


@pytest.mark.slow  # lm-eval asks the machine what it is
def test_a_run_of_lm_eval_leaves_one_manifest_without_secrets(tmp_path, monkeypatch):
    pytest.importorskip("lm_eval")
    from lm_eval import simple_evaluate
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.tasks import TaskManager

    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    words = ["--model_args", "steps=8", "--hf_hub_log_args", "token=hf_other", "--limit", "2"]
    monkeypatch.setattr(sys, "argv", ["/usr/bin/lm_eval", *words])
    for _ in range(2):  # again: still one
        tracker = EvaluationTracker(output_path=str(tmp_path))
        results = simple_evaluate(
            model="llada",
            model_args={"steps": 8},
            gen_kwargs={"seed": 3},
            tasks=["sudoku4"],
            limit=2,
            device="cpu",
            task_manager=TaskManager(
                include_path=str(ROOT / "configs/lmeval"), include_defaults=False
            ),
            bootstrap_iters=0,
            evaluation_tracker=tracker,
        )
    (path,) = tmp_path.rglob("manifest_*.json")
    found, text = read_manifest(path), path.read_text()
    assert found == results["config"]["manifest"]
    assert found["command"] == ["lm_eval", "--model_args", "steps=8", "--limit", "2"]
    assert found["options"]["steps"] == {"value": 8, "from": "command line"}
    assert found["options_of_requests"]["sudoku4"]["seed"] == {"value": 3, "from": "task"}
    assert found["decoding"]["sudoku4"]["tokens_per_forward"] == 2.0
    assert "acc,none" in found["results"]["sudoku4"] and found["answers"]["sudoku4"]
    assert found["run"]["seeds"]["fewshot_random_seed"] == 1234
    assert found["state"]["versions"]["torch"] == torch.__version__
    assert "secret" not in text and "hf_other" not in text
    assert not any(value in text for value in (os.environ["PATH"], os.uname().nodename))


def test_a_manifest_may_be_left_out(tiny_checkpoint):
    from llada_plugins.harness.lmeval_manifest import manifest

    assert manifest(Recorder(Engine(pretrained=str(tiny_checkpoint), manifest="off")), {}) == {}


def test_a_hub_id_is_asked_for_once(tiny_checkpoint, monkeypatch):
    asked = []

    def deliver(name, **options):
        asked.append(name)
        return str(tiny_checkpoint)

    monkeypatch.setattr("huggingface_hub.snapshot_download", deliver)
    recorder = Recorder(Engine(pretrained="owner/name"))
    assert asked == ["owner/name"] and recorder.state["weights"]


PRM_FOLDER = TINY / "prm"


def test_a_reward_model_by_its_hub_id_is_known_by_its_files_and_asked_for_once(
    tmp_path, monkeypatch
):
    folder, asked = Path(shutil.copytree(PRM_FOLDER, tmp_path / "snapshot")), []

    def deliver(name, **options):
        asked.append(name)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", deliver)

    def made() -> Engine:
        return Engine("llada_prm", prm="owner/prm", gen_length=8, device="cpu")

    engine = made()
    before, then = engine.fingerprint(), Recorder(engine).state
    assert asked == ["owner/prm"] and "owner/prm" not in before
    assert then["add_ons"]["prm"]["headers"] and "prm" not in then["options"]
    local = Engine("llada_prm", prm=str(PRM_FOLDER), gen_length=8, device="cpu")
    assert (local.fingerprint(), Recorder(local).state) == (before, then)
    change_a_byte(folder / "model.safetensors")
    assert made().fingerprint() != before
    lines = differences(then, Recorder(made()).state)
    assert [line.partition(":")[0] for line in lines] == [
        "add_ons.prm.sampled",
        "add_ons.prm.files",
    ]


def change_a_byte(weights: Path) -> None:
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)


def test_an_add_on_in_the_checkpoints_folder_is_in_the_manifest(tmp_path):
    folder = Path(shutil.copytree(TINY, tmp_path / "model"))
    asked = Asked("llada_ups", {"pretrained": str(folder)})
    before = state(asked, asked.folders())
    [weights] = (folder / "ups").glob("*.safetensors")
    change_a_byte(weights)
    lines = differences(before, state(asked, asked.folders()))
    assert [line.partition(":")[0] for line in lines] == [
        "add_ons.ups.sampled",
        "add_ons.ups.files",
    ]


# --- again


def test_what_has_changed_since_is_named(checkpoint, tmp_path):
    path = tmp_path / "manifest_1.json"
    found = manifest_of(checkpoint, path, steps=8)
    assert changed(found) == []
    (weights,) = checkpoint.glob("*.safetensors")
    change_a_byte(weights)
    (checkpoint / "tokenizer_config.json").write_text('{"model_max_length": 9}')
    found["state"]["versions"]["torch"] = "1.0"
    lines = changed(found)
    assert [line.partition(":")[0] for line in lines] == [
        "weights.sampled",
        "tokenizer",
        "versions.torch",
    ]
    assert lines[-1].startswith("versions.torch: 1.0 then, ")
    write_manifest(path, found)


def test_rerun_refuses_a_run_that_would_not_be_the_same(checkpoint, tmp_path, capsys):
    path = tmp_path / "manifest_1.json"
    manifest_of(checkpoint, path)
    (checkpoint / "generation_config.json").write_text('{"eos_token_id": 1}')
    assert door.main([str(path), "--output", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().out
    assert "config: " in told and "--anyway" in told
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda path: None, "no such file"),
        (lambda path: path.write_text("{"), "not valid JSON"),
        (lambda path: path.write_text('{"results": {}}'), "has no manifest"),
        (lambda path: path.write_text('{"format": 9, "id": "a"}'), "format is 9"),
    ],
)
def test_what_is_no_manifest_is_told_in_one_line(tmp_path, make, message):
    path = tmp_path / "manifest_1.json"
    make(path)
    with pytest.raises(SystemExit, match=message) as refusal:
        door.main([str(path)])
    assert "\n" not in str(refusal.value)


def test_a_repeated_command_has_its_own_folder_and_no_cache(tmp_path):
    words = ["lm_eval", "run", "-o", "a", "--tasks", "t", "--use_cache=b", "-c", "c", "-s"]
    new = lm_eval_command(words, tmp_path)
    assert new == [
        *(sys.executable, "-m", "lm_eval", "run", "--tasks", "t", "-s"),
        *("--output_path", str(tmp_path)),
    ]
    assert lm_eval_command(words, tmp_path, 2)[1:6] == [
        *("-m", "torch.distributed.run", "--nproc_per_node", "2", "-m")
    ]
    with pytest.raises(ValueError, match="made by my.py"):
        lm_eval_command(["my.py"], tmp_path)


def test_differences_of_states_are_lines_with_both_values():
    before = {"a": {"b": 1, "c": 2}, "d": None}
    assert differences(before, {"a": {"b": 1, "c": 3}, "d": "x"}) == [
        "a.c: 2 then, 3 now",
        "d: nothing then, x now",
    ]


@pytest.mark.slow
def test_a_run_of_lm_eval_is_repeated_to_equality_and_a_change_is_seen(tmp_path):
    place = tmp_path / "first"
    words = ["--model", "llada", "--model_args", "steps=8", "--device", "cpu", *SUDOKU4]
    words += ["--output_path", str(place), "--log_samples"]
    done = python("-m", "lm_eval", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    (path,) = place.rglob("manifest_*.json")
    rerun = ("-m", "llada_plugins.rerun", str(path))
    again = python(*rerun, "--output", str(tmp_path / "second"), cwd=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr[-3000:]
    assert "sudoku4: answers equal" in again.stdout
    found = read_manifest(path)
    found["results"]["sudoku4"]["acc,none"] += 0.25  # as if another model had made it
    found["state"]["versions"]["numpy"] = "1"
    write_manifest(path, found)
    again = python(*rerun, "--output", str(tmp_path / "third"), cwd=tmp_path)
    assert again.returncode == 2 and "versions.numpy: 1 then" in again.stdout
    again = python(*rerun, "--anyway", "--output", str(tmp_path / "third"), cwd=tmp_path)
    assert again.returncode == 3, again.stderr[-3000:]
    assert "NOT equal" in again.stdout and "changed: versions.numpy" in again.stdout
