"""What every training command does around its objective: flags, checks of the user's
input before any work, model and data, the run.
"""

from __future__ import annotations

import logging
import math
import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence, Sized
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
import transformers
from packaging.version import Version
from tqdm.contrib.logging import logging_redirect_tqdm
from transformers.trainer_utils import get_last_checkpoint

from llada_plugins.models.llada import LLaDA
from llada_plugins.options.command_line import dataclass_parser
from training.loop import resuming as checkpoints
from training.loop.objectives import Objective
from training.loop.trainer import METRICS, DiffusionTrainer, Load, Measure, Save

from . import config_file
from .arguments import EVENTS, RunArguments
from .jobs import Job, save_checkpoint
from .presets import PRESETS, Preset, PretrainPreset, PRMPreset

if TYPE_CHECKING:
    pass

logger = logging.getLogger(__name__)

TRANSFORMERS = "4.57"  # the oldest whose Trainer trains here; evaluation takes older ones


# what a run leaves beside its checkpoints
RESULTS = ("*.safetensors", "*.safetensors.index.json", "adapter_config.json")


def parse(
    options: type,
    usage: str,
    argv: Sequence[str] | None,
    presets: Mapping[str, Preset | PRMPreset | PretrainPreset] = PRESETS,
) -> tuple[Any, RunArguments]:
    """An instance of `options` and the run's arguments from a command line; what it
    leaves open, the file of --config says, then --preset.

    Unknown flags are an error, in the file as well.
    """
    check_transformers()
    parser = dataclass_parser([options, RunArguments], usage=usage)
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="YAML or JSON file of flags by name; those of the command line win",
    )
    argv = sys.argv[1:] if argv is None else list(argv)
    try:
        argv = [*config_file.flags(parser, argv), *argv]
        name = parser.parse_args(argv).preset
        if name in presets:
            parser.set_defaults(**presets[name].arguments)
        parsed = parser.parse_args_into_dataclasses(argv, look_for_args_file=False)
        parsed[1].check_optimizer()
    except (ValueError, ImportError, OSError) as error:
        refuse(error)
    logging.basicConfig(
        level=logging.INFO if parsed[1].process_index == 0 else logging.WARNING,
        format="%(message)s",
    )
    if parsed[1].num_threads is not None:
        torch.set_num_threads(parsed[1].num_threads)
    return parsed[0], parsed[1]


def check_transformers() -> None:
    """End the program where transformers is too old to train with."""
    if Version(transformers.__version__) < Version(TRANSFORMERS):
        refuse(
            ImportError(
                f"training needs transformers {TRANSFORMERS} or newer, found "
                f"{transformers.__version__}: "
                f"pip install 'transformers>={TRANSFORMERS}'"
            )
        )


def refuse(error: Exception) -> NoReturn:
    """End the program with one line; for errors in what the user gave."""
    sys.exit(f"error: {error}")


def check_output(arguments: RunArguments) -> None:
    """Refuse an output folder that the run may not write into, or cannot resume from;
    on the first process only.
    """
    folder = Path(arguments.output_dir)
    if arguments.resume and arguments.overwrite:
        raise ValueError("--resume continues a run, --overwrite starts again: give one")
    if arguments.process_index:
        return
    if arguments.resume:
        last = get_last_checkpoint(str(folder)) if folder.is_dir() else None
        if last is None:
            raise ValueError(f"--resume: no checkpoint in {folder}; start without --resume")
        done = int(last.rpartition("-")[2])
        if 0 < arguments.max_steps < done:
            raise ValueError(
                f"--resume: {last} is beyond --max_steps {arguments.max_steps}: give {done} or "
                "more, or another output_dir"
            )
        if not arguments.deepspeed:  # whose checkpoints are its own
            checkpoints.check_whole(Path(last))
    elif folder.exists() and not folder.is_dir():
        raise ValueError(f"output_dir {folder} is a file: give a folder")
    elif folder.is_dir() and any(folder.iterdir()) and not arguments.overwrite:
        raise ValueError(
            f"output_dir {folder} is not empty: give another, or --resume to continue it, or "
            "--overwrite to start again"
        )


def train_logits_alone(model: LLaDA) -> None:
    """Freeze what a loss of the logits does not reach, for whose gradient DDP would
    wait; and say so.
    """
    if model.own_stream:
        logger.warning(
            "the score of this checkpoint's own policy stream stays as it is, while what it reads "
            "changes: python -m training.remask_sft --joint trains both"
        )
    for parameter in model.score_parameters():
        parameter.requires_grad_(False)


def run(
    job: Job,
    objective: Objective,
    arguments: RunArguments,
    command: Sequence[str],
    *,
    save: Save | None = None,
    load: Load | None = None,
    measure: Measure | None = None,
    options: Any = None,
    **extra: Any,
) -> dict[str, float]:
    """Train the job's model and leave checkpoint, metrics.jsonl and run.json (all
    arguments and options) in the output folder.

    Returns the metrics of the last evaluation, none without data for it. save, load (by
    default of a whole model), measure, extra: see trainer.py. options: the command's
    own, a dataclass.
    """
    save = save or save_checkpoint(
        job.tokenizer_folder, {"training": {"command": shlex.join(command)}}
    )
    try:
        if arguments.eval_on_start and job.evaluation is None:
            raise ValueError(
                "--eval_on_start has nothing to evaluate on: give --eval_data FILE, or leave it out"
            )
        trainer = DiffusionTrainer(
            job.model,
            arguments,
            objective=objective,
            save=save,
            collate=job.collate,
            train=job.train,
            evaluation=job.evaluation,
            load=load,
            measure=measure,
            **extra,
        )
        if asks_for_fsdp(arguments) and not trainer.is_fsdp_enabled:
            raise ValueError(
                "FSDP needs accelerators, on CPUs accelerate says nothing and trains with DDP: "
                "leave it out, or take ddp.yaml"
            )
        rows, batch = (
            len(job.train) if isinstance(job.train, Sized) else math.inf,
            arguments.per_device_train_batch_size * arguments.world_size,
        )
        if arguments.dataloader_drop_last and rows < batch:
            raise ValueError(
                f"--dataloader_drop_last leaves nothing of {rows} rows, which are less than a "
                f"batch ({batch}): leave it out"
            )
        if arguments.should_save:
            _begin(
                arguments,
                command,
                options and asdict(options),
                checkpoints.identity(job.model, job.train),
            )
    except (ValueError, OSError) as error:
        refuse(error)
    try:
        # lines go above the bar
        with nullcontext() if arguments.disable_tqdm else logging_redirect_tqdm():
            trainer.train(resume_from_checkpoint=arguments.resume or None)
            trainer.save_model()
            return trainer.evaluate() if job.evaluation else {}
    except (FloatingPointError, OSError) as error:
        refuse(error)
    except KeyError as error:
        if "metric_for_best_model" not in str(error):
            raise
        refuse(ValueError(error.args[0]))
    except KeyboardInterrupt:
        logger.error("interrupted; --resume continues from the newest checkpoint, if there is one")
        sys.exit(130)


def _begin(
    arguments: RunArguments,
    command: Sequence[str],
    options: Mapping[str, Any] | None,
    identity: Mapping[str, str],
) -> None:
    folder = Path(arguments.output_dir)
    results = [path for pattern in ("checkpoint-*", *RESULTS) for path in folder.glob(pattern)]
    for old in [*results, folder / EVENTS, folder / METRICS] if arguments.overwrite else []:
        shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
    rows = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    description = {
        "command": list(command),
        "config": config_file.given(command)[1],
        "options": options or {},
        "rows_of_update": rows,
        "arguments": arguments.to_dict(),
    }
    checkpoints.begin(folder, description, identity, resume=arguments.resume)


def asks_for_fsdp(arguments: RunArguments) -> bool:
    """By flag, or by a configuration of accelerate launch, which passes it on in the
    environment.
    """
    return bool(arguments.fsdp) or os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
