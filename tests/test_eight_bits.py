"""The benchmark of forwards in 8 bits."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import eight_bits, steps
from llada_plugins.models.quantization import METHODS

SMALL = ["--shape", "tiny", "--step_columns", "4", "--canvas_columns", "16", "--repetitions", "1"]


def test_every_way_to_quantise_is_timed_beside_the_weights_as_they_are(tmp_path, capsys):
    assert eight_bits.main([*SMALL, "--json", str(tmp_path / "result.json")]) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert list(result["columns"]) == ["4", "16"]
    printed = capsys.readouterr().out
    for rows in result["columns"].values():
        assert list(rows) == ["none", *METHODS]
        assert rows["none"]["times_faster"] == 1 and rows["none"]["error"] == 0
        for row in rows.values():
            assert row["seconds"] * row["times_faster"] == pytest.approx(rows["none"]["seconds"])
            assert f"{row['error']:.4f}" in printed
        errors = [rows[name]["error"] for name in ("none", "int8", "fp8", "nf4")]
        assert errors == sorted(errors)


def test_wrong_numbers_are_told(monkeypatch):
    def doubled(model, method):
        wrong = steps.quantised_copy(model, method)
        wrong.transformer["ln_f"].weight = torch.nn.Parameter(2 * model.transformer["ln_f"].weight)
        return wrong

    monkeypatch.setattr(eight_bits, "quantised_copy", doubled)
    assert eight_bits.main(SMALL) == 1


def test_what_a_device_cannot_do_is_left_out_and_said(monkeypatch, capsys):
    def refuse(name, device, dtype):
        if name == "fp8":
            raise ValueError("fp8 needs another GPU")

    monkeypatch.setattr(eight_bits, "check_device", refuse)
    found = eight_bits.methods_of(torch.device("cpu"), torch.float32)
    assert found == [name for name in METHODS if name != "fp8"]
    assert capsys.readouterr().err == "left out: fp8 needs another GPU\n"


@pytest.mark.parametrize("name", ["threads", "step_columns", "canvas_columns", "repetitions"])
def test_wrong_options_are_told(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        eight_bits.Options(**{name: 0})
