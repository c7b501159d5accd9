"""What every training command does around its objective.

Flags, checks of the user's input before any work, the run.
"""

from __future__ import annotations

import logging
import math
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence, Sized
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import torch
import transformers
from packaging.version import Version
from tqdm.contrib.logging import logging_redirect_tqdm
from transformers.trainer_utils import get_last_checkpoint

from llada_plugins.engine.processes import rejoin
from llada_plugins.options.command_line import dataclass_parser
from training.loop import resuming
from training.loop.length_batches import RowsByLength, lengths_of
from training.loop.metrics_log import METRICS
from training.loop.objectives import Objective
from training.loop.router_balance import balanced, check_balances
from training.loop.trainer import DiffusionTrainer

from . import config_file, restarts
from .arguments import EVENTS, RunArguments, asks_for_fsdp
from .command import Command, Run
from .jobs import load_checkpoint, save_checkpoint
from .presets import PRESETS, Preset, PretrainPreset, PRMPreset

logger = logging.getLogger(__name__)

TRANSFORMERS = "4.57"  # the oldest whose Trainer trains here; evaluation takes older ones

# what a run leaves beside its checkpoints
RESULTS = ("*.safetensors", "*.safetensors.index.json", "adapter_config.json")


def main(command: Command, argv: Sequence[str] | None = None) -> None:
    """Run a training command; ends the program with one line where the input is wrong."""
    argv = sys.argv[1:] if argv is None else argv
    options, arguments = parse(command.options, command.usage, argv, command.presets)
    words = [*command.words, *argv]
    restarts.go_on(arguments)
    try:
        check_output(arguments)
        prepared = command.prepare(options, arguments, words)
    except (ValueError, OSError, ImportError) as error:
        refuse(error)
    metrics = run(prepared, arguments, words, options=options)
    if arguments.should_save and prepared.finish is not None:
        prepared.finish(metrics)


def parse(
    options: type,
    usage: str,
    argv: Sequence[str] | None,
    presets: Mapping[str, Preset | PRMPreset | PretrainPreset] = PRESETS,
) -> tuple[Any, RunArguments]:
    """An instance of `options` and the run's arguments, from a command line.

    What the command line leaves open, the file of --config says, then --preset. Unknown
    flags are an error, in the file as well.
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
        given = parser.parse_args(argv)
        if given.preset in presets:
            parser.set_defaults(**presets[given.preset].arguments)
        rejoin("gloo" if given.use_cpu else given.ddp_backend)
        parsed = parser.parse_args_into_dataclasses(argv, look_for_args_file=False)
        chosen, arguments = parsed[:2]  # after them comes what is of neither, as --config
        _check_epochs(argv, arguments, given.preset if given.preset in presets else None)
        arguments.check_optimizer()
    except (ValueError, ImportError, OSError) as error:
        refuse(error)
    logging.basicConfig(
        level=logging.INFO if arguments.process_index == 0 else logging.WARNING,
        format="%(message)s",
    )
    if arguments.num_threads is not None:
        torch.set_num_threads(arguments.num_threads)
    return chosen, arguments


def _check_epochs(argv: Sequence[str], arguments: RunArguments, preset: str | None) -> None:
    """Raise ValueError on --num_train_epochs where --max_steps decides, perhaps a preset's."""
    flags = {word.partition("=")[0].replace("-", "_") for word in argv if word.startswith("--")}
    if "__num_train_epochs" not in flags or arguments.max_steps < 0:
        return
    origin = "" if preset is None or "__max_steps" in flags else f" of the preset {preset}"
    raise ValueError(
        f"--num_train_epochs has no effect beside --max_steps {arguments.max_steps}{origin}: leave "
        "it out, or give --max_steps -1"
    )


def check_transformers() -> None:
    """End the program where transformers is too old to train with."""
    if Version(transformers.__version__) < Version(TRANSFORMERS):
        refuse(
            ImportError(
                f"training needs transformers {TRANSFORMERS} or newer, found "
                f"{transformers.__version__}: pip install 'transformers>={TRANSFORMERS}'"
            )
        )


def refuse(error: Exception) -> NoReturn:
    """End the program with one line; for errors in what the user gave."""
    sys.exit(f"error: {error}")


# --- the output folder ----------------------------------------------------------------


def check_output(arguments: RunArguments) -> None:
    """Refuse an output folder that the run may not write into, or cannot resume from.

    Only the first process looks. Raises ValueError.
    """
    folder = Path(arguments.output_dir)
    if arguments.resume and arguments.overwrite:
        raise ValueError("--resume continues a run, --overwrite starts again: give one")
    if arguments.process_index:
        return
    if arguments.resume:
        _check_last_checkpoint(arguments, folder)
    elif folder.exists() and not folder.is_dir():
        raise ValueError(f"output_dir {folder} is a file: give a folder")
    elif folder.is_dir() and any(folder.iterdir()) and not arguments.overwrite:
        raise ValueError(
            f"output_dir {folder} is not empty: give another, or --resume to continue it, or "
            "--overwrite to start again"
        )


def _check_last_checkpoint(arguments: RunArguments, folder: Path) -> None:
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
        resuming.check_whole(Path(last))


def _remove_results(folder: Path) -> None:
    """Delete what an earlier run left in the output folder."""
    results = [path for pattern in ("checkpoint-*", *RESULTS) for path in folder.glob(pattern)]
    for old in (*results, folder / EVENTS, folder / METRICS):
        if old.is_dir():
            shutil.rmtree(old)
        else:
            old.unlink(missing_ok=True)


# --- the run --------------------------------------------------------------------------


def run(
    prepared: Run, arguments: RunArguments, command: Sequence[str], *, options: Any = None
) -> dict[str, float]:
    """Train the model and leave checkpoint, metrics.jsonl and run.json in the output folder.

    Returns the metrics of the last evaluation, none without data for it. command: the words
    of the command line. options: the command's own, a dataclass; run.json keeps them.
    """
    try:
        trainer = _trainer(prepared, arguments, command)
        if arguments.should_save:
            _begin(prepared, arguments, command, {} if options is None else asdict(options))
    except (ValueError, OSError) as error:
        refuse(error)
    try:
        return _train(trainer, arguments)
    except (FloatingPointError, OSError) as error:
        refuse(error)
    except KeyError as error:
        if "metric_for_best_model" not in str(error):
            raise
        refuse(ValueError(error.args[0]))
    except KeyboardInterrupt:
        logger.error("interrupted; --resume continues from the newest checkpoint, if there is one")
        sys.exit(130)


def _trainer(prepared: Run, arguments: RunArguments, command: Sequence[str]) -> DiffusionTrainer:
    """The trainer of the run; ValueError where the arguments do not fit model and data."""
    job = prepared.job
    if arguments.eval_on_start and job.evaluation is None:
        raise ValueError(
            "--eval_on_start has nothing to evaluate on: give --eval_data FILE, or leave it out"
        )
    whole_model = save_checkpoint(
        job.tokenizer_folder, {"training": {"command": shlex.join(command)}}
    )
    trainer = DiffusionTrainer(
        job.model,
        arguments,
        objective=_objective(prepared, arguments),
        save=prepared.save or whole_model,
        collate=job.collate,
        train=job.train,
        evaluation=job.evaluation,
        load=load_checkpoint if prepared.save is None else prepared.load,
        measure=prepared.measure,
        callbacks=prepared.callbacks,
        throughput=prepared.throughput,
        row_order=_row_order(job.train, arguments),
    )
    if asks_for_fsdp(arguments) and not trainer.is_fsdp_enabled:
        raise ValueError(
            "FSDP needs accelerators, on CPUs accelerate says nothing and trains with DDP: "
            "leave it out, or take ddp.yaml"
        )
    rows = len(job.train) if isinstance(job.train, Sized) else math.inf
    batch = arguments.per_device_train_batch_size * arguments.world_size
    if arguments.dataloader_drop_last and rows < batch:
        raise ValueError(
            f"--dataloader_drop_last leaves nothing of {rows} rows, which are less than a "
            f"batch ({batch}): leave it out"
        )
    return trainer


def _objective(prepared: Run, arguments: RunArguments) -> Objective:
    """The run's objective, with what --router_aux_loss_coef adds."""
    coefficient = arguments.router_aux_loss_coef
    if not coefficient:
        return prepared.objective
    check_balances(prepared.job.model, coefficient)
    return balanced(prepared.objective, coefficient)


def _row_order(rows: Any, arguments: RunArguments) -> RowsByLength | None:
    """The order that --batches_by_length asks for, None without it."""
    if not arguments.batches_by_length:
        return None
    lengths = lengths_of(rows)
    batch = arguments.train_batch_size * arguments.world_size  # of all processes
    batches = len(lengths) // batch
    if not arguments.dataloader_drop_last:
        batches = math.ceil(len(lengths) / batch)
    an_epoch = math.ceil(batches / arguments.gradient_accumulation_steps)
    seed = arguments.seed if arguments.data_seed is None else arguments.data_seed
    return RowsByLength(lengths, rows_of_update(arguments), an_epoch, seed)


def rows_of_update(arguments: RunArguments) -> int:
    """Rows of an update: of all its micro-batches and processes."""
    return arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size


def _begin(
    prepared: Run, arguments: RunArguments, command: Sequence[str], options: Mapping[str, Any]
) -> None:
    """Clear the output folder if asked to, and write run.json."""
    identity = resuming.identity(prepared.job.model, prepared.job.train)
    folder = Path(arguments.output_dir)
    if arguments.overwrite:
        _remove_results(folder)
    description = {
        "command": list(command),
        "config": config_file.given(command)[1],
        "options": options,
        "rows_of_update": rows_of_update(arguments),
        restarts.LAUNCH: restarts.launch(),
        "arguments": arguments.to_dict(),
    }
    resuming.begin(folder, description, identity, resume=arguments.resume)


def _train(trainer: DiffusionTrainer, arguments: RunArguments) -> dict[str, float]:
    # log lines go above the progress bar
    with nullcontext() if arguments.disable_tqdm else logging_redirect_tqdm():
        trainer.train(resume_from_checkpoint=arguments.resume or None)
        trainer.save_model()
        return trainer.evaluate() if trainer.eval_dataset else {}
