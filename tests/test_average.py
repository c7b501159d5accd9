"""Averages of two checkpoints: closed forms, the dtype of the files, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llada_plugins.models.loading import load_model
from tests.small_training import with_other_tokens
from training import average


def moved(checkpoint: Path, target: Path, dtype: torch.dtype = torch.float32) -> Path:
    """A copy whose weights are three times the checkpoint's, stored in that dtype."""
    shutil.copytree(checkpoint, target)
    tensors = load_file(target / "model.safetensors")
    tensors = {name: (tensor.float() * 3).to(dtype) for name, tensor in tensors.items()}
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


def averaged(model: Path, other: Path, output: Path, share: object = 0.25) -> int:
    words = {"model": model, "other": other, "share": share, "output": output}
    return average.main([word for name in words for word in (f"--{name}", str(words[name]))])


def test_every_weight_is_the_weighted_mean(tiny_checkpoint, tmp_path, capsys):
    model, out = moved(tiny_checkpoint, tmp_path / "moved"), tmp_path / "out"
    assert averaged(model, tiny_checkpoint, out) == 0
    assert "0.25 of" in capsys.readouterr().out
    found, start = (
        load_model(folder, device="cpu").state_dict() for folder in (out, tiny_checkpoint)
    )
    assert found.keys() == start.keys()
    for name, tensor in found.items():
        scale = 3 * float(start[name].abs().max())
        bound = 4 * torch.finfo(torch.float32).eps * scale  # a product before, another, two sums
        torch.testing.assert_close(tensor, start[name] * 2.5, atol=bound, rtol=0)
    told = json.loads((out / "config.json").read_text())["training"]["averaged"]
    assert told == {"model": str(model), "other": str(tiny_checkpoint), "share": 0.25}
    files = {path.name for path in tiny_checkpoint.iterdir()}
    assert {path.name for path in out.iterdir()} == files


def test_weights_have_the_dtype_of_the_trained_models_files(tiny_checkpoint, tmp_path):
    model = moved(tiny_checkpoint, tmp_path / "moved", torch.bfloat16)
    averaged(model, tiny_checkpoint, tmp_path / "out")
    found, own, other = (
        load_file(folder / "model.safetensors")
        for folder in (tmp_path / "out", model, tiny_checkpoint)
    )
    for name, tensor in found.items():  # rounded once, after the sum
        assert torch.equal(tensor, torch.lerp(own[name].float(), other[name], 0.25).bfloat16())


def test_a_mean_of_a_model_and_itself_is_the_model(tmp_path):
    averaged(Path("tiny"), Path("sudoku4"), tmp_path / "out", share=0.5)
    found, start = (load_model(each, device="cpu") for each in (tmp_path / "out", "tiny"))
    for name, tensor in found.state_dict().items():
        assert torch.equal(tensor, start.state_dict()[name])


@pytest.mark.parametrize("share", [0, 1, -0.5, 1.5, "nan"])
def test_a_share_that_is_no_average_is_refused(share, tmp_path):
    with pytest.raises(SystemExit, match="--share must be between 0 and 1, got"):
        averaged(Path("tiny"), Path("tiny"), tmp_path / "out", share)
    assert not list(tmp_path.iterdir())


def test_models_that_differ_in_more_than_weights_are_refused(tiny_checkpoint, tmp_path):
    with pytest.raises(SystemExit, match="are not the same model: d_model is .*, give two") as end:
        averaged(tiny_checkpoint, Path("tiny"), tmp_path / "out")
    assert "\n" not in str(end.value.code)
    other = with_other_tokens(tiny_checkpoint, tmp_path / "other")
    with pytest.raises(SystemExit, match="have different tokenizers: give two of one training"):
        averaged(tiny_checkpoint, other, tmp_path / "out")
    with pytest.raises(SystemExit, match="--other='nowhere': no such folder"):
        averaged(tiny_checkpoint, Path("nowhere"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_models_of_two_trainings_are_refused_though_their_shapes_are_equal(tmp_path):
    told = "have a cosine of 0.19, less than 0.5: they are of two trainings"
    with pytest.raises(SystemExit, match=told) as end:
        averaged(Path("sudoku4"), Path("nim"), tmp_path / "out")
    assert "\n" not in str(end.value.code)
    assert not list(tmp_path.iterdir())


def test_a_model_without_weights_is_refused(tiny_checkpoint, tmp_path):
    empty = moved(tiny_checkpoint, tmp_path / "moved")
    tensors = load_file(empty / "model.safetensors")
    zeros = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    save_file(zeros, empty / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SystemExit, match="a cosine of nan, less than 0.5"):
        averaged(empty, tiny_checkpoint, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_is_left_where_the_disk_is_full(tiny_checkpoint, tmp_path, full_disk):
    with full_disk(20_000), pytest.raises(SystemExit, match="could not be written") as end:
        averaged(tiny_checkpoint, tiny_checkpoint, tmp_path / "out")
    assert "\n" not in str(end.value.code)
    assert not (tmp_path / "out").exists()
