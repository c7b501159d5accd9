"""Router training: the frozen backbone stays as it is, training starts from the plain
model's loss, the control sees no prompt.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from llada_plugins.engine.engine import Engine, Request
from llada_plugins.methods.router import RouterConfig, load_router
from llada_plugins.methods.routing import seeded_embeddings
from llada_plugins.models.loading import load_model
from llada_plugins.tasks import nim
from tests.small_training import short_run
from training import router_sft
from training.data.encoding import encode, vocabulary
from training.data.examples import collate_answers
from training.loop import objectives
from training.loop.random_streams import random_stream
from training.runs import launch
from training.runs import router_run as routing
from training.runs.arguments import RunArguments
from training.runs.command import Run
from training.runs.jobs import Job
from training.runs.launch import run
from training.runs.options import RouterOptions

pytestmark = pytest.mark.floats

RUN = short_run(
    router_heads=2,
    max_positions=8,
    max_steps=6,
    per_device_train_batch_size=8,
    learning_rate=1e-2,
    warmup_steps=0,
    append_eos="false",
)


@pytest.fixture(scope="module")
def job(tiny_checkpoint) -> Job:
    """Nim on the random checkpoint."""
    model = load_model(tiny_checkpoint, device="cpu")
    words = vocabulary(
        tiny_checkpoint,
        model.config.vocab_size,
        model.config.max_sequence_length,
        model.config.eos_token_id,
    )
    train, test = (
        encode(nim.problems(split, 64), words, append_eos=False) for split in ("train", "test")
    )
    return Job(model, train, test, collate_answers(words.eos_id), tiny_checkpoint)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "nim.jsonl"
    rows = [
        {"prompt": position, "completion": answer} for position, answer in nim.problems("train", 64)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def config(**changed) -> RouterConfig:
    return RouterConfig(**{**dict(d_model=32, heads=2, max_positions=8), **changed})


def digest(module: nn.Module) -> str:
    """Of every value of every tensor."""
    found = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        found.update(name.encode() + tensor.detach().contiguous().numpy().tobytes())
    return found.hexdigest()


def randomise(module: nn.Module) -> None:
    """Weights as if trained: a new router's output is zero, which would hide what it reads."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.3, generator=generator)


def logged(folder: Path, name: str) -> list[float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row[name] for row in rows if name in row]


@pytest.mark.parametrize(
    "changed",
    [{}, {"mode": "replace"}, {"layers": 2, "mlp": 16}, {"use_prompt": False}, {"blocks": 2}],
    ids=str,
)
def test_the_router_changes_and_no_bit_of_the_backbone_does(job, tmp_path, changed):
    before = digest(job.model)
    model = routing.routed_model(job, config(**changed), random_stream(0))
    router = digest(model.router)
    arguments = RunArguments(
        output_dir=str(tmp_path / "out"),
        max_steps=2,
        per_device_train_batch_size=8,
        use_cpu=True,
        save_strategy="no",
    )
    prepared = Run(
        job=job.with_model(model),
        objective=objectives.routed_sft(model.mask_id),
        save=routing.save_routed(job.model, ["test"]),
    )
    run(prepared, arguments, ["test"])
    assert digest(job.model) == before
    assert digest(model.router) != router
    assert digest(load_router(tmp_path / "out", job.model)) == digest(model.router)


@pytest.mark.parametrize(
    "changed", [{}, {"layers": 2, "mlp": 16}, {"use_prompt": False}, {"blocks": 2}], ids=str
)
@torch.no_grad()  # with gradients the CPU attends by another kernel, which rounds differently
def test_training_starts_from_exactly_the_plain_models_loss(job, changed):
    model = routing.routed_model(job, config(**changed), random_stream(0))
    batch = job.collate(job.train[:16])
    plain = objectives.sft(model.mask_id)(job.model, batch, random_stream(1))
    routed = objectives.routed_sft(model.mask_id)(model, batch, random_stream(1))
    assert torch.equal(plain.sum, routed.sum) and torch.equal(plain.count, routed.count)


@pytest.mark.parametrize("use_prompt", [True, False])
def test_the_control_gives_every_prompt_the_same_seeds_and_the_router_does_not(job, use_prompt):
    model = routing.routed_model(job, config(use_prompt=use_prompt), random_stream(0))
    randomise(model.router)
    rows = torch.tensor(
        [
            example.input_ids[: example.prompt_length] + [model.mask_id] * 8
            for example in job.train[:2]
        ]
    )
    embeds = seeded_embeddings(
        model.router, job.model.embedding, rows, torch.tensor([7, 7]), model.mask_id
    )
    assert not torch.equal(rows[0], rows[1])
    assert torch.equal(embeds[0, 7:], embeds[1, 7:]) == (not use_prompt)
    assert torch.equal(embeds[:, :7], job.model.embedding(rows[:, :7]))


def test_every_parameter_that_asks_for_a_gradient_gets_one_from_the_answer_alone(job):
    for use_prompt in (True, False):
        model = routing.routed_model(job, config(use_prompt=use_prompt), random_stream(0))
        randomise(model.router)
        objectives.routed_sft(model.mask_id)(
            model, job.collate(job.train[:16]), random_stream(1)
        ).sum.backward()
        trained = {
            name: parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }
        assert all(name.startswith("router.") for name in trained)
        assert all(
            parameter.grad is not None and parameter.grad.abs().sum() > 0
            for parameter in trained.values()
        )


def test_a_seed_decides_the_weights_and_the_global_random_state_is_left_alone(job):
    state = torch.get_rng_state()
    first, again, other = (
        digest(routing.routed_model(job, config(), random_stream(seed)).router)
        for seed in (0, 0, 1)
    )
    assert first == again != other
    assert torch.equal(torch.get_rng_state(), state)


def test_a_run_by_command_lowers_the_held_out_loss_and_leaves_what_the_engine_loads(
    tiny_checkpoint, data, tmp_path
):
    folder = tmp_path / "out"
    router_sft.main(
        [
            "--model",
            str(tiny_checkpoint),
            "--data",
            str(data),
            "--eval_data",
            str(data),
            "--output_dir",
            str(folder),
            *RUN,
        ]
    )
    assert {path.name for path in folder.iterdir()} == {
        "router_config.json",
        "router.safetensors",
        "metrics.jsonl",
        "run.json",
    }
    before, after = logged(folder, "eval_loss")
    assert after < before
    written = json.loads((folder / "router_config.json").read_text())["training"]
    assert written["metrics"] == {"eval_loss_before": before, "eval_loss": after}
    assert written["command"].startswith("python -m training.router_sft --model ")
    answers = []
    for method, options in (("llada", {}), ("llada_ala", {"router": str(folder)})):
        engine = Engine(
            method,
            pretrained=str(tiny_checkpoint),
            device="cpu",
            gen_length=8,
            steps=8,
            batch_size=64,
            **options,
        )
        found = engine.generate(
            [Request(position, engine.sampler) for position, _ in nim.problems("test", 64)]
        )
        answers.append([completion.text for _, completion in sorted(found)])
    assert answers[0] != answers[1]


def test_scaled_seeds_are_in_units_of_the_mask_embedding(job):
    scales = []
    for flags in ([], ["--router_scaled"]):
        options, _ = launch.parse(RouterOptions, "", ["--model", "x", "--output_dir", "x", *flags])
        scales.append(routing.router_config(options, job.model).scale)
    mask = job.model.embedding.weight[job.model.config.mask_token_id].tolist()
    assert scales == [1.0, pytest.approx(math.sqrt(sum(value**2 for value in mask) / len(mask)))]


def test_a_resumed_run_equals_an_uninterrupted_one(tiny_checkpoint, data, tmp_path):
    command = [
        "--model",
        str(tiny_checkpoint),
        "--data",
        str(data),
        "--eval_data",
        str(data),
        *RUN,
        "--save_strategy",
        "steps",
        "--save_steps",
        "4",
    ]
    router_sft.main([*command, "--output_dir", str(tmp_path / "whole")])
    router_sft.main([*command, "--output_dir", str(tmp_path / "cut")])
    (tmp_path / "cut" / "checkpoint-6").rename(tmp_path / "unused")
    for name in ("router.safetensors", "router_config.json"):
        (tmp_path / "cut" / name).unlink()
    router_sft.main([*command, "--output_dir", str(tmp_path / "cut"), "--resume"])
    assert (tmp_path / "cut" / "router.safetensors").read_bytes() == (
        tmp_path / "whole" / "router.safetensors"
    ).read_bytes()
    assert logged(tmp_path / "cut", "loss") == logged(tmp_path / "whole", "loss")
    metrics = [
        json.loads((tmp_path / name / "router_config.json").read_text())["training"]["metrics"]
        for name in ("cut", "whole")
    ]
    assert metrics[0] == metrics[1]


@pytest.mark.parametrize(
    "flags, message",
    [
        ([], "give --preset NAME, or --model DIR with --data FILE.jsonl"),
        (["--preset", "nim"], "--preset must be one of nim_router, sudoku4_router, got 'nim'"),
        (["--model", "tiny"], "--model needs --data, a JSONL file or a hub name"),
        (["--model", "tiny", "--data", "absent.jsonl"], "absent.jsonl: no such data file"),
        (["--router_mode", "add"], "mode must be one of 'residual', 'replace', got 'add'"),
        (["--router_heads", "3"], "d_model (32) of a router must be a multiple of heads (3)"),
        (["--router_layers", "0"], "layers of a router must be at least 1, got 0"),
        (["--router_blocks", "3"], "this router seeds 3 blocks, and there are 2"),
        (
            ["--max_positions", "7"],
            "--max_positions 7 is shorter than the longest answer (9 tokens)",
        ),
        (["--resume"], "--resume: no checkpoint in"),
    ],
)
def test_bad_input_ends_with_one_clear_line(tiny_checkpoint, data, tmp_path, flags, message):
    given = (
        ["--model", str(tiny_checkpoint), "--data", str(data)]
        if flags and flags[0] not in ("--preset", "--model")
        else []
    )
    with pytest.raises(SystemExit) as exit_info:
        router_sft.main([*given, *flags, "--output_dir", str(tmp_path / "out"), "--use_cpu"])
    assert str(exit_info.value.code).startswith("error: ") and message in str(exit_info.value.code)
    assert "\n" not in str(exit_info.value.code)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_two_processes_train_a_router_and_its_control(tiny_checkpoint, data, tmp_path):
    for control in ([], ["--no_prompt"]):
        folder = tmp_path / f"out{len(control)}"
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "torch.distributed.run",
                "--nproc_per_node",
                "2",
                "--standalone",
                "-m",
                "training.router_sft",
                "--model",
                str(tiny_checkpoint),
                "--data",
                str(data),
                "--eval_data",
                str(data),
                "--output_dir",
                str(folder),
                *RUN,
                *control,
            ],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            cwd=Path(__file__).parents[1],
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        before, after = logged(folder, "eval_loss")
        assert after < before
        assert load_router(folder, load_model(tiny_checkpoint, device="cpu")).config.use_prompt == (
            not control
        )


@pytest.mark.parametrize("name", ["nim", "sudoku4"])
def test_the_shipped_router_belongs_to_its_model_and_says_how_it_was_made(name):
    engine = Engine("llada_ala", pretrained=name, device="cpu")
    folder = engine.folder / "router"
    training = json.loads((folder / "router_config.json").read_text())["training"]
    assert (
        training["command"] == f"python -m training.router_sft --preset {name}_router --output_dir "
        f"outputs/{name}_router"
    )
    # it does not fall, with or without the prompt: python -m benchmarks.ala_report
    metrics = training["metrics"]
    assert 0 <= metrics["eval_loss"] - metrics["eval_loss_before"] < 0.01
    assert sum(path.stat().st_size for path in folder.iterdir()) < 1e6
