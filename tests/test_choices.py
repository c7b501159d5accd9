"""The report on mc_num=auto asks real questions and counts what it says it counts."""

from __future__ import annotations

import json
import random

import pytest

from benchmarks import choices
from llada_plugins.tasks import nim

pytestmark = pytest.mark.floats


def test_only_the_first_choice_wins_and_all_differ():
    for problem in nim.problems("test", 200):
        found = choices.choices(problem, 4, random.Random(0))
        assert 2 <= len(found) <= 4 and len(set(found)) == len(found)
        assert [nim.is_winning(problem.position, answer) for answer in found] == [True] + [
            False
        ] * (len(found) - 1)


def test_the_command_reports_both_ways(tmp_path, capsys):
    assert (
        choices.main(["--num", "12", "--mc_num", "64", "--json", str(tmp_path / "out.json")]) == 0
    )
    result = json.loads((tmp_path / "out.json").read_text())
    fixed, auto = result["ways"]["fixed"], result["ways"]["auto"]
    assert fixed["same_answers"] == 1 and auto["rows"] < fixed["rows"] <= 4 * 64
    assert min(fixed["accuracy"], auto["accuracy"]) > 0.5
    assert result["rows_saved"] == pytest.approx(1 - auto["rows"] / fixed["rows"])
    assert "rows saved by auto" in capsys.readouterr().out


def test_wrong_options_are_told():
    with pytest.raises(SystemExit, match="num_choices must be at least 2, got 1"):
        choices.main(["--num_choices", "1"])
