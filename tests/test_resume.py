"""Resuming: whatever kills a run and wherever, the weights are those of a run that
nothing killed; refusals; disks that are full.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llada_plugins.files import tensors
from llada_plugins.models.loading import load_model, save_model
from llada_plugins.options.fields import names
from tests.family_checkpoints import with_tokenizer
from tests.small_training import short_run, write_sudokus
from training import remask_sft, sft
from training.create_configs import COMMANDS
from training.loop import resuming as checkpoints
from training.loop import trainer
from training.runs.arguments import RunArguments

pytestmark = pytest.mark.floats

STEPS = 5
RUN = short_run(
    append_eos="false",
    learning_rate=1e-3,
    max_steps=STEPS,
    save_strategy="steps",
    save_steps=1,
    save_total_limit=2,
)


@pytest.fixture(scope="module")
def files(tmp_path_factory, tiny_checkpoint) -> Path:
    """A folder with a random model's checkpoint `model` and rows `data.jsonl`."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "model").symlink_to(tiny_checkpoint)
    write_sudokus(folder / "data.jsonl", 12)
    return folder


@pytest.fixture(scope="module")
def byte_a2d(tmp_path_factory) -> Path:
    """A checkpoint in transformers' own layout with the byte tokenizer."""
    return with_tokenizer("a2d_qwen3", tmp_path_factory.mktemp("a2d") / "checkpoint")


def flags(files: Path, out: Path, *more: str) -> list[str]:
    return [
        "--model",
        str(files / "model"),
        "--data",
        str(files / "data.jsonl"),
        *RUN,
        "--output_dir",
        str(out),
        *more,
    ]


LORA = ("--lora", "--lora_dropout", "0.1", "--gradient_accumulation_steps", "2")


@pytest.fixture(scope="module", params=[(), LORA], ids=["all weights", "LoRA"])
def whole(request, files, tmp_path_factory) -> tuple[Path, tuple[str, ...]]:
    """The output of a run that nothing kills, and its flags."""
    out = tmp_path_factory.mktemp("whole") / "out"
    sft.main(flags(files, out, *request.param))
    return out, request.param


def in_child(work: Callable[[], None]) -> int:
    """What became of `work` in a process of its own, a copy of this one: the signal
    that killed it, negative, or its exit status.
    """
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


FILE_EVENTS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree")


def at_files(folder: Path, act: Callable[[int], None]) -> None:
    """From now on, call `act` with the number of files of `folder` that were opened,
    moved, made or removed, as another is about to be.
    """
    seen = 0

    def hook(event: str, arguments: tuple) -> None:
        nonlocal seen
        if event in FILE_EVENTS and str(arguments[0]).startswith(str(folder)):
            seen += 1
            act(seen)

    sys.addaudithook(hook)


def killed_at(moment: int, folder: Path) -> Callable[[], None]:
    """SIGKILL at the n-th of these moments."""
    return lambda: at_files(
        folder, lambda seen: os.kill(os.getpid(), signal.SIGKILL) if seen == moment else None
    )


def killed_in_update(number: int) -> Callable[[], None]:
    """SIGKILL before the update's gradient."""

    def prepare() -> None:
        plain = trainer.DiffusionTrainer.compute_loss

        def compute_loss(self, *arguments, **options):
            if self.state.global_step == number - 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return plain(self, *arguments, **options)

        trainer.DiffusionTrainer.compute_loss = compute_loss

    return prepare


def killed_inside_a_file(number: int) -> Callable[[], None]:
    """SIGKILL in the middle of the n-th safetensors file."""

    def prepare() -> None:
        written = 0

        def save_file(state, path, metadata=None) -> None:
            nonlocal written
            written += 1
            if written == number:
                Path(path).write_bytes(b"\x80\0\0\0\0\0\0\0{torn")
                os.kill(os.getpid(), signal.SIGKILL)
            plain(state, path, metadata)

        plain, tensors.save_file = tensors.save_file, save_file

    return prepare


def assert_same(out: Path, expected: Path) -> None:
    """Equal weights, bit by bit, and equal losses."""
    name = next(path.name for path in expected.glob("*.safetensors"))
    tensors, found = load_file(expected / name), load_file(out / name)
    assert tensors.keys() == found.keys()
    assert all(torch.equal(tensor, found[key]) for key, tensor in tensors.items())
    losses = [
        [
            row["loss"]
            for row in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
            if "loss" in row
        ]
        for folder in (expected, out)
    ]
    assert losses[0] == losses[1] and len(losses[0]) == STEPS


def check_killed(
    files: Path, whole: tuple[Path, tuple[str, ...]], out: Path, prepare: Callable[[], None]
) -> bool:
    """Kill a run, resume it and compare; whether it lived long enough to leave a checkpoint."""
    expected, more = whole

    def work() -> None:
        prepare()
        sft.main(flags(files, out, *more))

    status = in_child(work)
    assert status == -signal.SIGKILL, status
    has_checkpoint = any(out.glob("checkpoint-*"))
    sft.main(flags(files, out, *more, "--resume" if has_checkpoint else "--overwrite"))
    assert_same(out, expected)
    assert not (out / checkpoints.UNFINISHED).exists()
    kept = {path.name for path in out.glob("checkpoint-*")}
    last = {f"checkpoint-{STEPS - 1}", f"checkpoint-{STEPS}"}
    # one more where the last was in place and none has followed to remove the oldest
    assert last <= kept and len(kept - last) <= 1
    return has_checkpoint


@pytest.mark.parametrize("number", [1, 4])
def test_killed_in_an_update(files, whole, tmp_path, number):
    assert check_killed(files, whole, tmp_path / "out", killed_in_update(number)) == (number > 1)


@pytest.mark.parametrize("number", [3, STEPS + 1])
def test_killed_in_the_middle_of_a_file_of_weights(files, whole, tmp_path, number):
    """The last is that of the finished model."""
    assert check_killed(files, whole, tmp_path / "out", killed_inside_a_file(number)) == (
        number > 1
    )


def file_events(files: Path, whole: tuple[Path, tuple[str, ...]], out: Path) -> int:
    """How many moments `killed_at` knows in a run."""
    count = out.with_suffix(".count")

    def work() -> None:
        seen: list[int] = []
        at_files(out, seen.append)
        sft.main(flags(files, out, *whole[1]))
        count.write_text(str(len(seen)))

    assert in_child(work) == 0
    return int(count.read_text())


@pytest.mark.parametrize("share", [0.5])
@pytest.mark.slow
def test_killed_at_a_file(files, whole, tmp_path, share):
    moment = int(share * file_events(files, whole, tmp_path / "counted"))
    check_killed(files, whole, tmp_path / "out", killed_at(moment, tmp_path / "out"))


@pytest.mark.slow
def test_killed_at_every_fourth_file(files, whole, tmp_path):
    for moment in range(1, file_events(files, whole, tmp_path / "counted") + 1, 4):
        check_killed(
            files, whole, tmp_path / str(moment), killed_at(moment, tmp_path / str(moment))
        )


# --- where it cannot be written -------------------------------------------------------


def full_disk_after(steps: int, size: int) -> None:
    """No file can grow beyond `size` bytes once so many updates are made."""
    plain = trainer.DiffusionTrainer.compute_loss

    def compute_loss(self, *arguments, **options):
        if self.state.global_step == steps:
            resource.setrlimit(
                resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1])
            )
        return plain(self, *arguments, **options)

    trainer.DiffusionTrainer.compute_loss = compute_loss


def message_of(work: Callable[[], None], note: Path) -> str:
    """The line with which `work`, in a process of its own, ends the program."""

    def said() -> None:
        try:
            work()
        except SystemExit as end:
            resource.setrlimit(
                resource.RLIMIT_FSIZE, (resource.getrlimit(resource.RLIMIT_FSIZE)[1],) * 2
            )
            note.write_text(str(end.code))

    assert in_child(said) == 0
    return note.read_text()


@pytest.mark.parametrize("size, file", [(8_000, "weights"), (150_000, "optimizer")])
def test_a_full_disk_ends_with_one_line_and_keeps_the_checkpoint_before(
    files, tmp_path, size, file
):
    out = tmp_path / "out"

    def work() -> None:
        full_disk_after(2, size)
        sft.main(flags(files, out))

    text = message_of(work, tmp_path / "note")
    assert text.startswith(f"error: checkpoint-3 could not be written to {out} (")
    assert "\n" not in text
    assert text.endswith(f"{out / 'checkpoint-2'} is whole: make room, then continue with --resume")
    weights = (files / "model" / "model.safetensors").stat().st_size
    assert (size < weights) == (file == "weights")
    assert sorted(path.name for path in out.iterdir()) == [
        "checkpoint-1",
        "checkpoint-2",
        "metrics.jsonl",
        "run.json",
    ]
    sft.main(flags(files, out, "--resume"))
    assert load_model(out, device="cpu") is not None


def test_a_full_disk_at_the_end_names_the_last_checkpoint(files, tmp_path):
    out = tmp_path / "out"

    def work() -> None:
        plain = trainer.DiffusionTrainer.save_model

        def save_model(self, output_dir=None, _internal_call=False):
            if not _internal_call:
                resource.setrlimit(
                    resource.RLIMIT_FSIZE, (8_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1])
                )
            return plain(self, output_dir, _internal_call)

        trainer.DiffusionTrainer.save_model = save_model
        sft.main(flags(files, out))

    text = message_of(work, tmp_path / "note")
    assert text.startswith("error: the model could not be written to ")
    assert f"{out / f'checkpoint-{STEPS}'} is whole" in text
    assert not list(out.glob("*.safetensors")) and not list(out.glob(".*"))


def test_an_output_that_cannot_be_written_ends_with_one_line(files, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as exit_info:
        sft.main(flags(files, tmp_path / "file" / "out"))
    assert str(exit_info.value.code).startswith("error: ")
    assert "\n" not in str(exit_info.value.code)
    assert "file" in str(exit_info.value.code)


def test_an_error_while_writing_leaves_the_file_as_it_was(tmp_path, make_model, monkeypatch):
    save_model(make_model(), tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()

    def save_file(state, path, metadata=None) -> None:
        Path(path).write_bytes(b"torn")
        raise OSError("No space left on device")

    monkeypatch.setattr("llada_plugins.files.tensors.save_file", save_file)
    with pytest.raises(OSError, match="No space left"):
        save_model(make_model(seed=1), tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"model.safetensors", "config.json"}


# --- what is damaged ------------------------------------------------------------------


def resumed_copy(
    files: Path,
    whole: tuple[Path, tuple[str, ...]],
    out: Path,
    break_file: Callable[[Path], None],
    name: str,
) -> str:
    """The line with which a copy of a run is not resumed after `break_file` was at a
    file of its last checkpoint.
    """
    shutil.copytree(whole[0], out, dirs_exist_ok=True)
    break_file(next((out / f"checkpoint-{STEPS}").glob(name)))
    with pytest.raises(SystemExit) as exit_info:
        sft.main(flags(files, out, *whole[1], "--resume"))
    return str(exit_info.value.code)


BREAK = {
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: path.write_bytes(b""),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
}


@pytest.mark.parametrize(
    "name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "*.safetensors"]
)
@pytest.mark.parametrize("way", BREAK)
def test_a_damaged_checkpoint_is_named_with_the_one_before_it(files, whole, tmp_path, name, way):
    line = resumed_copy(files, whole, tmp_path, BREAK[way], name)
    last = tmp_path / f"checkpoint-{STEPS}"
    assert re.fullmatch(
        f"error: --resume: {last}/{name.replace('*', '.*')} is damaged \\(.+\\): delete {last}, "
        "and --resume continues from "
        f"checkpoint-{STEPS - 1}",
        line,
    )


@pytest.mark.parametrize(
    "name, what",
    [
        ("optimizer.pt", "optimizer"),
        ("scheduler.pt", "schedule"),
        ("trainer_state.json", "state"),
        ("*.safetensors", "weights"),
    ],
)
def test_a_checkpoint_that_lacks_a_part_is_damaged_too_and_deleting_it_helps(
    files, whole, tmp_path, name, what
):
    line = resumed_copy(files, whole, tmp_path, Path.unlink, name)
    assert line.startswith(
        f"error: --resume: {tmp_path / f'checkpoint-{STEPS}'} is damaged, it has no {what}: delete "
    )
    shutil.rmtree(tmp_path / f"checkpoint-{STEPS}")
    sft.main(flags(files, tmp_path, *whole[1], "--resume"))
    assert_same(tmp_path, whole[0])


def test_a_damaged_checkpoint_with_none_before_it_is_told_so(files, whole, tmp_path):
    def alone(path: Path) -> None:
        BREAK["cut"](path)
        shutil.rmtree(path.parents[1] / f"checkpoint-{STEPS - 1}")

    line = resumed_copy(files, whole, tmp_path, alone, "optimizer.pt")
    assert line.endswith(": there is none before it: start again with --overwrite")


@pytest.mark.slow
def test_a_model_whose_files_name_tensors_otherwise_is_resumed_with_the_same_weights(
    files, tmp_path, byte_a2d
):
    for main, more in ((sft, ()), (remask_sft, ("--joint",))):
        whole, cut = (tmp_path / f"{name} {main.__name__}" for name in ("whole", "cut"))
        given = [*flags(files, whole, *more), "--model", str(byte_a2d), "--max_steps", "2"]
        main.main(given)
        shutil.copytree(whole, cut)
        shutil.rmtree(cut / "checkpoint-2")
        (cut / "model.safetensors").unlink()
        main.main([*given, "--output_dir", str(cut), "--resume"])
        expected, found = (load_file(out / "model.safetensors") for out in (whole, cut))
        assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())


# --- what is resumed ------------------------------------------------------------------


def test_other_models_and_other_data_are_refused_by_name(files, whole, tmp_path, make_model):
    expected, more = whole
    before = (expected / "run.json").read_text()
    lines = (files / "data.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "data.jsonl").write_text("".join([*lines[:-1], lines[0]]))
    (tmp_path / "model").mkdir()
    for path in (files / "model").iterdir():
        (tmp_path / "model" / path.name).write_bytes(path.read_bytes())
    model = load_model(files / "model", device="cpu")
    model.embedding.weight.data[0, 0] += 1
    save_model(model, tmp_path / "model")
    for flag, place, what in (
        ("--model", "model", "another model"),
        ("--data", "data.jsonl", "other data"),
    ):
        with pytest.raises(
            SystemExit,
            match=f"^error: --resume: {expected} was trained on {what} .*: give what run.json",
        ) as exit_info:
            sft.main(flags(files, expected, *more, "--resume", flag, str(tmp_path / place)))
        assert "\n" not in str(exit_info.value.code)
    assert (expected / "run.json").read_text() == before


@pytest.mark.parametrize("text", [None, "", "{", "[]", "{}", '{"identity": ["model"]}'])
def test_a_run_that_its_file_does_not_describe_is_not_resumed(tmp_path, text):
    if text is not None:
        (tmp_path / "run.json").write_text(text)
    with pytest.raises(ValueError, match="^--resume: .*run.json does not tell which run this is"):
        checkpoints.begin(tmp_path, {}, {"model": "0"}, resume=True)
    left = [path.read_text() for path in tmp_path.iterdir()]
    assert left == ([] if text is None else [text])


@pytest.mark.parametrize(
    "changed, message",
    [
        (
            ["--optim", "sgd"],
            r"with --optim adamw_torch(_fused)?, given is sgd: give --optim adamw_torch(_fused)?",
        ),
        (
            ["--optim", "adafactor"],
            r"with --optim adamw_torch(_fused)?, given is adafactor: give --optim "
            r"adamw_torch(_fused)?",
        ),
        (
            ["--learning_rate", "1e-4"],
            "with --learning_rate 0.001, given is 0.0001: give --learning_rate 0.001",
        ),
        (
            ["--weight_decay", "0.1"],
            "with --weight_decay 0.0, given is 0.1: give --weight_decay 0.0",
        ),
        (
            ["--lr_scheduler_type", "linear"],
            "with --lr_scheduler_type cosine, given is linear: give --lr_scheduler_type cosine",
        ),
        (
            ["--warmup_steps", "2"],
            "with --warmup_steps 0.03, given is 2.0: give --warmup_steps 0.03",
        ),
        (["--seed", "7"], "with --seed 42, given is 7: give --seed 42"),
        (["--seq_len", "100"], "without --seq_len, given is 100: leave it out"),
    ],
)
def test_other_settings_are_refused_by_name(files, whole, changed, message):
    """The last for rows that it leaves as they are."""
    expected, more = whole
    before = (expected / "run.json").read_text()
    with pytest.raises(
        SystemExit,
        match=f"^error: --resume: {expected} was trained {message}, or another output_dir$",
    ):
        sft.main(flags(files, expected, *more, "--resume", *changed))
    assert (expected / "run.json").read_text() == before


def test_another_size_of_updates_and_fewer_of_them_than_were_made_are_refused(
    files, whole, tmp_path
):
    expected, more = whole
    rows = 8 if more else 4
    with pytest.raises(
        SystemExit,
        match=rf"^error: --resume: an update of {expected} took {rows} rows \(.*\), now it would "
        rf"take {rows // 2}: give",
    ):
        sft.main(flags(files, expected, *more, "--resume", "--per_device_train_batch_size", "2"))
    with pytest.raises(
        SystemExit,
        match=rf"^error: --resume: {expected / f'checkpoint-{STEPS}'} is beyond --max_steps 3: "
        rf"give {STEPS} or more",
    ):
        sft.main(flags(files, expected, *more, "--resume", "--max_steps", "3"))


@pytest.mark.parametrize(
    "changed",
    [
        ["--max_steps", "7"],
        pytest.param(["--bf16"], marks=pytest.mark.slow),
        ["--max_grad_norm", "0.5"],
        ["--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "4"],
    ],
    ids=lambda changed: changed[0],
)
def test_length_precision_clipping_and_the_cut_of_an_update_may_change(files, tmp_path, changed):
    out, more = tmp_path / "out", ("--gradient_accumulation_steps", "2")
    sft.main(flags(files, out, *more))
    shutil.rmtree(out / f"checkpoint-{STEPS}")
    sft.main(flags(files, out, *more, "--resume", *changed))
    steps = [
        row["step"]
        for row in map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
        if "loss" in row
    ]
    assert steps == list(range(1, (7 if "--max_steps" in changed else STEPS) + 1))


def test_what_is_compared_and_what_is_free_are_flags():
    assert set(checkpoints.SHARED_ARGUMENTS) <= {field.name for field in fields(RunArguments)}
    assert set(checkpoints.FREE_OPTIONS) <= {
        name for options, _ in COMMANDS.values() for name in names(options)
    }


def test_optimizers_with_the_same_state_are_the_same(files, whole, tmp_path):
    shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / f"checkpoint-{STEPS}")
    sft.main(flags(files, tmp_path, *whole[1], "--resume", "--optim", "adamw_torch"))
    assert_same(tmp_path, whole[0])


@pytest.mark.parametrize("whole", [LORA], indirect=True, scope="module", ids=["LoRA"])
def test_adapters_are_not_resumed_at_another_scale(files, whole):
    """Which no weight shows."""
    expected, more = whole
    with pytest.raises(
        SystemExit, match="was trained without --lora_alpha, given is 3.0: leave it out"
    ):
        sft.main(flags(files, expected, *more, "--resume", "--lora_alpha", "3"))


def test_a_finished_run_that_is_resumed_makes_no_update_more(files, tmp_path):
    """At a constant learning rate another update would show."""
    constant = ("--lr_scheduler_type", "constant", "--warmup_steps", "0")
    sft.main(flags(files, tmp_path / "out", *constant))
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    sft.main(flags(files, tmp_path / "out", *constant, "--resume"))
    assert all(
        torch.equal(tensor, tensors[name])
        for name, tensor in load_file(tmp_path / "out" / "model.safetensors").items()
    )


def test_a_torn_line_of_metrics_is_dropped_on_resuming(files, tmp_path):
    out = tmp_path / "out"
    sft.main(flags(files, out))
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')
    sft.main(flags(files, out, "--resume"))
    assert all(json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines())


def test_the_best_checkpoint_is_found_where_it_is_and_kept(files, tmp_path):
    out, data = tmp_path / "out", str(files / "data.jsonl")
    best = (
        "--eval_data",
        data,
        "--eval_strategy",
        "steps",
        "--eval_steps",
        "1",
        "--load_best_model_at_end",
        "true",
        "--save_total_limit",
        "1",
    )
    # so high that the first update is the best
    sft.main(flags(files, out, *best, "--learning_rate", "1"))
    state = json.loads(
        (
            max(out.glob("checkpoint-*"), key=lambda path: int(path.name[11:]))
            / "trainer_state.json"
        ).read_text()
    )
    found = Path(state["best_model_checkpoint"])
    assert found.parent == out and found.is_dir()
    weights = load_file(found / "model.safetensors")
    assert all(
        torch.equal(tensor, weights[name])
        for name, tensor in load_file(out / "model.safetensors").items()
    )
