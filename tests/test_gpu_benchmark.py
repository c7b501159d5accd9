"""benchmarks.gpu, tried without a GPU: every section on a tiny shape, and what is left out."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import (
    gpu,
    gpu_bench,
    gpu_block_causal,
    gpu_report,
    gpu_steps,
    gpu_training,
    roofline,
)
from benchmarks.gpu_block_causal import WIDTHS, Place, after_first_step
from benchmarks.random_models import model_config, random_model
from benchmarks.steps import canvas_of
from llada_plugins.diffusion.denoiser import model_denoiser
from llada_plugins.models.compiling import Lack
from llada_plugins.models.layer import Streams
from llada_plugins.models.llada import LLaDA
from llada_plugins.models.mixture import Router
from training.loop.throughput import training_flops

from .test_replay import Recorder
from .tolerance import measured

SMALL = dict(
    shape="tiny",
    device="cpu",
    prompt_length=32,
    gen_length=16,
    block_length=8,
    num_masked=4,
    rows=[1, 2],
    repetitions=1,
)
MODES = "eager", "compiled"
EAGER = ["steps", "published", "answers", "likelihood"]
PARTS = ["quantised", "training"]


def words(**options: object) -> list[str]:
    found = []
    for name, value in options.items():
        values = value if isinstance(value, list) else [value]
        found += [f"--{name}", *map(str, values)]
    return found


@pytest.fixture
def no_compiler(monkeypatch) -> None:
    """Layers are left eager, as where nothing can be compiled."""
    for module in (gpu, gpu_bench):
        monkeypatch.setattr(module, "lacking", lambda device: Lack("no compiler", "get one"))


def test_the_command_measures_every_section_and_writes_table_json_and_plot(
    tmp_path: Path, capsys, no_compiler: None
) -> None:
    files = dict(json=tmp_path / "gpu.json", plot=tmp_path / "gpu.png")
    assert gpu.main(words(**{**SMALL, "rows": [2]}, sections=EAGER, **files)) == 0
    result = json.loads((tmp_path / "gpu.json").read_text())
    assert list(result["sections"]) == EAGER and result["not_run"] == []
    steps = result["sections"]["steps"]
    assert list(steps) == [f"{form} 2" for form in gpu_steps.FORMS]
    assert all(each["seconds"] > 0 and each["num_calls"] > 0 for each in steps.values())
    assert result["sections"]["published"]["same_share"] == 1 and result["same_tokens"]
    assert set(result["sections"]["answers"]) == {"2"}
    table = capsys.readouterr().out
    assert "x floor" in table and "masked rows/s" in table and "not run" not in table
    assert "compiled" not in table
    assert (tmp_path / "gpu.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_training_and_8_bit_steps_are_measured(capsys, tmp_path: Path, no_compiler: None) -> None:
    options = {**SMALL, "rows": [1], "gen_length": 8}
    assert gpu.main(words(**options, sections=PARTS, json=tmp_path / "gpu.json")) == 0
    found = json.loads((tmp_path / "gpu.json").read_text())["sections"]
    assert list(found["quantised"]) == list(gpu.EIGHT_BITS)
    for forms in found["quantised"].values():
        assert "lack" in forms or set(forms) == {"exact 1", "dual_later 1"}
    assert list(found["training"]) == list(gpu_training.WORKS)
    assert all(each["tokens_per_second"] > 0 for each in found["training"].values())
    assert "% of the ceiling" in capsys.readouterr().out


@pytest.mark.parametrize("kind", gpu_training.WORKS)
def test_updates_train_what_is_new_and_leave_the_models_weights(kind: str) -> None:
    model = random_model(model_config("tiny", 64), torch.device("cpu"), seed=0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    work = gpu_training.WORKS[kind](model, 16)
    update = gpu_training.updates(work, gpu_training.batch_of(model, 16, seed=0), torch.float32)
    new = [each for each in work.model.parameters() if each.requires_grad]
    old = [each.detach().clone() for each in new]
    assert update().isfinite()
    assert any(not torch.equal(one, other) for one, other in zip(new, old))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(weight.requires_grad for weight in model.parameters())


def test_the_flops_of_a_token_are_those_of_what_trains() -> None:
    """P weights, A the attention's: 6 P + A to train all, 4 P + A for adapters, a third frozen."""
    model = random_model(model_config("tiny", 64), torch.device("cpu"), seed=0)
    weights = training_flops(model, 0) / 6
    attention = training_flops(model, 16) - 6 * weights
    lora, remask = (gpu_training.WORKS[kind](model, 16).flops for kind in ("LoRA", "Remask SFT"))
    assert lora == pytest.approx(4 * weights + attention)
    assert remask == pytest.approx(2 * weights + attention / 3)


def test_a_part_without_time_says_so() -> None:
    bench = gpu.Bench(None, None, None, None, True, deadline=0.0)
    found = bench.each_in_time(["fp8"], lambda name: {})
    assert found == {"fp8": {"lack": "no time was left"}}
    assert gpu_report.TABLES["quantised"](found) == ["fp8: not run: no time was left"]
    [line] = gpu_report.TABLES["training"](found)
    assert line.endswith("not run: no time was left")


@pytest.mark.slow
def test_compiled_layers_are_measured_and_left_eager_afterwards() -> None:
    sections = ["published", "likelihood", "compiled", "compiled_answers", "training"]
    options = gpu.Options(**{**SMALL, "rows": [1], "sections": sections})
    result = gpu.run(options)
    found = result["sections"]["compiled"]
    if "lack" not in found:
        assert found["compile_seconds"] > 0 and found["exact 1"]["seconds"] > 0
        assert result["sections"]["compiled_answers"]["1"]["forwards_per_second"] > 0
        ratios = result["sections"]["published"]["ratios"]
        assert {*ratios} == {f"{a}, {b}" for a in ("greedy", "sampled") for b in MODES}
        assert {*result["sections"]["likelihood"]} == {"published", *MODES}
    assert not result["failed"] and "compiled_answers" in gpu_report.table(result)


@pytest.mark.slow
def test_a_block_causal_step_has_its_section_with_both_widths_of_blocks(
    tmp_path: Path, no_compiler: None, capsys
) -> None:
    options = {**SMALL, "rows": [2], "gen_length": 32}
    file = tmp_path / "gpu.json"
    assert gpu.main(words(**options, sections=["block_causal"], json=file)) == 0
    found = json.loads(file.read_text())["sections"]["block_causal"]["tiny-gqa"]
    assert list(found["eager"]) == [f"block {width} 2" for width in WIDTHS]
    assert all(min(each["seconds"], each["floor"]) > 0 for each in found["eager"].values())
    table = capsys.readouterr().out
    assert "block 32 2" in table and "not run: no compiler: get one" in table


@pytest.mark.slow
def test_block_causal_steps_are_measured_with_compiled_layers() -> None:
    options = gpu.Options(**{**SMALL, "rows": [1], "gen_length": 32, "sections": ["block_causal"]})
    result = gpu.run(options)
    found = result["sections"]["block_causal"]["tiny-gqa"]["compiled"]
    if "lack" not in found:
        assert found["compile_seconds"] > 0 and found["block 4 1"]["seconds"] > 0
    assert not result["failed"] and "compiled layers:" in gpu_report.table(result)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_later_block_causal_step_computes_one_block_and_what_a_forward_of_all_does(
    width: int, monkeypatch
) -> None:
    place = Place.of(70, width)
    config = model_config("tiny-gqa", place.length, width)
    model = random_model(config, torch.device("cpu"), seed=0)
    tokens, columns = place.tokens(model, 2, seed=0), torch.arange(width).expand(2, -1)
    canvas = canvas_of(tokens, place.sampler())

    def of_all(model: LLaDA) -> Tensor:
        whole = model_denoiser(model)(canvas._replace(blocks=width), place.window)
        return whole.logits_at(columns)

    with torch.inference_mode():
        later, computed = after_first_step(model, place, tokens), []
        monkeypatch.setattr(model, "streams", noting(model.streams, computed))
        found = later(canvas, place.window).logits_at(columns)
        monkeypatch.undo()
        assert computed == [place.window] and place.work.columns == width
        assert (found - of_all(model)).abs().max() <= measured(of_all, model)


def noting(streams: Callable, computed: list[slice]) -> Callable:
    """A model's streams; computed collects the columns of each forward."""

    def noted(*given: object, **options: Any) -> Streams:
        computed.append(options["columns"])
        return streams(*given, **options)

    return noted


def test_every_block_causal_step_is_replayed_where_forwards_can_be() -> None:
    """So memory that stays in place is free again after each of them."""
    model = random_model(model_config("tiny-gqa", 64, 4), torch.device("cpu"), seed=0)
    model.compile_layers("off", make_graph=Recorder)
    options = gpu.Options(**{**SMALL, "rows": [2, 1]})
    bench = gpu.Bench(model, options, roofline.Ceiling(1.0, 1.0), "cpu", True)
    places = [Place.of(64, width) for width in WIDTHS]
    gpu_block_causal.steps(bench, places, [None] * 4)
    captured = {
        (shape.num_rows, shape.width)
        for shape, forward in model.replays.forwards.kept.items()
        if forward.captured.graph is not None
    }
    assert captured == {(rows, width) for rows in (1, 2) for width in WIDTHS}


def test_the_floor_of_a_block_causal_step_is_that_of_one_block_with_the_rest_kept() -> None:
    place = Place.of(70, 4)
    assert place == Place(length=68, width=4, num_masked=2)
    # of two masked tokens, then of one
    assert place.num_steps == 2
    assert place.work == roofline.row_work("dual_later", 68, place.window.start, 4, 1)


def test_the_floor_of_a_mixture_has_the_experts_that_tokens_take() -> None:
    """Tokens of one id and position take the same: of a block of masks few, of others many."""
    config = dataclasses.replace(
        model_config("tiny-gqa", 64, 4), num_experts=8, experts_per_token=2, router="softmax"
    )
    model = random_model(config, torch.device("cpu"), seed=0)
    taken = gpu_block_causal.num_experts(model, Place.of(64, 4), 2, seed=0)
    assert taken is not None and 2 <= taken <= 8
    with torch.no_grad():
        for part in model.modules():
            if isinstance(part, Router):
                part.weight.zero_()  # all experts are equally likely: of ties the first are taken
    assert gpu_block_causal.num_experts(model, Place.of(64, 4), 2, seed=0) == 2
    dense = random_model(model_config("tiny-gqa", 64, 4), torch.device("cpu"), seed=0)
    assert gpu_block_causal.num_experts(dense, Place.of(64, 4), 2, seed=0) is None
    work = roofline.Work(8, 0, 0)
    read = [roofline.num_bytes(config, work, 2, experts) for experts in (2, 3, None)]
    expert = 2 * config.n_layers * 3 * config.d_model * config.mlp_hidden_size
    assert read[1] - read[0] == expert and read[2] - read[0] == 6 * expert


def test_long_work_is_measured_a_few_times(monkeypatch) -> None:
    """The first time may compile; the others tell how long it is."""
    options = gpu.Options(**{**SMALL, "repetitions": 9})
    model = SimpleNamespace(device=torch.device("cpu"))
    bench = gpu.Bench(model, options, None, "cpu", True)
    taken: list[float] = []  # what is left of the times that work will have
    monkeypatch.setattr(gpu_bench, "timed", lambda work, device: SimpleNamespace(cpu=taken.pop()))
    for seconds, times in ((0.1, 4 + 9), (0.5, 2 + 3)):
        taken[:] = [*[seconds] * 99, 9]
        assert bench.median(lambda: None) == seconds
        assert len(taken) == 100 - times


@pytest.mark.parametrize("num_masked", range(1, 20))
def test_the_masked_tokens_of_a_mean_step_are_those_that_steps_meet(num_masked: int) -> None:
    """Counted one by one: a step takes an equal share of what is left, rounded up."""
    for num_steps in range(1, num_masked + 1):
        left, met = num_masked, []
        for step in range(num_steps):
            met.append(left)
            left -= -(-left // (num_steps - step))  # the larger share first
        assert left == 0
        assert roofline.mean_left(num_masked, num_steps) == sum(met) // num_steps


@pytest.mark.parametrize("form", gpu_steps.FORMS)
def test_a_step_leaves_the_canvas_for_the_next_repetition(form: str) -> None:
    options = gpu.Options(**SMALL)
    model = random_model(model_config("tiny", 64), torch.device("cpu"), seed=0)
    tokens, window = gpu_steps.canvas_in_work(model, options, 2)
    mask = model.special_tokens.mask
    masked = tokens == mask
    assert masked[:, window].sum(1).tolist() == [4, 4] and masked[:, window.stop :].all()
    assert not masked[:, : window.start].any()
    steps = gpu_steps.steps_of(form, model, options, 2)
    steps()
    steps()
    assert torch.equal(gpu_steps.canvas_in_work(model, options, 2)[0], tokens)


def test_a_section_without_time_is_left_out_and_told(monkeypatch) -> None:
    clock = iter(range(0, 10_000, 100))
    monkeypatch.setattr(gpu, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(roofline, "measured_ceiling", lambda *_: roofline.Ceiling(1e12, 1e12))
    monkeypatch.setattr(gpu, "SECTIONS", dict.fromkeys(gpu.ORDER, lambda bench: {}))
    monkeypatch.setattr(gpu_report, "TABLES", dict.fromkeys(gpu.ORDER, lambda found: ["done"]))
    result = gpu.run(gpu.Options(**SMALL, seconds=350))
    assert list(result["sections"]) == ["steps", "published"]
    assert result["section_seconds"] == {"steps": 100, "published": 100}
    told = gpu_report.table(result).splitlines()[-1]
    assert told == f"not run, for want of time: {', '.join(gpu.ORDER[2:])}"


def test_a_section_that_fails_ends_no_other_and_the_status_tells(
    monkeypatch, tmp_path, capsys, no_compiler: None
):
    def fails(bench: gpu.Bench) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory\nand more")

    monkeypatch.setitem(gpu.SECTIONS, "steps", fails)
    file = tmp_path / "gpu.json"
    assert gpu.main(words(**SMALL, sections=["steps", "published"], json=file)) == 1
    result = json.loads(file.read_text())
    assert list(result["sections"]) == ["published"] and result["not_run"] == []
    assert "steps failed: CUDA out of memory\n" in capsys.readouterr().out


def test_tokens_that_differ_in_bfloat16_alone_are_told() -> None:
    found = dict(ratios={}, same_share=0.75, same_in_float32=True)
    assert gpu_report.TABLES["published"](found) == [
        "same greedy tokens: 75 %, 100 % in float32: the published loop ranks in the weights' "
        "precision"
    ]


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(rows=[0]), "rows must be numbers from 1 up"),
        (dict(sections=["step"]), "sections must be some of steps, published, answers"),
        (dict(num_masked=9), "num_masked must be from 1 to block_length"),
        (dict(json="/no/such/folder/x.json"), "its folder does not exist"),
        (dict(plot="x.gif"), "plot must end in"),
        (dict(gen_length=20), "gen_length"),
    ],
)
def test_bad_options_are_refused_before_any_work(change: dict, message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        gpu.main(words(**{**SMALL, **change}))
