"""Runs of the training commands on block-causal models: what is saved, resumed and refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llada_plugins.engine.engine import Engine
from llada_plugins.engine.request import Request
from llada_plugins.files.json_files import read_json
from llada_plugins.models.families import FAMILIES, dense_families, of_family
from llada_plugins.models.llada import LLaDA
from llada_plugins.models.llada_config import LLaDAConfig
from llada_plugins.models.loading import load_model
from tests.family_checkpoints import with_tokenizer
from tests.small_training import short_run
from tests.test_distributed import EPSILON, STEPS, gradients, losses, train
from tests.test_distributed import flags as of_processes
from tests.tolerance import twice_naive
from training import merge, pretrain, remask_sft, router_sft, sft
from training.loop.reading import Reading
from training.runs.presets import TINY_SHAPE

pytestmark = pytest.mark.floats

BLOCKS = ["--attention", "block_causal", "--block_length", "4"]
RUN = short_run(learning_rate=1e-3, max_steps=2)


@pytest.fixture(scope="module")
def a2d(tmp_path_factory) -> Path:
    """A checkpoint that may have either attention; for reading only."""
    return with_tokenizer("a2d_qwen3", tmp_path_factory.mktemp("a2d") / "checkpoint")


def load(folder: Path, **options) -> LLaDA:
    return load_model(folder, device="cpu", dtype="float32", **options)


def given(model: Path, data: Path, out: Path, *more: str) -> list[str]:
    return ["--model", str(model), "--data", str(data), "--output_dir", str(out), *RUN, *more]


def test_what_sft_saves_says_how_it_attends(a2d, tmp_path, sudokus):
    out = tmp_path / "sft"
    evaluated = ("--eval_data", str(sudokus), "--eval_strategy", "steps", "--eval_steps", "1")
    sft.main(given(a2d, sudokus, out, *BLOCKS, *evaluated))
    said = read_json(out / "config.json")
    assert (said["attention"], said["block_length"]) == ("block_causal", 4)
    config = load(out).config
    assert (config.attention, config.block_length) == ("block_causal", 4)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert all(row["flop_utilisation"] > 0 for row in rows if "tokens_per_second" in row)
    assert any("eval_loss" in row for row in rows)
    engine = Engine(pretrained=str(out), device="cpu", gen_length=8)
    assert engine.sampler.block_length == 4
    before, after = (load_file(each / "model.safetensors") for each in (a2d, out))
    assert any(not torch.equal(before[name], after[name]) for name in before)
    # the defaults of the family are not said
    sft.main(given(a2d, sudokus, tmp_path / "plain"))
    assert not {"attention", "block_length"} & read_json(tmp_path / "plain/config.json").keys()


def test_adapters_know_the_blocks_that_they_were_trained_with(a2d, tmp_path, sudokus):
    out, merged = tmp_path / "lora", tmp_path / "merged"
    sft.main(given(a2d, sudokus, out, *BLOCKS, "--lora", "--lora_r", "2"))
    with pytest.raises(ValueError, match="trained with block-causal attention, and the model has"):
        load(a2d, peft=out)
    adapted = load(a2d, peft=out, attention="block_causal")
    assert adapted.config.block_length == 4
    engine = Engine(
        pretrained=str(a2d), peft=str(out), attention="block_causal", device="cpu", gen_length=8
    )
    assert engine.sampler.block_length == 4
    pair = ["--model", str(a2d), "--peft", str(out)]
    with pytest.raises(SystemExit, match="give attention=block_causal"):
        merge.main([*pair, "--output", str(tmp_path / "none")])
    merge.main([*pair, "--output", str(merged), "--attention", "block_causal"])
    found = load(merged)
    assert (found.config.attention, found.config.block_length) == ("block_causal", 4)
    ids = torch.arange(40).view(2, 20)
    assert torch.equal(found(ids), adapted(ids))
    assert not torch.equal(found(ids), load(a2d, attention="block_causal")(ids))


@pytest.mark.parametrize("incorrect", ["answers", pytest.param("samples", marks=pytest.mark.slow)])
def test_a_remasking_head_is_trained_and_decodes(a2d, tmp_path, sudokus, incorrect):
    out = tmp_path / "ups"
    remask_sft.main(given(a2d, sudokus, out, *BLOCKS, "--joint", "--incorrect_from", incorrect))
    assert load(out).config.block_length == 4
    engine = Engine("llada_ups", pretrained=str(out), device="cpu", gen_length=8)
    assert engine.sampler.block_length == 4


@pytest.mark.slow
def test_pretraining_goes_on_in_blocks_and_shows_a_sample(a2d, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be, that is the question. " * 20)
    out = tmp_path / "pretrain"
    pretrain.main(
        [
            *("--model", str(a2d), "--dataset", str(text), "--output_dir", str(out), *BLOCKS),
            *("--eval_data", str(text), "--seq_len", "24", "--gen_length", "8"),
            *(*RUN, "--eval_strategy", "steps", "--eval_steps", "1"),
        ]
    )
    assert load(out).config.block_length == 4
    printed = capsys.readouterr().out
    assert all(f"sample at step {step}: " in printed for step in range(3))


FROM_SCRATCH = [
    # family, flags, its architecture, what its reading is told
    ("sdar", [], "SDARForCausalLM", Reading(False, 4)),
    ("fast_dllm_v2", ["--block_length", "8"], "Fast_dLLM_QwenForCausalLM", Reading(True, 8)),
    ("a2d_llama", BLOCKS, "A2DLlamaLMHeadModel", Reading(False, 4)),
    ("dream", [], "DreamModel", Reading(True, None)),
]


@pytest.mark.parametrize(
    "family, more, architecture, reading",
    [
        pytest.param(*row, id=row[0], marks=[pytest.mark.slow] if row[0] != "sdar" else [])
        for row in FROM_SCRATCH
    ],
)
def test_a_family_begins_from_scratch_and_is_saved_as_one_of_its_checkpoints(
    tmp_path, monkeypatch, family, more, architecture, reading
):
    text, out, read = tmp_path / "text.txt", tmp_path / "out", []
    text.write_text("to be or not to be, that is the question. " * 20)
    given_of = Reading.given
    monkeypatch.setattr(
        Reading, "given", lambda self, *given: read.append(self) or given_of(self, *given)
    )
    shape = ["--d_model", "32", "--n_layers", "2", "--n_heads", "2"]
    pretrain.main(
        [
            *("--family", family, "--dataset", str(text), "--output_dir", str(out), *shape, *more),
            *("--seq_len", "26", "--gen_length", "8", *RUN),
        ]
    )
    assert set(read) == {reading}
    said, model = read_json(out / "config.json"), load(out)
    assert said["architectures"] == [architecture] and model.config.family == family
    assert (model.config.d_model, model.config.head_dim) == (32, 16)
    width = model.config.block_length if model.config.attention == "block_causal" else None
    assert width == reading.block_length
    engine = Engine(pretrained=str(out), device="cpu", gen_length=8)
    [(_, completion)] = engine.generate([Request("to be", engine.sampler)])
    assert completion.num_forwards > 0


def test_every_dense_family_has_a_shape_of_its_own_from_the_numbers_of_a_llada():
    numbers = dict(TINY_SHAPE, vocab_size=300, mask_token_id=299, eos_token_id=298)
    for name in dense_families():
        config = of_family(LLaDAConfig(**numbers), name)
        raw = FAMILIES[name].write_config(config)
        assert replace(FAMILIES[name].read_config(raw, name), family=name) == config
        LLaDA(config)


WIDTH_ALONE = (
    ["--block_length", "4"],
    "--block_length 4 is for models with block-causal attention",
)


@pytest.mark.parametrize(
    "main, more, message",
    [
        (sft, *WIDTH_ALONE),
        (pretrain, *WIDTH_ALONE),
        (sft, [*BLOCKS[:3], "0"], "--block_length must be at least 1, got 0"),
        (router_sft, BLOCKS, "has block-causal attention, where one block alone has masks"),
    ],
)
def test_what_has_no_meaning_is_refused_before_weights_are_read(
    a2d, tmp_path, sudokus, monkeypatch, main, more, message
):
    monkeypatch.setattr(
        "llada_plugins.models.loading.load_weights", lambda *_, **__: pytest.fail("weights read")
    )
    argv = given(a2d, sudokus, tmp_path / "out", *more)
    if main is pretrain:
        argv[argv.index("--data")] = "--dataset"
    with pytest.raises(SystemExit, match=message):
        main.main(argv)


@pytest.mark.parametrize("option", [("--block_length", "4"), ("--attention", "block_causal")])
@pytest.mark.parametrize("main", [sft, pretrain])
def test_a_model_from_scratch_has_no_blocks(tmp_path, sudokus, main, option):
    data = {sft: ("--preset", "sudoku4"), pretrain: ("--dataset", str(sudokus))}
    with pytest.raises(SystemExit, match=f"{option[0]} is of a --model"):
        main.main([*data[main], *option, "--output_dir", str(tmp_path / "out")])


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--family", "llada2"], "--family must be one of llada, illada, .*, got 'llada2'"),
        (["--family", "sdar", "--attention", "full"], "attention=full: a model from scratch is of"),
        (["--family", "dream", "--block_length", "4"], "--block_length 4 is for models with block"),
        (["--model", "tiny", "--family", "sdar"], "--model brings its shape .* leave --family out"),
        (
            ["--family", "sdar", "--seq_len", "10", "--gen_length", "8"],
            "--gen_length 8 exceed the model's context of 10 tokens",
        ),
    ],
    ids=str,
)
def test_a_family_that_cannot_begin_so_is_refused_and_nothing_is_left(
    tmp_path, sudokus, flags, message
):
    with pytest.raises(SystemExit, match=message):
        pretrain.main(["--dataset", str(sudokus), "--output_dir", str(tmp_path / "out"), *flags])
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_complementary_masks_train_and_another_loss_does_not_go_on_with_them(
    a2d, tmp_path, sudokus
):
    out = tmp_path / "out"
    saving = ("--save_strategy", "steps", "--save_steps", "1", "--complementary_masks")
    sft.main(given(a2d, sudokus, out, *BLOCKS, *saving))
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert all(row["loss"] > 0 for row in rows if "loss" in row)
    with pytest.raises(SystemExit, match="complementary_masks"):
        sft.main(given(a2d, sudokus, out, *BLOCKS, *saving[:-1], "--resume"))


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("--lora", "--lora_r", "2")], ids=["all weights", "LoRA"])
def test_a_resumed_run_has_the_weights_of_a_whole_one(a2d, tmp_path, sudokus, more):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    saving = ("--max_steps", "4", "--save_strategy", "steps", "--save_steps", "2")
    sft.main(given(a2d, sudokus, whole, *BLOCKS, *saving, *more))
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "checkpoint-4")
    (weights,) = (path.name for path in cut.glob("*.safetensors"))
    (cut / weights).unlink()
    sft.main(given(a2d, sudokus, cut, *BLOCKS, *saving, *more, "--resume"))
    expected, found = (load_file(out / weights) for out in (whole, cut))
    assert expected.keys() == found.keys()
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())


@pytest.mark.slow
def test_two_processes_make_the_updates_of_one(a2d, tmp_path):
    more = [*BLOCKS, "--adam_epsilon", str(EPSILON)]
    often = ["--gradient_accumulation_steps", "2"]
    for name, number, rest, exact in (
        ("one", 1, often, False),
        ("exact", 1, often, True),
        ("two", 2, [], False),
    ):
        words = of_processes(tmp_path, a2d, tmp_path / name, *more, *rest)
        train(number, words, tmp_path / f"gradients of {name}", exact=exact)
    one, exact, two = (
        [
            torch.cat([gradient.flatten() for _, gradient in sorted(step.items())])
            for step in gradients(tmp_path / f"gradients of {name}")
        ]
        for name in ("one", "exact", "two")
    )
    bound = twice_naive(torch.cat(one), torch.cat(exact))
    for each, other in zip(one, two):
        torch.testing.assert_close(other, each, atol=bound, rtol=0)
    assert len(losses(tmp_path / "two")) == STEPS
