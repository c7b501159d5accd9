"""A run is continued from a whole checkpoint of its own, or refused in one line."""

from __future__ import annotations

import hashlib
import json
import shutil
import zlib
from collections.abc import Callable, Iterable, Mapping, Sized
from itertools import islice
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

from safetensors import SafetensorError, safe_open
from torch import nn
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from llada_plugins.files.atomic import write_whole
from llada_plugins.files.json_files import first_line
from llada_plugins.models.fingerprint import fingerprint, signature

from .saving import STATE, UNFINISHED

RUN = "run.json"
IDENTITY_ROWS = 1000  # of the data that identify it, spread over all of them

# what a checkpoint consists of, and what the files or folders are called that have it
CHECKPOINT_FILES = {
    "weights": ("*.safetensors", "pytorch_model*"),
    "optimizer": ("optimizer*",),
    "schedule": ("scheduler.pt",),
    "state": (STATE,),
}

# TrainingArguments that a resumed run shares with its beginning. The optimizer's and the
# schedule's numbers come with a checkpoint, so that others would have no effect; another
# seed repeats some rows of the epoch and leaves others out. Of the rest, length, precision
# and max_grad_norm take effect from the checkpoint on.
SHARED_ARGUMENTS = (
    "optim",
    "optim_args",
    "optim_target_modules",
    "learning_rate",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
    "seed",
    "data_seed",
    "dataloader_drop_last",
    "batches_by_length",
)

# Options of the commands that may differ, because training does not see them, or because
# `identity` knows model and data by content. A new option is compared unless it is listed.
FREE_OPTIONS = (
    "preset",
    "model",
    "tokenizer",
    "data",
    "dataset",
    "dataset_config",
    "train_split",
    "eval_split",
    "eval_data",
    "eval_rows",
    "token_cache",
    "teacher",
    "trajectories",
    "prompt",
    "gen_length",
    "steps",
    "remask_ratio",
    "temperature",
    "top_k",
    "top_p",
)


def check_whole(checkpoint: Path) -> None:
    """Raise ValueError on a checkpoint of which something is missing or cut short.

    A torn copy or a failing disk leaves it so.

    Reads indices and JSON, not the bytes of tensors: those of a large model take minutes.
    """
    missing = [
        what
        for what, patterns in CHECKPOINT_FILES.items()
        if not any(path for pattern in patterns for path in checkpoint.glob(pattern))
    ]
    if missing == ["optimizer", "schedule"]:
        raise ValueError(
            f"--resume: {checkpoint} has no optimizer and no schedule, as --save_only_model "
            "leaves it; give it as --model of a new run"
        )
    if missing:
        raise ValueError(
            f"--resume: {checkpoint} is damaged, it has no {' and no '.join(missing)}: "
            f"{_without(checkpoint)}"
        )
    for path in sorted(path for path in checkpoint.iterdir() if path.suffix in READERS):
        try:
            READERS[path.suffix](path)
        except (ValueError, OSError, SafetensorError, BadZipFile, EOFError, zlib.error) as error:
            raise ValueError(
                f"--resume: {path} is damaged ({first_line(error)}): {_without(checkpoint)}"
            ) from None


def _without(checkpoint: Path) -> str:
    """What to do without a damaged checkpoint."""
    steps = [
        path.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-")
        for path in checkpoint.parent.glob(f"{PREFIX_CHECKPOINT_DIR}-*")
    ]
    before = sorted(int(step) for step in steps if step.isdigit())[:-1]
    if not before:
        return "there is none before it: start again with --overwrite"
    return f"delete {checkpoint}, and --resume continues from {PREFIX_CHECKPOINT_DIR}-{before[-1]}"


def _read_json(path: Path) -> None:
    json.loads(path.read_text(encoding="utf-8"))


def _read_tensors(path: Path) -> None:
    safe_open(path, "pt").keys()


def _read_pickled(path: Path) -> None:
    """What torch.save writes: a zip archive, whose index stands at its end."""
    with ZipFile(path) as archive:
        for name in archive.namelist():
            # all but the tensors' bytes, whose checksums nobody reads
            if name.endswith("data.pkl"):
                archive.read(name)


READERS: dict[str, Callable[[Path], None]] = {
    ".json": _read_json,
    ".safetensors": _read_tensors,
    ".pt": _read_pickled,
    ".pth": _read_pickled,
    ".bin": _read_pickled,
}


def identity(model: nn.Module, rows: Any) -> dict[str, str]:
    """What a run starts from: the same when it is resumed.

    The model is known by its weights before training, the data by some of its rows.

    rows: by number, or a stream.
    """
    weights = fingerprint(
        {name: signature(name, tensor) for name, tensor in model.state_dict().items()}
    )
    digest = hashlib.sha256()
    if isinstance(rows, Sized):
        digest.update(f"{len(rows)} ".encode())
    for row in _some(rows):
        digest.update(repr(row).encode())
    return {"model": weights, "data": digest.hexdigest()[:16]}


def _some(rows: Any) -> Iterable[Any]:
    """Rows spread over all of them; of a stream, which has only a beginning, the first."""
    if not hasattr(rows, "__len__"):
        return islice(rows, IDENTITY_ROWS)
    total = len(rows)
    return (rows[number] for number in range(0, total, max(1, total // IDENTITY_ROWS)))


def description_of(output: Path) -> dict[str, Any]:
    """What run.json in an output folder says of the run, {} where it says nothing."""
    try:
        run = json.loads((output / RUN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return run if isinstance(run, dict) else {}


def begin(
    output: Path, description: Mapping[str, Any], found: Mapping[str, str], *, resume: bool
) -> None:
    """Write run.json; raises ValueError on resuming another run.

    Removes what a killed process had begun.

    description: `arguments` (of transformers), `options` (of the command) and
    `rows_of_update` are compared with what the run had.
    """
    if resume:
        run = description_of(output)
        before = run.get("identity")
        if not isinstance(before, dict):
            raise ValueError(
                f"--resume: {output / RUN} does not tell which run this is: start again with "
                "--overwrite"
            )
        _check_settings(output, run, json.loads(json.dumps(description)))
        for name, value in found.items():
            if before.get(name) != value:
                other = "another model" if name == "model" else "other data"
                raise ValueError(
                    f"--resume: {output} was trained on {other} ({name} {before.get(name)}, given "
                    f"is {value}): give what {RUN} names, or another output_dir"
                )
    output.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(output / UNFINISHED, ignore_errors=True)
    write_whole(output / RUN, json.dumps({**description, "identity": dict(found)}, indent=1) + "\n")


def _check_settings(output: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    settings = _settings(now)
    for name, value in _settings(before).items():
        given = settings.get(name, value)
        if not _same_setting(name, given, value):
            had, remedy = f"with --{name} {value}", f"give --{name} {value}"
            if value is None:
                had, remedy = f"without --{name}", "leave it out"
            raise ValueError(
                f"--resume: {output} was trained {had}, given is {given}: {remedy}, or another "
                "output_dir"
            )
    rows, given = before.get("rows_of_update"), now.get("rows_of_update")
    if None not in (rows, given) and rows != given:
        raise ValueError(
            f"--resume: an update of {output} took {rows} rows (--per_device_train_batch_size x "
            f"--gradient_accumulation_steps x processes), now it would take {given}: give as "
            "many, or another output_dir"
        )


def _same_setting(name: str, given: Any, before: Any) -> bool:
    # of fused optimizers the states are the same, and which is the default depends on versions
    if name == "optim":
        return given.removesuffix("_fused") == before.removesuffix("_fused")
    return given == before


def _settings(description: Mapping[str, Any]) -> dict[str, Any]:
    arguments, options = description.get("arguments", {}), description.get("options", {})
    return {
        "batches_by_length": False,  # of runs from before there was the flag
        **{name: arguments[name] for name in SHARED_ARGUMENTS if name in arguments},
        **{name: value for name, value in options.items() if name not in FREE_OPTIONS},
    }
