"""Arguments of a training run: transformers' own, with our defaults and checks."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainingArguments, get_scheduler
from transformers.integrations.integration_utils import (
    INTEGRATION_TO_CALLBACK,
    get_available_reporting_integrations,
)

from llada_plugins.options.fields import arg, reject_unknown
from llada_plugins.options.startup_messages import silenced

EVENTS = "runs"  # what transformers calls the folder of TensorBoard's files
INSTALL = {"tensorboard": "pip install 'llada-plugins[train]'", "wandb": "pip install wandb"}
AT_LEAST_ONE = (
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "save_total_limit",
    "num_threads",
)
ABOVE_ZERO = ("num_train_epochs", "logging_steps", "save_steps", "eval_steps", "adam_epsilon")
FROM_ZERO = (
    "learning_rate",
    "weight_decay",
    "max_grad_norm",
    "dataloader_num_workers",
    "warmup_steps",
    "router_aux_loss_coef",
)
# names of arguments, the test of their values, and the words for it; NaN passes none
NUMBERS: tuple[tuple[tuple[str, ...], Callable[[float], bool], str], ...] = (
    (AT_LEAST_ONE, lambda value: value >= 1, "at least 1"),
    (ABOVE_ZERO, lambda value: 0 < value < math.inf, "above 0"),
    (FROM_ZERO, lambda value: 0 <= value < math.inf, "a number from 0 up"),
)
NOT_HERE = {  # flags of transformers that would do nothing, or nothing good -> what to do instead
    "resume_from_checkpoint": "--resume continues from the newest checkpoint in output_dir",
    "label_smoothing_factor": "the objectives have none",
    "gradient_checkpointing_kwargs": "every block is computed again, as torch does without "
    "reentrance",
    "activation_checkpointing_kwargs": "every block is computed again, as torch does without "
    "reentrance",
    "use_liger_kernel": "it knows other models only",
    "warmup_ratio": "--warmup_steps below 1 is the share of all updates",
    "group_by_length": "--batches_by_length has batches of rows of similar lengths",
    "overwrite_output_dir": "--overwrite starts again, --resume continues",
    "past_index": "the models have no past",
    "use_legacy_prediction_loop": "there is one evaluation loop",
}
# flags that take one value here
FIXED = {"train_sampling_strategy": "random", "save_safetensors": True}


@dataclass
class RunArguments(TrainingArguments):
    """transformers' TrainingArguments; defaults run a sensible small job."""

    output_dir: str = arg(
        help="folder for checkpoint, metrics.jsonl and run.json; must be empty unless --resume or "
        "--overwrite"
    )
    report_to: list[str] = field(
        default_factory=lambda: ["none"],
        metadata={
            "help": "where else the lines of metrics.jsonl go: tensorboard (event files in "
            f"output_dir/{EVENTS}), wandb, and transformers' other "
            "trackers; all = whatever is installed, none = nowhere, so nothing is sent unasked"
        },
    )
    resume: bool = arg(
        False,
        "continue from the newest checkpoint in output_dir with the flags of its run; of them, "
        "length, precision, max_grad_norm, evaluation, logging and saving may change",
    )
    overwrite: bool = arg(
        False,
        "start again in an output_dir that holds a run: its checkpoints, weights, metrics.jsonl "
        "and event files are deleted",
    )
    lr_scheduler_type: str = arg(
        "cosine",
        "learning-rate schedule after the warm-up: cosine, linear, constant, … (transformers' "
        "names)",
    )
    warmup_steps: float = arg(0.03, "updates of linear warm-up; below 1, the share of all updates")
    logging_steps: float = arg(
        10, "updates between lines of metrics.jsonl; below 1, the share of all updates"
    )
    logging_nan_inf_filter: bool = arg(
        False, "leave it off: a loss that is not finite ends the run"
    )
    disable_tqdm: bool = arg(True, "no progress bar below the log lines")
    dataloader_pin_memory: bool = arg(False, "page-locked memory for batches; they are small here")
    num_threads: int | None = arg(
        None,
        "CPU threads (default: torch's choice); tiny models are fastest on one, by far on busy "
        "cores",
    )
    batches_by_length: bool = arg(
        False,
        "an update takes rows of similar lengths, in random order, so that less is padding; "
        "answers of SFT, whose padding is learned, then learn less of it",
    )
    router_aux_loss_coef: float = arg(
        0.0,
        "weight of a loss that balances the load of experts, of models whose router is a softmax "
        "of all (LLaDA-MoE's config.json says 0.01); 0 = none",
    )
    ddp_find_unused_parameters: bool | None = arg(
        False, "leave it off: every update reaches all that trains"
    )
    remove_unused_columns: bool = arg(False, "leave it off: batches are made by this package")

    @silenced()
    def __post_init__(self) -> None:
        for name in self._VALID_DICT_FIELDS:  # which transformers reads without saying which
            value = getattr(self, name)
            try:
                json.loads(value if isinstance(value, str) and value.startswith("{") else "{}")
            except ValueError as error:
                raise ValueError(f"--{name} {value}: not JSON: {error}") from None
        warmup_steps, self.warmup_steps = self.warmup_steps, 0  # transformers 4 knows no share
        super().__post_init__()
        self.warmup_steps = warmup_steps
        self._check_numbers()
        self._check_router_loss()
        for name, remedy in NOT_HERE.items():
            # which there are depends on the version
            if getattr(self, name, None) not in (None, False, -1, {}):
                raise ValueError(f"--{name} is not supported: leave it out; {remedy}")
        for name, value in FIXED.items():
            if getattr(self, name, value) != value:
                raise ValueError(f"--{name} must be {value}, got {getattr(self, name)}")
        reject_unknown(dict.fromkeys(self.report_to), INTEGRATION_TO_CALLBACK, "--report_to")
        installed = get_available_reporting_integrations()
        missing = [name for name in self.report_to if name not in installed]
        if missing:
            remedy = INSTALL.get(missing[0], "install its package")
            raise ImportError(
                f"--report_to {missing[0]}: it is not installed; {remedy}, or leave it out"
            )

    def _check_numbers(self) -> None:
        """Refuse numbers out of range, NaN among them."""
        for names, allowed, lowest in NUMBERS:
            for name in names:
                value = getattr(self, name)
                if value is not None and not allowed(value):
                    raise ValueError(f"--{name} must be {lowest}, got {value}")
        for name in ("adam_beta1", "adam_beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(
                    f"--{name} must be at least 0 and below 1, got {getattr(self, name)}"
                )
        if self.max_steps == 0 or self.max_steps < -1:
            raise ValueError(
                f"--max_steps must be at least 1, or -1 for whole epochs, got {self.max_steps}"
            )

    def _check_router_loss(self) -> None:
        if self.router_aux_loss_coef and (asks_for_fsdp(self) or self.deepspeed):
            raise ValueError(
                "--router_aux_loss_coef reads the routers' weights whole, which FSDP and DeepSpeed "
                "spread: leave one of them out"
            )

    def get_warmup_steps(self, num_training_steps: int) -> int:
        """Updates of warm-up among so many; the share of transformers 5, in 4 as well."""
        if self.warmup_steps < 1:
            return math.ceil(num_training_steps * self.warmup_steps)
        return int(self.warmup_steps)

    def check_optimizer(self) -> None:
        """Raise ValueError on an optimizer or a schedule that cannot be made.

        A package is missing, or an argument, or one is wrong.
        """
        weight = nn.Parameter(torch.zeros(1))
        try:
            make, arguments = Trainer.get_optimizer_cls_and_kwargs(self)
            optimizer = make([weight], **arguments)
        except (ValueError, ImportError, TypeError, KeyError, AssertionError) as error:
            remedy = "; see --optim_args, which are NAME=VALUE with commas between"
            told = f"--optim {_value(self.optim)}: {error}"
            raise ValueError(told + remedy if self.optim_args else told) from None
        schedule: Any = self.lr_scheduler_kwargs or {}  # a dict; transformers has read JSON
        try:
            get_scheduler(
                self.lr_scheduler_type,
                optimizer,
                num_warmup_steps=1,
                num_training_steps=10,
                scheduler_specific_kwargs=dict(schedule),
            )
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"--lr_scheduler_type {_value(self.lr_scheduler_type)}: {error}; see "
                "--lr_scheduler_kwargs"
            ) from None


def _value(choice: Enum | str) -> str:
    """What the user wrote for an argument that transformers turns into an Enum."""
    return choice.value if isinstance(choice, Enum) else choice


def asks_for_fsdp(arguments: TrainingArguments) -> bool:
    """Is FSDP asked for, by flag or by a configuration of accelerate launch?

    The latter passes it on in the environment.
    """
    return bool(arguments.fsdp) or os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
