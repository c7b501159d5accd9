"""benchmarks.scale: hours of GPUs from measured steps, and the page that holds them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import scale
from benchmarks.roofline import Ceiling
from benchmarks.scale import Machine, Shape
from llada_plugins.settings.table import find

PAGE = Path(__file__).parents[1] / "docs" / "scale.md"
SHAPES = scale.read_shapes(scale.HERE / "table1.json")
MEASURED = Machine.read(scale.HERE / "h100.json")
# as fast as its ceilings, whose bandwidth never counts
IDEAL = Machine("ideal", Ceiling(784e12, 1e30), {"exact": {1: 1.0}, "dual_later": {1: 1.0}})


def test_the_page_holds_the_table_of_the_measurements_at_hand() -> None:
    text = PAGE.read_text(encoding="utf-8")
    found = text.split(scale.BEGIN)[1].split(scale.END)[0].strip()
    assert found == scale.table(MEASURED, SHAPES, [1, 8, 64]), (
        "python -m benchmarks.scale --page docs/scale.md"
    )


def test_an_exact_answer_costs_two_operations_a_weight_and_token_and_its_attention() -> None:
    # LLaDA-8B's blocks have 32 layers of 4 d² + 3 d·12288 weights
    weights = 32 * (4 * 4096**2 + 3 * 4096 * 12_288)
    attention, head = 32 * 4 * 4096 * 1280**2, 2 * 4096 * 126_464 * 128
    flops = 256 * (1280 * 2 * weights + attention + head)
    found = scale.answer_seconds(IDEAL, "exact", 1024, 256, 256)
    assert found == pytest.approx(flops / 784e12)


def test_hours_are_between_those_of_the_blocks_and_those_of_all_weights_at_all_tokens() -> None:
    found = scale.hours(IDEAL, "exact", find("llada-8b-base/gsm8k-256"), Shape(1024), 1)
    tokens, attention = 1319 * 256 * 1280, 4 * 32 * 4096 * 1280
    low, high = (tokens * (2 * weights + attention) / 784e12 / 3600 for weights in (6.9e9, 7.6e9))
    assert low < found < high


@pytest.mark.parametrize("way", ["exact", "fast"])
@pytest.mark.parametrize("name", SHAPES)
def test_a_gpu_more_costs_no_time_and_at_most_a_question(way: scale.Way, name: str) -> None:
    preset, shape = find(name), SHAPES[name]
    one, eight = (scale.hours(MEASURED, way, preset, shape, gpus) for gpus in (1, 8))
    assert one / 8 <= eight <= one / 8 + one / preset.task.questions


@pytest.mark.parametrize("name", SHAPES)
def test_the_fast_way_is_never_slower(name: str) -> None:
    exact, fast = (
        scale.hours(MEASURED, way, find(name), SHAPES[name], 1) for way in ("exact", "fast")
    )
    assert fast <= exact


def test_of_each_measured_step_the_faster_of_eager_and_compiled_counts(tmp_path: Path) -> None:
    raw = json.loads((scale.HERE / "h100.json").read_text())
    raw["sections"] = {
        "steps": {"exact 1": {"seconds": 3.0, "floor": 2.0}, "prefix_later 1": {}},
        "compiled": {
            "exact 1": {"seconds": 2.5, "floor": 2.0},
            "dual_later 8": {"seconds": 6.0, "floor": 2.0},
            "compile_seconds": 9.0,
        },
    }
    (tmp_path / "gpu.json").write_text(json.dumps(raw))
    found = Machine.read(tmp_path / "gpu.json")
    assert found.over_floor == {"exact": {1280: 1.25}, "dual_later": {256: 3.0}}


def test_guidance_doubles_a_likelihood_and_more_samples_multiply_it() -> None:
    shape = Shape(100, 4, 10)
    one = scale.question_seconds(MEASURED, "exact", shape, {"mc_num": 1})
    assert scale.question_seconds(MEASURED, "exact", shape, {"mc_num": 128}) == 128 * one
    guided = scale.question_seconds(MEASURED, "exact", shape, {"mc_num": 1, "cfg_scale": 0.5})
    assert guided == 2 * one


def test_another_measurement_is_another_file(tmp_path: Path, capsys) -> None:
    raw = json.loads((scale.HERE / "h100.json").read_text())
    raw["ceiling"]["flops"] /= 2
    (tmp_path / "gpu.json").write_text(json.dumps(raw))
    name = "llada-8b-base/gsm8k-1024"
    page = tmp_path / "page.md"
    page.write_text(f"before\n{scale.BEGIN}\nold\n{scale.END}\nafter\n")
    scale.main(["--machine", str(tmp_path / "gpu.json"), "--page", str(page)])
    half = Machine.read(tmp_path / "gpu.json")
    expected = scale.table(half, SHAPES, [1, 8, 64])
    assert page.read_text() == f"before\n{scale.BEGIN}\n{expected}\n\n{scale.END}\nafter\n"
    slow, quick = (
        scale.hours(each, "exact", find(name), SHAPES[name], 1) for each in (half, MEASURED)
    )
    assert slow == pytest.approx(2 * quick)
