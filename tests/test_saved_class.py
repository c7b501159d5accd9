"""Every kind of training on every class of checkpoint: that class is saved, or one line refuses."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from llada_plugins.engine.engine import Engine, Request
from llada_plugins.models.bitower import BiTowerLLaDA
from llada_plugins.models.initial import empty_like
from llada_plugins.models.llada import LLaDA
from llada_plugins.models.loading import load_model, save_model
from tests.small_training import short_run
from training import distill, merge, pretrain, prm_sft, remask_sft, router_sft, sft

pytestmark = pytest.mark.floats

CLASSES = {"tiny_checkpoint": LLaDA, "bi_tower": BiTowerLLaDA}  # fixture -> class of its model
RUN = short_run(per_device_train_batch_size=2, max_steps=1, learning_rate=1e-2, warmup_steps=0)
SAMPLER = dict(gen_length=8, steps=4)
SCORE = ("model.ln_f_upm.", "model.linear_confidence.")
LORA = ("--lora", "--lora_r", "2")
NO_HEAD = "has a policy stream of its own, beside which no head is read: give --joint"


class Kind(NamedTuple):
    """A kind of training."""

    main: Callable[..., None]
    flags: tuple[str, ...] = ()
    options: Callable[[Path, Path], dict[str, str]] = lambda base, out: {
        "pretrained": str(out)
    }  # an Engine's, to use what it left
    method: str = "llada"
    still: tuple[str, ...] = ()  # beginnings of the names that keep their values
    refusals: dict[str, str] = {}  # fixture -> the one line


def beside(name: str) -> Callable[[Path, Path], dict[str, str]]:
    """What was trained is a part beside the checkpoint, given by option `name`."""
    return lambda base, out: {"pretrained": str(base), name: str(out)}


def not_causal(model_type: str) -> str:
    return f"model_type is '{model_type}', expected one of"


KINDS = {
    "pretrain": Kind(pretrain.main, ("--gen_length", "0", "--random_lengths", "0"), still=SCORE),
    "sft": Kind(sft.main, still=SCORE),
    "distill": Kind(distill.main, ("--teacher_length", "4"), still=SCORE),
    "sft, LoRA": Kind(sft.main, LORA, beside("peft")),
    "head": Kind(remask_sft.main, (), beside("ups"), "llada_ups", refusals={"bi_tower": NO_HEAD}),
    "head, LoRA": Kind(
        remask_sft.main,
        LORA,
        method="llada_ups",
        refusals={"bi_tower": NO_HEAD},
        still=("model.transformer.wte", "model.transformer.ln_f", "model.transformer.ff_out"),
    ),
    "joint": Kind(remask_sft.main, ("--joint",), method="llada_ups"),
    "router": Kind(router_sft.main, (), beside("router"), "llada_ala"),
    "prm": Kind(
        prm_sft.main,
        refusals={"tiny_checkpoint": not_causal("llada"), "bi_tower": not_causal("RemeDi")},
    ),
}
CASES = [
    pytest.param(kind, name, id=f"{kind}, {CLASSES[name].__name__}")
    for kind in KINDS
    for name in CLASSES
]


@pytest.fixture(scope="module")
def data(tmp_path_factory, sudokus) -> dict[Callable[..., None], list[str]]:
    """Flags that give a command its data, for those whose rows are not prompts with answers."""
    folder = tmp_path_factory.mktemp("data")
    rows = [json.loads(line) for line in sudokus.read_text().splitlines()]
    texts, steps = folder / "texts.jsonl", folder / "steps.jsonl"
    texts.write_text("".join(json.dumps({"text": row["prompt"]}) + "\n" for row in rows))
    step = {"prompt": "a", "completions": ["b", "c"], "labels": [True, False]}
    steps.write_text(json.dumps(step) + "\n")
    return {
        pretrain.main: ["--dataset", str(texts), "--seq_len", "32"],
        prm_sft.main: ["--data", str(steps)],
    }


SAID = {  # keys of config.json that we do not read, and one whose value depends on what is saved
    "auto_map": {"AutoModel": "modeling.Model", "AutoConfig": ["configuration.Config", None]},
    "_name_or_path": "somewhere",
    "torch_dtype": "bfloat16",
    "multi_query_attention": False,
    "init_device": "meta",
}
FILES = {"modeling.py": "raise SystemExit", "part.py": "", "generation_config.json": "{}"}


@pytest.fixture(scope="module")
def bases(request, tmp_path_factory) -> dict[str, Path]:
    """A checkpoint of each class that says more than we read, with code that must never run."""
    folders = {name: tmp_path_factory.mktemp(name) for name in CLASSES}
    for name, folder in folders.items():
        shutil.copytree(request.getfixturevalue(name), folder, dirs_exist_ok=True)
        raw = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**raw, **SAID}))
        for file, text in FILES.items():
            (folder / file).write_text(text)
    return folders


def check_says_what_its_base_says(base: Path, out: Path, dtype: str = "float32") -> None:
    said, found = (json.loads((folder / "config.json").read_text()) for folder in (base, out))
    assert {**said, "torch_dtype": dtype} == {name: found.get(name, "absent") for name in said}
    assert {name: (out / name).read_text() for name in FILES} == FILES


def command(kind: Kind, base: Path, out: Path, data: list[str]) -> None:
    kind.main(["--model", str(base), *data, "--output_dir", str(out), *RUN, *kind.flags])


@pytest.mark.parametrize("kind, name", CASES)
def test_what_was_trained_is_of_the_class_that_was_loaded_or_refused(
    kind, name, bases, tmp_path, data, sudokus
):
    kind, base, out = KINDS[kind], bases[name], tmp_path / "out"
    flags = data.get(kind.main, ["--data", str(sudokus)])
    if name in kind.refusals:
        with pytest.raises(SystemExit) as refused:
            command(kind, base, out, flags)
        line = str(refused.value)
        assert line.startswith("error: ") and "\n" not in line and kind.refusals[name] in line
        assert not out.exists()
        return
    command(kind, base, out, flags)
    options = kind.options(base, out)
    engine = Engine(kind.method, device="cpu", **options, **SAMPLER)
    assert type(engine.model) is CLASSES[name]
    assert len(dict(engine.generate([Request("1...", engine.sampler)]))) == 1
    if options["pretrained"] == str(out):
        check_says_what_its_base_says(base, out)
        before, after = (load_model(folder, device="cpu").state_dict() for folder in (base, out))
        assert before.keys() == after.keys()
        for tensor_name, tensor in before.items():
            trained = not torch.equal(tensor, after[tensor_name])
            # LoRA adapts the matrices of blocks, not their norms
            still = tensor_name.startswith(kind.still) or (
                "--lora" in kind.flags and "norm" in tensor_name
            )
            assert trained != still, tensor_name


@pytest.mark.slow
def test_a_trained_bi_tower_is_resumed_from_its_checkpoint(tmp_path, bi_tower, sudokus):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    flags = [
        "--model",
        str(bi_tower),
        "--data",
        str(sudokus),
        *RUN,
        "--joint",
        "--max_steps",
        "2",
        "--save_strategy",
        "steps",
        "--save_steps",
        "1",
    ]
    remask_sft.main([*flags, "--output_dir", str(whole)])
    remask_sft.main([*flags, "--output_dir", str(cut)])
    for path in (cut / "checkpoint-2").iterdir():
        path.unlink()
    (cut / "checkpoint-2").rmdir()
    remask_sft.main([*flags, "--output_dir", str(cut), "--resume"])
    expected, found = (load_model(out, device="cpu").state_dict() for out in (whole, cut))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_the_score_of_a_joint_run_is_that_of_the_models_own_stream(tmp_path, bi_tower, sudokus):
    flags = [
        "--data",
        str(sudokus),
        "--eval_data",
        str(sudokus),
        "--eval_strategy",
        "epoch",
        "--joint",
    ]
    remask_sft.main(["--model", str(bi_tower), *flags, "--output_dir", str(tmp_path / "out"), *RUN])
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert 0 <= config["training"]["metrics"]["eval_ups_auc"] <= 1
    assert not (tmp_path / "out" / "ups").exists()
    assert not (tmp_path / "out" / "ups.safetensors").exists()
    policy = Engine("llada_ups", pretrained=str(tmp_path / "out"), device="cpu").prepared.policy
    assert policy.startswith("RemeDi's bi-tower")


def test_fine_tuning_says_that_a_policy_stream_is_not_trained(tmp_path, bi_tower, sudokus, caplog):
    sft.main(
        [
            "--model",
            str(bi_tower),
            "--data",
            str(sudokus),
            "--output_dir",
            str(tmp_path / "out"),
            *RUN,
        ]
    )
    assert "remask_sft --joint trains both" in caplog.text


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_loaded_model_is_saved_with_all_that_its_checkpoint_says(bases, tmp_path, name, dtype):
    model = load_model(bases[name], device="cpu", dtype=dtype)
    # the second as FSDP's state is saved
    for number, saved in enumerate([model, empty_like(model)]):
        saved.load_state_dict(model.state_dict(), assign=True)
        save_model(saved, tmp_path / str(number))
        check_says_what_its_base_says(bases[name], tmp_path / str(number), dtype)
        assert load_model(tmp_path / str(number), device="cpu").config == model.config


def test_a_merged_model_says_what_its_base_says(bases, tmp_path, sudokus):
    flags = ["--model", str(bases["tiny_checkpoint"]), "--data", str(sudokus), *RUN, *LORA]
    sft.main([*flags, "--output_dir", str(tmp_path / "lora")])
    options = {"model": str(bases["tiny_checkpoint"]), "peft": str(tmp_path / "lora")}
    merge.merge(merge.MergeOptions(**options, output=str(tmp_path / "out")))
    check_says_what_its_base_says(bases["tiny_checkpoint"], tmp_path / "out")


def test_what_no_longer_holds_is_not_said(tmp_path, bases):
    """Of a quantised checkpoint plain weights are saved; a config that was changed is
    what counts.
    """
    model = load_model(bases["tiny_checkpoint"], device="cpu")
    packed = {**model.origin.raw, "quantization_config": {"bits": 4}}
    model.origin = model.origin._replace(raw=packed)
    model.config = dataclasses.replace(model.config, max_sequence_length=64)
    save_model(model, tmp_path / "out")
    said = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "quantization_config" not in said and said["max_sequence_length"] == 64


def test_code_that_a_download_left_behind_is_named_by_its_repository(bases, tmp_path):
    snapshot = tmp_path / "models--owner--a--b" / "snapshots" / "0123"
    shutil.copytree(bases["tiny_checkpoint"], snapshot)
    save_model(load_model(snapshot, device="cpu"), tmp_path / "out")
    there = {"AutoModel": "owner/a--b--modeling.Model"}
    there["AutoConfig"] = ["owner/a--b--configuration.Config", None]
    said = json.loads((tmp_path / "out" / "config.json").read_text())
    assert said["auto_map"] == there  # configuration.py is not in the folder


def test_a_loaded_model_is_frozen_until_it_is_told_to_train(tiny_checkpoint):
    model = load_model(tiny_checkpoint, device="cpu").train()
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not model(torch.tensor([[1, 2]])).requires_grad
    assert model.requires_grad_(True)(torch.tensor([[1, 2]])).requires_grad


@pytest.mark.parametrize("name", CLASSES)
def test_an_empty_model_has_class_and_tensors_of_its_model_and_no_memory(name, request):
    model = load_model(request.getfixturevalue(name), device="cpu")
    empty = empty_like(model)
    assert type(empty) is type(model) and empty.config == model.config
    assert {key: tensor.shape for key, tensor in empty.state_dict().items()} == {
        key: tensor.shape for key, tensor in model.state_dict().items()
    }
    assert all(tensor.is_meta for tensor in empty.state_dict().values())
