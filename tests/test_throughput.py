"""The throughput benchmark decodes the same answers three ways, and says so when they
differ. No times are asserted.
"""

from __future__ import annotations

import json

import pytest

from benchmarks import throughput

SMALL = [
    "--shape",
    "tiny",
    "--num_prompts",
    "12",
    "--batch_size",
    "3",
    "--prompt_length",
    "12",
    "--gen_length",
    "24",
    "--block_length",
    "4",
    "--steps_per_block",
    "2",
    "--repetitions",
    "1",
]


@pytest.mark.parametrize("cache", ["none", "dual"])
def test_three_ways_decode_the_same_answers_and_full_batches_have_more_rows(
    tmp_path, capsys, cache
):
    assert throughput.main([*SMALL, "--cache", cache, "--json", str(tmp_path / "out.json")]) == 0
    result = json.loads((tmp_path / "out.json").read_text())
    assert set(result["ratios"]) == {"one_by_one", "batches", "full"}
    assert result["ratios"]["one_by_one"] == 1
    assert (
        result["rows"]["one_by_one"] == 1 < result["rows"]["batches"] < result["rows"]["full"] <= 3
    )
    assert 12 * 4 < result["num_tokens"] < 12 * 24  # answers do end at different blocks
    assert "same answers: yes" in capsys.readouterr().out


def test_a_block_causal_model_decodes_the_answers_of_the_published_loop(tmp_path, capsys):
    options = ["--attention", "block_causal", "--published_prompts", "4"]
    assert throughput.main([*SMALL, *options, "--json", str(tmp_path / "out.json")]) == 0
    result = json.loads((tmp_path / "out.json").read_text())
    assert set(result["ratios"]) == {"one_by_one", "batches", "full", "published"}
    assert result["ratios"]["published"] == 1 and result["same_answers"] is True
    assert "x published" in capsys.readouterr().out


def test_an_approximate_cache_is_refused_for_a_block_causal_model():
    with pytest.raises(SystemExit, match="cache=dual freezes what later blocks change"):
        throughput.main([*SMALL, "--attention", "block_causal", "--cache", "dual"])


def test_other_answers_are_told(monkeypatch):
    honest = throughput.ways

    def ways(*arguments):
        found = honest(*arguments)
        return {**found, "batches": lambda: found["one_by_one"]()[::-1]}

    monkeypatch.setattr(throughput, "ways", ways)
    assert throughput.main(SMALL) == 1


def test_wrong_options_are_told():
    with pytest.raises(SystemExit, match="steps must be at least 1, got 0"):
        throughput.main(["--steps_per_block", "0"])
