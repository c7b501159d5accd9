"""A sweep over an OpenCompass config: its points, what is refused, and what runs say."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("opencompass")

from mmengine.config import Config

from llada_plugins import frontier
from llada_plugins.harness.opencompass_sweep import OpenCompass
from llada_plugins.harness.sweeps import harness_of
from llada_plugins.reports.frontier import FrontierConfig
from llada_plugins.reports.frontier_runs import Places, Runs
from llada_plugins.reports.sweep import Point
from tests.test_frontier import POINTS, whole_and_killed

ROOT = Path(frontier.__file__).parents[1]
ENTRY = "LLaDA-tiny-gen_length=16-steps=16"
CONFIG = ROOT / "configs" / "eval_llada.py"
AT_HALF = Point({"threshold": "0.5"}, "")


def harness(options: dict[str, str] | None = None, **more) -> OpenCompass:
    given = {"config": str(CONFIG), "entry": ENTRY, **more}
    config = FrontierConfig(output="o", sweep=("threshold=0.5",), **given)
    found = harness_of(config, options or {})
    assert isinstance(found, OpenCompass)
    return found


def variant(tmp_path: Path, lines: str) -> Path:
    """The shipped config's entry and data set, changed by lines of Python."""
    path = tmp_path / "eval.py"
    folder = ROOT / "configs" / "opencompass"
    path.write_text(
        "from mmengine.config import read_base\n"
        "with read_base():\n"
        "    from .opencompass.datasets.sudoku4 import sudoku4_datasets as datasets\n"
        "    from .opencompass.models.llada_tiny import models\n" + lines
    )
    (tmp_path / "opencompass").symlink_to(folder)
    return path


# ---- points


def test_a_point_is_the_config_with_one_model_under_its_options(tmp_path):
    found = harness({"block_length": "8"}, limit=12)
    places, folder = Places(tmp_path), tmp_path / "work"
    folder.mkdir()
    words = found.words(Point({"threshold": "0.5", "cache": "dual"}, ""), places, folder)
    assert words[1:] == [
        *("-m", "opencompass.cli.main", str(folder / "point.py"), "-w", str(folder), "--debug")
    ]
    written = Config.fromfile(str(folder / "point.py"))
    (model,), (data,) = written["models"], written["datasets"]
    assert {name: model[name] for name in ("threshold", "cache", "block_length", "steps")} == dict(
        threshold=0.5, cache="dual", block_length=8, steps=16
    )
    assert model["abbr"] == "threshold=0.5,cache=dual" and model["batch_size"] == 64
    assert data["abbr"] == "sudoku4" and data["reader_cfg"]["test_range"] == "[:12]"
    assert (found.task, found.label) == ("sudoku4", ENTRY) and "work_dir" not in written


def test_a_run_that_was_killed_goes_on_from_what_it_left(tmp_path):
    (tmp_path / "20260101_000000" / "configs").mkdir(parents=True)
    assert harness().words(AT_HALF, Places(tmp_path), tmp_path)[-1] == "-r"


def test_only_what_changes_answers_makes_another_sweep():
    told = harness().told()
    assert told == harness(jobs=2, metric="accuracy").told()
    others = [harness(limit=3), harness({"seed": "1"}), harness(entry=f"{ENTRY[:-2]}8")]
    assert all(each.told() != told for each in others)


# ---- bad input


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (dict(config="no/such.py"), "config no/such.py: no such file"),
        (dict(entry=None), "asks sudoku4 of LLaDA-tiny.*16 .llada., .*8 .llada.: say which by --e"),
        (dict(entry="LLaDA"), "say which by --entry ABBR"),
        (dict(model="llada_ups"), "say which by --entry ABBR with its --model, got --model llada_"),
        (dict(task="gsm8k"), "task must be one of sudoku4 of .*, got 'gsm8k'"),
    ],
    ids=str,
)
def test_a_config_without_the_entry_or_the_data_set_is_told(more, message):
    with pytest.raises((ValueError, OSError), match=message) as caught:
        harness(**more).check([AT_HALF])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (dict(lm_eval="--x"), "lm_eval is for lm-eval, and --config for OpenCompass"),
        (dict(include_path="configs"), "include_path is for lm-eval"),
        (dict(config=None, task="t"), "entry has no effect without --config"),
        (dict(config=None, entry=None), "give --task NAME of lm-eval, or --config FILE"),
    ],
    ids=str,
)
def test_options_of_the_other_harness_are_refused(more, message):
    with pytest.raises(ValueError, match=message):
        harness(**more)


@pytest.mark.parametrize(
    ("lines", "point", "message"),
    [
        ("", Point({"threshold": "1.5"}, ""), "threshold must be"),
        ("", Point({"threshold": "high"}, ""), "threshold must be a number, got 'high'"),
        (
            "datasets[0]['infer_cfg']['inferencer']['generation_kwargs'] = dict(threshold=0.9)",
            AT_HALF,
            "sudoku4 sets threshold in its inferencer's generation_kwargs",
        ),
        ("models[0]['manifest'] = 'off'", AT_HALF, "manifest=off: costs of answers are read from"),
        ("models[0]['factor'] = 1.0", AT_HALF, "threshold and factor are alternatives"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_point_that_would_be_refused_is_told_before_anything_runs(
    lines, point, message, tmp_path
):
    with pytest.raises(ValueError, match=message):
        harness(config=str(variant(tmp_path, lines)), entry=None).check([point])


# ---- what runs say

COSTS = dict(answers=4, tokens=60, forwards=24, revised=2, seconds=2.0)


def finished(folder: Path, scores: dict, details=None, costs: dict | None = COSTS) -> None:
    """OpenCompass' files of a run at threshold 0.5."""
    run = folder / "20260101_000000"
    found = scores if details is None else {**scores, "details": details}
    part = {"data": "sudoku4", "rows": None, **({} if costs is None else {"decoding": costs})}
    for path, value in (
        ("results/threshold=0.5/sudoku4.json", found),
        ("manifests/threshold=0.5.json", {"parts": {"sudoku4": part}}),
    ):
        (run / path).parent.mkdir(parents=True, exist_ok=True)
        (run / path).write_text(json.dumps(value))
    (run / "configs").mkdir(exist_ok=True)


@pytest.mark.parametrize(
    "details",
    [
        [{"correct": value} for value in (True, False, True, True)],
        {str(row): {"correct": [value]} for row, value in enumerate((True, False, True, True))},
    ],
    ids=["list", "dict"],
)
def test_a_result_has_costs_of_the_manifest_and_wilsons_interval(details, tmp_path):
    places = Places(tmp_path)
    finished(places.point(AT_HALF), {"accuracy": 75.0}, details)
    result = harness().result(AT_HALF, places)
    assert (result.accuracy, result.answers, result.tokens_per_forward) == (0.75, 4, 60 / 24)
    assert (result.forwards, result.tokens, result.revised, result.seconds) == (6, 15, 0.5, 0.5)
    # scipy.stats.binomtest(3, 4).proportion_ci(method="wilson")
    assert [round(end, 6) for end in result.interval] == [0.300642, 0.954413]


@pytest.mark.parametrize(
    "details",
    [None, [{"correct": True}] * 4, [{"pred": "1"}] * 4, [{"correct": 0.75}] * 4],
    ids=str,
)
def test_a_result_without_judgements_that_make_it_has_no_interval(details, tmp_path):
    finished(Places(tmp_path).point(AT_HALF), {"accuracy": 75.0}, details)
    assert harness().result(AT_HALF, Places(tmp_path)).interval is None


@pytest.mark.parametrize(
    ("scores", "costs", "metric", "message"),
    [
        ({"a": 1.0, "b": 2.0}, COSTS, None, "sudoku4 reports a, b: say which by --metric"),
        ({"a": 1.0, "b": 2.0}, COSTS, "c", "metric='c': sudoku4 reports a, b: say which"),
        ({"length": 131.0}, COSTS, None, "length of sudoku4 is 131, which is no percentage"),
        ({"accuracy": 50.0}, None, None, "sudoku4 generates nothing"),
    ],
)
def test_runs_that_cannot_be_a_point_are_told(scores, costs, metric, message, tmp_path):
    finished(Places(tmp_path).point(AT_HALF), scores, costs=costs)
    with pytest.raises(ValueError, match=message):
        harness(metric=metric).result(AT_HALF, Places(tmp_path))


# ---- runs


class Scripted(OpenCompass):
    """A line of Python in the place of opencompass; it gets the folder as its argument."""

    script: str

    def words(self, point: Point, places: Places, folder: Path) -> list[str]:
        return [sys.executable, "-S", "-c", SCRIPT, str(folder), point.name]


# what a run leaves at steps=2 alone; a failed task does not change its status
SCRIPT = """
import json, pathlib, sys
run = pathlib.Path(sys.argv[1]) / "20260101_000000"
(run / "configs").mkdir(parents=True, exist_ok=True)
if sys.argv[2] == "steps=2":
    place = run / "results" / sys.argv[2]
    place.mkdir(parents=True)
    (place / "sudoku4.json").write_text(json.dumps({"accuracy": 50.0}))
else:
    print("bad news")
"""


def test_a_run_without_a_score_has_failed_whatever_its_status(tmp_path):
    scripted, places = Scripted(config=CONFIG, method="llada", options={}), Places(tmp_path)
    Runs(scripted, places).finish(POINTS[1:2], 1, lambda point: None)
    assert places.point(POINTS[1]).is_dir() and not places.cache(POINTS[1]).exists()
    with pytest.raises(ChildProcessError, match="steps=1: opencompass left no score of sudoku4"):
        Runs(scripted, places).finish(POINTS[:1], 1, lambda point: None)
    assert not places.point(POINTS[0]).exists() and places.cache(POINTS[0]).is_dir()


# ---- all of it


@pytest.mark.slow
def test_a_sweep_that_was_killed_goes_on_and_ends_as_one_that_was_not(tmp_path):
    def command(output: Path) -> list[str]:
        given = ["--config", str(CONFIG), "--entry", ENTRY, "--limit", "12"]
        sweep = ["--sweep", "threshold=0.6,0.95", "--device", "cpu", "--output", str(output)]
        return ["-m", "llada_plugins.frontier", *given, *sweep]

    whole, _, _ = whole_and_killed(command, tmp_path)
    told = json.loads((whole / "frontier.json").read_text())
    assert [point["answers"] for point in told["points"]] == [12, 12]
    assert all(point["low"] < point["accuracy"] <= point["high"] for point in told["points"])
