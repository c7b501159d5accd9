"""Every kind of training on every class of checkpoint: that class is saved, or one line refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from llada_plugins.bitower import BiTowerLLaDA
from llada_plugins.checkpoint import load_model
from llada_plugins.engine import Engine, Request
from llada_plugins.model import LLaDA, empty_like
from training import pretrain, prm_sft, remask_sft, router_sft, sft

CLASSES = {"tiny_checkpoint": LLaDA, "bi_tower": BiTowerLLaDA}  # fixture -> class of its model
RUN = (
    "--per_device_train_batch_size",
    "2",
    "--max_steps",
    "1",
    "--learning_rate",
    "1e-2",
    "--warmup_steps",
    "0",
    "--save_strategy",
    "no",
    "--use_cpu",
)
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


def command(kind: Kind, base: Path, out: Path, data: list[str]) -> None:
    kind.main(["--model", str(base), *data, "--output_dir", str(out), *RUN, *kind.flags])


@pytest.mark.parametrize("kind, name", CASES)
def test_what_was_trained_is_of_the_class_that_was_loaded_or_refused(
    kind, name, request, tmp_path, data, sudokus
):
    kind, base, out = KINDS[kind], request.getfixturevalue(name), tmp_path / "out"
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
    assert (
        not (tmp_path / "out" / "ups").exists()
        and not (tmp_path / "out" / "ups.safetensors").exists()
    )
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
def test_an_empty_model_has_class_and_tensors_of_its_model_and_no_memory(name, request):
    model = load_model(request.getfixturevalue(name), device="cpu")
    empty = empty_like(model)
    assert type(empty) is type(model) and empty.config == model.config
    assert {key: tensor.shape for key, tensor in empty.state_dict().items()} == {
        key: tensor.shape for key, tensor in model.state_dict().items()
    }
    assert all(tensor.is_meta for tensor in empty.state_dict().values())
