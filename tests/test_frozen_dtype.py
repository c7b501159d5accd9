"""--dtype bfloat16: what is frozen is held in 16 bits, what trains in 32.

The result fits the checkpoint as it is stored.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llada_plugins.engine.engine import Engine
from tests.small_training import short_run
from tests.tolerance import rounding
from training import remask_sft, router_sft, sft
from training.runs import launch

pytestmark = pytest.mark.floats

RUN = short_run(max_steps=3, learning_rate=1e-3, warmup_steps=0)
# command, further flags, file of what trained, the method that loads it and its option
COMMANDS = {
    "sft --lora": (
        sft,
        ("--lora", "--lora_dropout", "0.1"),
        "adapter_model.safetensors",
        ("llada", "peft"),
    ),
    "remask_sft": (remask_sft, (), "ups.safetensors", ("llada_ups", "ups")),
    "remask_sft --lora": (remask_sft, ("--lora",), "ups.safetensors", ("llada_ups", "pretrained")),
    "router_sft": (
        router_sft,
        ("--router_blocks", "2"),
        "router.safetensors",
        ("llada_ala", "router"),
    ),
}


def losses(out: Path) -> list[float]:
    return [
        row["loss"]
        for row in map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
        if "loss" in row
    ]


@pytest.mark.parametrize("mixed", [(), ("--bf16",)], ids=["", "autocast"])
@pytest.mark.parametrize("name", COMMANDS)
def test_what_trains_is_float32_beside_16_bits_and_fits_the_stored_checkpoint(
    tmp_path, tiny_checkpoint, sudokus, name, mixed, monkeypatch
):
    command, more, file, (method, option) = COMMANDS[name]
    models, make = [], launch.DiffusionTrainer
    monkeypatch.setattr(
        launch,
        "DiffusionTrainer",
        lambda model, *given, **options: models.append(model) or make(model, *given, **options),
    )
    flags = ["--model", str(tiny_checkpoint), "--data", str(sudokus), *RUN, *more]
    command.main([*flags, "--output_dir", str(tmp_path / "plain")])
    command.main([*flags, "--output_dir", str(tmp_path / "half"), "--dtype", "bfloat16", *mixed])
    dtypes = {(weight.requires_grad, weight.dtype) for weight in models[1].parameters()}
    assert dtypes == {(True, torch.float32), (False, torch.bfloat16)}
    assert losses(tmp_path / "half") == pytest.approx(losses(tmp_path / "plain"), rel=0.05)
    trained = load_file(tmp_path / "half" / file)
    assert all(weight.dtype == torch.float32 for weight in trained.values())
    for key, weight in load_file(tmp_path / "plain" / file).items():
        # Three updates of Adam in either: by Cauchy-Schwarz at most 1, 1.002 and 1.004
        # times the learning rate
        bound = 2 * 1e-3 * (1 + 1.002 + 1.004) + rounding(6, weight)
        torch.testing.assert_close(trained[key], weight, atol=bound, rtol=0)
    given = (
        {option: str(tmp_path / "half")}
        if option == "pretrained"
        else {"pretrained": str(tiny_checkpoint), option: str(tmp_path / "half")}
    )
    # the fingerprints agree, and shapes
    assert Engine(method, gen_length=16, device="cpu", **given).sampler.gen_length == 16


@pytest.mark.parametrize(
    "command, more, message",
    [
        (
            sft,
            (),
            "--dtype bfloat16 is for weights that do not train, and here all do: leave it out, or "
            "add --lora",
        ),
        (remask_sft, ("--joint",), "--dtype bfloat16 is for weights that do not train"),
        (sft, ("--lora", "--dtype", "float64"), "invalid choice: 'float64'"),
    ],
)
def test_where_all_weights_train_it_is_refused_in_one_line(
    tmp_path, tiny_checkpoint, sudokus, command, more, message, capsys
):
    with pytest.raises(SystemExit) as ended:
        command.main(
            [
                "--model",
                str(tiny_checkpoint),
                "--data",
                str(sudokus),
                *RUN,
                "--dtype",
                "bfloat16",
                *more,
                "--output_dir",
                str(tmp_path / "out"),
            ]
        )
    said = str(ended.value.code) + capsys.readouterr().err
    assert message in said and not (tmp_path / "out").exists()


def test_presets_bring_their_own(tmp_path):
    with pytest.raises(
        SystemExit, match="error: a preset's model is float32: leave --dtype bfloat16 out"
    ):
        remask_sft.main(
            [
                "--preset",
                "sudoku4_ups",
                "--dtype",
                "bfloat16",
                "--output_dir",
                str(tmp_path / "out"),
            ]
        )
