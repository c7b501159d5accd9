"""Two CPU processes over gloo: DDP and FSDP make the updates that one process makes;
the launchers' files are read by accelerate.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DistributedType
from safetensors.torch import load_file, save_file

from llada_plugins.models.loading import load_model
from tests.small_training import write_sudokus
from tests.tolerance import float64_casts, rounding, token_error, twice_naive
from training import remask_sft, sft
from training.loop import trainer
from training.runs.arguments import RunArguments

pytestmark = pytest.mark.floats

CONFIGS = Path(__file__).parents[1] / "configs" / "accelerate"
# updates, their learning rate, and Adam's epsilon where runs are compared within bounds
STEPS, RATE, EPSILON = 3, 1e-3, 1e-2
RECOMPUTE = ("--gradient_checkpointing",)
FSDP = ("--fsdp", "--fsdp_config", str(CONFIGS / "fsdp.json"))
SAVING = ("--save_strategy", "steps", "--save_steps", "2")
LORA = ("--lora", "--lora_r", "2")
HALF = ("--dtype", "bfloat16")


def flags(tmp_path: Path, checkpoint: Path, out: Path, *more: str) -> list[str]:
    data = tmp_path / "data.jsonl"
    if not data.is_file():
        write_sudokus(data, 24)
    return [
        "--model",
        str(checkpoint),
        "--data",
        str(data),
        "--output_dir",
        str(out),
        "--per_device_train_batch_size",
        "4",
        "--max_steps",
        str(STEPS),
        "--logging_steps",
        "1",
        "--learning_rate",
        str(RATE),
        "--num_threads",
        "1",
        "--use_cpu",
        "--save_strategy",
        "no",
        *more,
    ]


def in_processes(number: int, work: Callable[[], None], note: Path) -> None:
    """Run `work` in so many copies of this process, which torch.distributed may join as
    torchrun lets them; all must end well.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(number):
        if child := os.fork():
            children.append(child)
            continue
        try:
            for state in (AcceleratorState, PartialState, GradientState):
                state._reset_state()  # what tests before left in this process
            if number > 1:
                os.environ.update(
                    RANK=str(rank),
                    LOCAL_RANK=str(rank),
                    WORLD_SIZE=str(number),
                    LOCAL_WORLD_SIZE=str(number),
                    MASTER_ADDR="localhost",
                    MASTER_PORT=str(port),
                )
            work()
            os._exit(0)
        except BaseException:
            note.write_text(traceback.format_exc())
            os._exit(1)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [
        0
    ] * number, note.read_text()


def recording_gradients(folder: Path) -> None:
    """Leave the gradients of every update in `folder`, those after all processes have
    added theirs.
    """

    def on_pre_optimizer_step(self, args, state, control, model=None, **_) -> None:
        whole = {
            name.removeprefix("module."): getattr(
                parameter.grad, "full_tensor", parameter.grad.clone
            )()
            for name, parameter in model.named_parameters()
            if parameter.grad is not None
        }
        if args.process_index == 0:
            folder.mkdir(exist_ok=True)
            save_file(
                {name: tensor.contiguous() for name, tensor in whole.items()},
                folder / f"{state.global_step}.safetensors",
            )

    trainer.MetricsLog.on_pre_optimizer_step = on_pre_optimizer_step


def fsdp_on_cpus() -> None:
    """Let accelerate shard on CPUs: it lists the kinds of processes that may, and
    leaves CPUs out without a word (accelerate 1.15).
    """
    plain = AcceleratorState.__init__

    def __init__(self, *arguments, fsdp_plugin=None, **options) -> None:
        plain(self, *arguments, fsdp_plugin=fsdp_plugin, **options)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = PartialState._shared_state["distributed_type"] = (
                DistributedType.FSDP
            )
            self.fsdp_plugin = fsdp_plugin

    AcceleratorState.__init__ = __init__


def slow_to_save() -> None:
    """The second process writes its part of a checkpoint late."""
    plain = trainer.DiffusionTrainer._save_rng_state

    def _save_rng_state(self, output_dir: str) -> None:
        time.sleep(0.3 * self.args.process_index)
        plain(self, output_dir)

    trainer.DiffusionTrainer._save_rng_state = _save_rng_state


def training_in_float64() -> None:
    plain = trainer.DiffusionTrainer.__init__

    def __init__(self, model, *arguments, **options) -> None:
        plain(self, model.double(), *arguments, **options)

    trainer.DiffusionTrainer.__init__ = __init__


def train(
    number: int,
    arguments: Sequence[str],
    gradients: Path,
    main: Callable[[Sequence[str]], None] = sft.main,
    *,
    exact: bool = False,
) -> None:
    """Run the command in so many processes. exact: in float64."""

    def work() -> None:
        slow_to_save()
        recording_gradients(gradients)
        fsdp_on_cpus()
        if exact:
            training_in_float64()
        with float64_casts() if exact else nullcontext():
            main(arguments)

    in_processes(number, work, gradients.with_suffix(".txt"))


def gradients(folder: Path) -> list[dict[str, torch.Tensor]]:
    """Those that a run has left, by update and name."""
    return [load_file(folder / f"{step}.safetensors") for step in range(STEPS)]


def losses(out: Path) -> list[float]:
    return [
        row["loss"]
        for row in map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
        if "loss" in row
    ]


@pytest.mark.parametrize(
    "more, processes_only",
    [
        ((), ()),
        pytest.param(LORA, (), marks=pytest.mark.slow),
        pytest.param((), FSDP, marks=pytest.mark.slow),
        pytest.param(("--gradient_accumulation_steps", "2"), (), marks=pytest.mark.slow),
        pytest.param(RECOMPUTE, FSDP, marks=pytest.mark.slow),
        pytest.param((*LORA, *RECOMPUTE), (), marks=pytest.mark.slow),
        pytest.param((*LORA, *HALF), FSDP, marks=pytest.mark.slow),
    ],
    ids=[
        "DDP",
        "DDP, LoRA",
        "FSDP",
        "DDP, accumulating",
        "FSDP, recomputing",
        "DDP, LoRA, recomputing",
        "FSDP, LoRA in bfloat16",
    ],
)
def test_two_processes_make_the_updates_of_one_that_accumulates_twice_as_often(
    tmp_path, tiny_checkpoint, more, processes_only
):
    one, two = tmp_path / "one", tmp_path / "two"
    more = (*more, "--adam_epsilon", str(EPSILON))
    often = (
        "--gradient_accumulation_steps",
        "4" if "--gradient_accumulation_steps" in more else "2",
    )
    train(1, flags(tmp_path, tiny_checkpoint, one, *more, *often), tmp_path / "gradients of one")
    train(
        1,
        flags(tmp_path, tiny_checkpoint, tmp_path / "exact", *more, *often),
        tmp_path / "exact gradients",
        exact=True,
    )
    train(
        2,
        flags(tmp_path, tiny_checkpoint, two, *more, *processes_only),
        tmp_path / "gradients of two",
    )
    expected, exact, found = (
        gradients(tmp_path / name)
        for name in ("gradients of one", "exact gradients", "gradients of two")
    )
    flat = [
        torch.cat([gradient.flatten() for step in steps for gradient in step.values()])
        for steps in (expected, exact)
    ]
    bound = twice_naive(*flat)
    for step in range(STEPS):
        assert expected[step].keys() == found[step].keys()
        # clipped to a norm of 1; fp32 sums in another order
        for name, gradient in expected[step].items():
            torch.testing.assert_close(
                found[step][name],
                gradient,
                atol=bound,
                rtol=0,
                msg=lambda text, name=name, step=step: f"{name}, update {step + 1}: {text}",
            )
    # An update of Adam is rate * m / (sqrt(v) + epsilon), whose m and sqrt(v) are means
    # of gradients: either errs by no more than these. epsilon is large here, so that a
    # gradient near zero cannot turn an update round.
    moved = STEPS * RATE * 2 * bound / EPSILON
    # A loss adds positive costs. A fresh model has none below a nat, so the sum's
    # relative error is no more than the error of one token
    slope = max(sum(float(gradient.abs().sum()) for gradient in step.values()) for step in expected)
    token = token_error(load_model(tiny_checkpoint, device="cpu"))
    assert losses(two) == pytest.approx(losses(one), rel=token, abs=slope * moved)
    assert len(losses(one)) == STEPS
    (name,) = (path.name for path in one.glob("*.safetensors"))
    before = load_file(tiny_checkpoint / "model.safetensors")
    for key, tensor in load_file(one / name).items():
        torch.testing.assert_close(
            load_file(two / name)[key], tensor, atol=moved + rounding(2 * STEPS, tensor), rtol=0
        )
        assert key not in before or not torch.equal(tensor, before[key])


@pytest.mark.parametrize(
    "more",
    [
        (),
        pytest.param(FSDP, marks=pytest.mark.slow),
        pytest.param((*FSDP, *LORA), marks=pytest.mark.slow),
    ],
    ids=["DDP", "FSDP", "FSDP, LoRA"],
)
@pytest.mark.slow
def test_checkpoints_of_two_processes_load_and_are_resumed_exactly(tmp_path, tiny_checkpoint, more):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for out in (whole, cut):
        train(
            2,
            flags(tmp_path, tiny_checkpoint, out, *more, *SAVING),
            tmp_path / f"gradients of {out.name}",
        )
    assert {"rng_state_0.pth", "rng_state_1.pth"} < {
        path.name for path in (cut / "checkpoint-2").iterdir()
    }
    # by accelerate's FSDP alone
    assert ((cut / "checkpoint-2" / "optimizer.bin").is_file()) == (FSDP[0] in more)
    (weights,) = (path.name for path in cut.glob("*.safetensors"))
    loaded = (
        dict(pretrained=tiny_checkpoint, peft=cut / "checkpoint-2")
        if "--lora" in more
        else dict(pretrained=cut / "checkpoint-2")
    )
    assert (
        load_model(**loaded, device="cpu").config
        == load_model(tiny_checkpoint, device="cpu").config
    )
    shutil.rmtree(cut / f"checkpoint-{STEPS}")
    (cut / weights).unlink()
    train(
        2,
        flags(tmp_path, tiny_checkpoint, cut, *more, *SAVING, "--resume"),
        tmp_path / "gradients of resumed",
    )
    expected, found = (load_file(out / weights) for out in (whole, cut))
    assert expected.keys() == found.keys()
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())
    assert losses(cut) == losses(whole)


@pytest.mark.parametrize(
    "main, more",
    [
        pytest.param(sft.main, (), id="sft, DDP"),
        pytest.param(remask_sft.main, ("--joint",), id="joint, DDP"),
        pytest.param(remask_sft.main, ("--joint", *FSDP), id="joint, FSDP", marks=pytest.mark.slow),
    ],
)
def test_two_processes_save_the_class_that_they_loaded(tmp_path, bi_tower, main, more):
    out = tmp_path / "out"
    train(
        2, flags(tmp_path, bi_tower, out, *more, "--max_steps", "2"), tmp_path / "gradients", main
    )
    before, after = (load_model(folder, device="cpu").state_dict() for folder in (bi_tower, out))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    score = {name for name in before if "linear_confidence" in name or "ln_f_upm" in name}
    assert changed == before.keys() - (set() if "--joint" in more else score)


# --- launchers ------------------------------------------------------------------------

KINDS = {
    "ddp": DistributedType.MULTI_GPU,
    "fsdp": DistributedType.FSDP,
    "deepspeed_zero2": DistributedType.DEEPSPEED,
    "deepspeed_zero3": DistributedType.DEEPSPEED,
}


@pytest.mark.parametrize("name", KINDS)
def test_accelerate_reads_the_file(name):
    config = load_config_from_file(str(CONFIGS / f"{name}.yaml"))
    assert config.distributed_type == KINDS[name]
    assert config.num_processes == 2
    assert not config.use_cpu


def test_every_file_of_the_folder_is_tested_and_the_flags_say_what_the_file_says():
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == set(KINDS)
    of_file = load_config_from_file(str(CONFIGS / "fsdp.yaml")).fsdp_config
    for name, value in json.loads((CONFIGS / "fsdp.json").read_text()).items():
        assert of_file[f"fsdp_{name}"] == (value[0] if isinstance(value, list) else value)


def test_fsdp_is_refused_where_accelerate_would_train_without_it(
    tmp_path, tiny_checkpoint, monkeypatch
):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")  # as accelerate launch leaves it
    with pytest.raises(SystemExit, match="error: FSDP needs accelerators, on CPUs"):
        sft.main(flags(tmp_path, tiny_checkpoint, tmp_path / "out"))
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        ("torch.distributed.run", "--nproc_per_node", "2", "--standalone"),
        (
            "accelerate.commands.launch",
            "--config_file",
            str(CONFIGS / "ddp.yaml"),
            "--main_process_port",
            "0",
        ),
    ],
    ids=["torchrun", "accelerate launch"],
)
def test_launchers_start_two_processes_on_cpus(tmp_path, launcher):
    out = tmp_path / "out"
    subprocess.run(
        [
            sys.executable,
            "-m",
            *launcher,
            "-m",
            "training.sft",
            *flags(tmp_path, Path("tiny"), out),
        ],
        check=True,
        capture_output=True,
        timeout=300,
        cwd=Path(__file__).parents[1],
    )
    last = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["epoch"] == pytest.approx(STEPS * 2 * 4 / 24)
    assert load_model(out, device="cpu") is not None
    assert RunArguments(output_dir=str(out), use_cpu=True).world_size == 1
