"""benchmarks.invariance: what it counts, and the command on the shipped model."""

from __future__ import annotations

import json

import pytest

from benchmarks.invariance import Answer, agreement, main
from tests.invariance import ways_of

ALONE = [Answer("ab", [1, 2], [b"1", b"2"]), Answer("c", [3], [b"3"])]


@pytest.mark.parametrize(
    "other, expected",
    [
        (ALONE, (1.0, 1.0, None)),
        # another token in the second forward; the text of the other row stays
        ([Answer("ax", [1, 9], [b"1", b"9"]), ALONE[1]], (0.5, 2 / 3, 2)),
        # fewer tokens, and a forward less
        ([Answer("a", [1], [b"1"]), ALONE[1]], (0.5, 2 / 3, 2)),
        # the same text by another way
        ([Answer("ab", [1, 2], [b"0", b"2"]), ALONE[1]], (1.0, 1.0, 1)),
        ([ALONE[0], Answer("cd", [3, 4], [b"3", b"4"])], (0.5, 3 / 4, 2)),
    ],
)
def test_agreement_is_shares_and_the_earliest_forward_that_differs(other, expected):
    found = agreement(ALONE, [other])
    assert (found["texts"], found["tokens"], found["first"]) == expected
    twice = agreement(ALONE, [ALONE, other])
    assert twice["texts"] == (1 + expected[0]) / 2 and twice["first"] == expected[2]


@pytest.mark.slow
@pytest.mark.floats
def test_the_command_finds_full_agreement_in_float32(tmp_path, capsys):
    given = ["--dtypes", "float32", "--num", "3", "--gen_length", "8"]
    method, way = ways_of("llada")[0]
    for only in ("cache=none rule=plain", f"method={method} scoring={way}"):
        file = tmp_path / "found.json"
        assert main([*given, "--only", only, "--json", str(file)]) == 0
        found = json.loads(file.read_text())
        assert len(found["cells"]) == only.startswith("cache")
        assert len(found["scoring"]) == only.startswith("method")
        assert all(row["texts"] == row["tokens"] == 1 for row in found["cells"])
        assert all(row["largest"] < row["mean"] for row in found["scoring"])
        assert only in capsys.readouterr().out


def test_bad_options_are_refused(capsys):
    for words, message in (
        (["--dtypes", "float99"], "dtypes must be of"),
        (["--num", "0"], "num must be at least 1"),
        (["--device", "cuda:99"], "device="),
    ):
        with pytest.raises(SystemExit, match=message):
            main(words)
