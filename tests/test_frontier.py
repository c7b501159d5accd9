"""A sweep runs what is missing, says what is wrong before weights, and tells what it found."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import yaml

from llada_plugins import frontier
from llada_plugins.harness.sweeps import harness_of
from llada_plugins.reports.frontier import FrontierConfig, check_output, run
from llada_plugins.reports.frontier_curves import curves, leaderboard, rows, table
from llada_plugins.reports.frontier_lmeval import LMEval, read_result
from llada_plugins.reports.frontier_points import Result
from llada_plugins.reports.frontier_runs import Places, Runs, last_line
from llada_plugins.reports.sweep import Point, Sweep, grid, read_sweep
from tests.commands import python
from tests.report_pages import check_report_page

ROOT = Path(frontier.__file__).parents[1]

# ---- sweeps


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("threshold=0.5..0.99", ("0.5", "0.598", "0.696", "0.794", "0.892", "0.99")),
        ("threshold=.5...9/3", ("0.5", "0.7", "0.9")),
        ("steps=4..16/4", ("4", "8", "12", "16")),
        ("steps=1..3/5", ("1", "2", "3")),  # rounded; each once
        ("threshold=0.9..0.5/2", ("0.9", "0.5")),
        ("error_budget=1e-3..0.5/2", ("0.001", "0.5")),
        ("cache=none, dual", ("none", "dual")),
        ("steps=8", ("8",)),
    ],
)
def test_a_sweep_is_a_range_with_both_ends_or_a_list(text, values):
    assert read_sweep(text) == Sweep(text.partition("=")[0], values)


@pytest.mark.parametrize(
    "text",
    ["threshold", "=1", "steps=", "steps=1..", "steps=a..b", "steps=1..2/1", "x=1..2/b", "x=a/b"],
)
def test_what_is_no_sweep_is_refused_with_the_form(text):
    with pytest.raises(ValueError, match="^sweep="):
        read_sweep(text)


def test_several_sweeps_make_a_curve_of_the_first_for_each_value_of_the_others():
    points = grid([Sweep("a", ("1", "2")), Sweep("b", ("x", "y")), Sweep("c", ("z",))])
    assert [(each.name, each.series) for each in points] == [
        ("a=1,b=x,c=z", "b=x,c=z"),
        ("a=2,b=x,c=z", "b=x,c=z"),
        ("a=1,b=y,c=z", "b=y,c=z"),
        ("a=2,b=y,c=z", "b=y,c=z"),
    ]
    assert {each.series for each in grid([Sweep("a", ("1", "2"))])} == {""}
    with pytest.raises(ValueError, match="a is swept twice"):
        grid([Sweep("a", ("1",)), Sweep("a", ("2",))])


# ---- bad input

GIVEN = ["--task", "sudoku4", "--sweep", "threshold=0.5,0.9"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--task", "sudoku4"], "give at least one --sweep"),
        ([*GIVEN, "--sweep", "treshold=1,2"], "unknown option to sweep 'treshold' .*'threshold'"),
        ([*GIVEN, "--threshold", "0.5"], "threshold is swept and given as --threshold"),
        ([*GIVEN, "--sweep", "factor=1,2"], "threshold.*factor|factor.*threshold"),
        (["--task", "t", "--sweep", "threshold=0.5,1.5"], "threshold must be"),
        (
            ["--task", "t", "--sweep", "threshold=0.5,high"],
            "threshold must be a number, got 'high'",
        ),
        (["--task", "t", "--sweep", "pretrained=a,b"], "no option of decoding"),
        ([*GIVEN, "--jobs", "0"], "jobs must be at least 1"),
        ([*GIVEN, "--y_max", "0.75e3"], "y_max must be a percentage"),
        ([*GIVEN, "--pretrained", "/no/such"], "/no/such"),
        ([*GIVEN, "--dtype", "float32,bfloat16"], "cannot hold a comma|dtype"),
        ([*GIVEN, "--model", "lama"], "model must be one of"),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, list) else "",
)
def test_bad_input_ends_in_one_line_before_anything_runs(words, message, tmp_path, monkeypatch):
    monkeypatch.setattr(Runs, "finish", None)
    with pytest.raises(SystemExit, match=f"error: .*({message})") as ended:
        frontier.main([*words, "--output", str(tmp_path / "out")])
    assert "\n" not in str(ended.value) and not (tmp_path / "out").exists()


def test_a_folder_of_another_command_is_refused_and_one_of_the_same_goes_on(tmp_path):
    def command(**more) -> LMEval:
        config = FrontierConfig(task="t", output="o", sweep=("steps=1,2",), **more)
        return harness_of(config, {"pretrained": "sudoku4", "batch_size": "4"})

    check_output(tmp_path / "o", command())
    check_output(tmp_path / "o", command(jobs=2, metric="acc"))
    with pytest.raises(ValueError, match="runs of another command"):
        check_output(tmp_path / "o", command(limit=3))
    (tmp_path / "o" / "run.json").unlink()
    (tmp_path / "o" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds other files"):
        check_output(tmp_path / "o", command())


# ---- runs


class Scripted(LMEval):
    """Runs of a line of Python in the place of lm_eval: it gets the folder as its argument."""

    def words(self, point: Point, places: Places, folder: Path) -> list[str]:
        given = "out = pathlib.Path(sys.argv[1]); name = sys.argv[2]"
        code = f"import sys, time, pathlib; {given}; {self.lm_eval}"
        return [sys.executable, "-S", "-c", code, str(folder), point.name]


def scripted(folder: Path, script: str) -> Runs:
    return Runs(Scripted(task="t", label="llada", options={}, lm_eval=script), Places(folder))


POINTS = grid([Sweep("steps", ("1", "2", "3"))])
WRITES = "(out / 'done').write_text(name)"


def test_finished_runs_are_shown_first_and_not_run_again(tmp_path):
    runs, shown = scripted(tmp_path, WRITES), []
    runs.finish(POINTS[1:2], 1, shown.append)
    again = scripted(tmp_path, WRITES.replace("name", "'again'"))
    again.finish(POINTS, 2, shown.append)
    assert shown[:2] == [POINTS[1], POINTS[1]] and {each.name for each in shown[2:]} == {
        "steps=1",
        "steps=3",
    }
    told = [(runs.places.point(point) / "done").read_text() for point in POINTS]
    assert told == ["again", "steps=2", "again"]


def test_a_run_that_fails_ends_the_others_and_is_told_by_its_last_line(tmp_path):
    script = (
        f"{WRITES}; name == 'steps=1' or time.sleep(60); print('bad news'); print(); sys.exit(3)"
    )
    began = time.monotonic()
    with pytest.raises(ChildProcessError, match="steps=1: lm_eval ended with status 3: bad news"):
        scripted(tmp_path, script).finish(POINTS, 2, lambda point: None)
    assert time.monotonic() - began < 50  # the sleeping one was ended
    assert not list((tmp_path / "points").iterdir())  # nothing half done is left


def test_what_is_wrong_with_a_finished_run_is_told_before_the_next_begins(tmp_path):
    def refuse(point: Point) -> None:
        raise ValueError("no such metric")

    with pytest.raises(ValueError, match="no such metric"):
        scripted(tmp_path, WRITES).finish(POINTS, 1, refuse)
    assert len(list((tmp_path / "points").iterdir())) < len(POINTS)


def test_options_of_answers_go_where_no_task_overrides_them_and_caches_are_per_point(tmp_path):
    config = FrontierConfig(
        task="t",
        output="o",
        sweep=("threshold=0.5,0.9", "quantize=int8,nf4"),
        lm_eval="--num_fewshot 4",
    )
    command = harness_of(config, {"gen_length": "16", "batch_size": "8"})
    point = grid(config.sweeps())[0]
    words = command.words(point, Places(tmp_path), tmp_path / "x")
    after = dict(zip(words, words[1:]))
    assert after["--gen_kwargs"] == "threshold=0.5"
    assert after["--model_args"] == "gen_length=16,quantize=int8"
    assert (after["--batch_size"], after["--num_fewshot"]) == ("8", "4")
    assert after["--use_cache"] == str(tmp_path / "caches" / point.name)


def test_a_log_without_a_word_is_told(tmp_path):
    (tmp_path / "log").write_text(" \n\n")
    assert last_line(tmp_path / "log") == "it printed nothing"


# ---- what runs say

SAMPLERS = {"t": [{"threshold": 0.5}]}
COSTS = dict(answers=4, tokens=60, forwards=24, revised=2, seconds=2.0)


def finished(folder: Path, values=(1, 0, 1, 1), results=None, **config) -> Path:
    """lm-eval's files of a run."""
    found = {
        "results": {
            "t": {
                "acc,none": sum(values) / 4,
                "acc_stderr,none": 0.1,
                "alias": "t",
                **(results or {}),
            }
        },
        "config": {"decoding": {"t": COSTS}, "samplers": SAMPLERS, **config},
    }
    folder.mkdir()
    (folder / "results_1.json").write_text(json.dumps(found))
    lines = [{"acc": value, "filter": kept} for value in values for kept in ("none", "other")]
    (folder / "samples_t_1.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


AT_HALF = Point({"threshold": "0.5"}, "")


def test_a_result_has_costs_of_an_answer_and_wilsons_interval(tmp_path):
    result = read_result(finished(tmp_path / "run"), AT_HALF, "t", None)
    assert (result.accuracy, result.answers, result.tokens_per_forward) == (0.75, 4, 60 / 24)
    assert (result.forwards, result.tokens, result.revised, result.seconds) == (6, 15, 0.5, 0.5)
    # scipy.stats.binomtest(3, 4).proportion_ci(method="wilson")
    assert [round(end, 6) for end in result.interval] == [0.300642, 0.954413]


def test_an_accuracy_that_is_no_share_of_answers_has_no_interval(tmp_path):
    partly = read_result(finished(tmp_path / "partly", (1, 0, 0.5, 1)), AT_HALF, "t", None)
    assert partly.interval is None
    weighted = finished(tmp_path / "weighted", results={"acc,none": 0.7})
    assert read_result(weighted, AT_HALF, "t", None).interval is None


@pytest.mark.parametrize(
    ("results", "config", "metric", "message"),
    [
        ({"f1,none": 0.5}, {}, None, "acc,none, f1,none: say which by --metric"),
        ({}, {}, "f1", "reports acc,none: say which"),
        ({"bleu,none": 31.5}, {}, "bleu", "no share of right answers"),
        ({}, {"decoding": {}}, None, "generates nothing"),
        ({}, {"samplers": {"t": [{"threshold": 0.9}]}}, None, "decoded with threshold=0.9"),
    ],
)
def test_runs_that_cannot_be_a_point_are_told(tmp_path, results, config, metric, message):
    with pytest.raises(ValueError, match=message):
        read_result(finished(tmp_path / "run", results=results, **config), AT_HALF, "t", metric)


def test_a_metric_may_be_named_with_or_without_its_filter(tmp_path):
    folder = finished(tmp_path / "run", results={"acc,other": 0.25})
    assert read_result(folder, AT_HALF, "t", "acc").accuracy == 0.75
    assert read_result(folder, AT_HALF, "t", "acc,other").accuracy == 0.25


# ---- tables


def result(rho: float, accuracy: float, series: str = "", **options: str) -> Result:
    return Result(options, series, accuracy, None, 10, rho, 16 / rho, 16.0, 0.0, 0.1)


RESULTS = [
    result(9.11, 0.7309, threshold="0.5"),
    result(1.0, 0.7402, threshold="0.99"),
    result(20.0, 0.3, threshold="0.1"),
]


def test_scores_rows_and_the_leaderboards_list_agree():
    found = curves(RESULTS, "llada", 74.98)
    assert round(found[0].aup, 2) == 637.65
    told = rows(found)
    assert [row["threshold"] for row in told] == ["0.99", "0.5", "0.1"]
    assert [row["counted"] for row in told] == [True, True, False]
    assert yaml.safe_load(leaderboard(found, "GSM8K-CoT")) == {
        "GSM8K-CoT": {"llada": [[1.0, 74.02], [9.11, 73.09], [20.0, 30.0]]}
    }
    assert "30.0 (not counted)" in table(found, "gsm8k") and "AUP of llada: 637.65" in table(
        found, "t"
    )


def test_curves_of_a_grid_share_the_best_accuracy_seen():
    both = curves(
        [
            result(1, 0.8, "a", x="1"),
            result(2, 0.8, "a", x="2"),
            result(1, 0.9, "b", x="1"),
            result(2, 0.9, "b", x="2"),
        ],
        "llada",
        None,
    )
    alone = curves([result(1, 0.8, "a", x="1"), result(2, 0.8, "a", x="2")], "llada", None)
    assert [each.label for each in both] == ["llada a", "llada b"]
    assert both[0].aup < alone[0].aup and both[1].aup == pytest.approx(2 * 90)


class Known(Scripted):
    """Runs whose results are known."""

    def check(self, points: Sequence[Point]) -> None:
        """No task has this name."""

    def result(self, point: Point, places: Places) -> Result:
        return next(each for each in RESULTS if each.options == point.options)


def test_the_page_has_the_plot_the_rows_and_the_scores(tmp_path):
    sweep = ("threshold=0.1,0.5,0.99",)
    config = FrontierConfig(task="t", output=str(tmp_path), sweep=sweep, y_max=74.98, html=True)
    run(config, {}, Known(task="t", label="llada", options={}, lm_eval=WRITES))
    words = ["Accuracy against tokens a forward: t", "AUP of llada: 637.65", "30.0 (not counted)"]
    check_report_page(tmp_path / "report.html", plots=1, rows=1 + len(RESULTS), words=words)


# ---- all of it


def command(output: Path, *more: str) -> list[str]:
    return [
        "-m", "llada_plugins.frontier", "--task", "sudoku4", "--include_path",
        str(ROOT / "configs/lmeval"), "--sweep", "threshold=0.6,0.95", "--limit", "12",
        "--batch_size", "12", "--device", "cpu", "--output", str(output), *more,
    ]  # fmt: skip


def whole_and_killed(command: Callable[[Path], list[str]], folder: Path) -> tuple[Path, Path, str]:
    """Outputs of a sweep over thresholds .6 and .95, and of one that was killed and went on.

    And what the first printed. command: writes to a folder.
    """
    whole, parts = folder / "whole", folder / "parts"
    done = python(*command(whole), "--jobs", "2", cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    killed = subprocess.Popen([sys.executable, *command(parts)], cwd=folder, start_new_session=True)
    while not (parts / "points" / "threshold=0.6").is_dir() and killed.poll() is None:
        time.sleep(0.2)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not (parts / "frontier.json").exists()
    first = (parts / "points" / "threshold=0.6").stat().st_mtime_ns
    again = python(*command(parts), cwd=folder)
    assert again.returncode == 0, again.stderr[-3000:]
    assert (parts / "points" / "threshold=0.6").stat().st_mtime_ns == first  # not run again
    assert (whole / "leaderboard.yaml").read_text() == (parts / "leaderboard.yaml").read_text()
    assert not list((whole / "caches").iterdir())
    return whole, parts, done.stdout


@pytest.mark.slow
def test_a_sweep_that_was_killed_goes_on_and_ends_as_one_that_was_not(tmp_path):
    whole, parts, said = whole_and_killed(command, tmp_path)

    def points(folder: Path) -> list[dict]:
        with (folder / "points.csv").open() as file:
            return [
                {name: value for name, value in row.items() if "seconds" not in name}
                for row in csv.DictReader(file)
            ]

    assert points(whole) == points(parts) and len(points(whole)) == 2
    assert (whole / "frontier.png").stat().st_size > 1000 and "AUP of llada" in said


@pytest.mark.slow
def test_a_task_that_lm_eval_does_not_know_ends_in_one_line(tmp_path):
    words = command(tmp_path / "out")
    words[words.index("sudoku4")] = "sudoku5"
    done = python(*words, cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.startswith("error: threshold=0.6: lm_eval ended")
    assert "sudoku5" in done.stderr and done.stderr.count("\n") == 1
