"""What every training command does around its objective: flags, checks of the user's input before any work, model and data, the run."""
from __future__ import annotations

import json
import logging
import math
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence, Sized
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import torch
import transformers
from packaging.version import Version
from torch import Tensor, nn
from tqdm.contrib.logging import logging_redirect_tqdm
from transformers import Trainer, TrainingArguments, get_scheduler
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations
from transformers.trainer_utils import get_last_checkpoint

from llada_plugins.models.llada import LLaDA, LLaDAConfig, empty_like, initialise
from llada_plugins.models.loading import load_model, read_config, resolve, save_model
from llada_plugins.options.fields import arg, reject_unknown
from llada_plugins.options.startup_messages import silenced
from llada_plugins.reports.render import dataclass_parser
from training.data import hub
from training.data.byte_tokenizer import EOS, MASK, byte_tokenizer
from training.data.rows import (
    Example,
    Examples,
    Vocabulary,
    collate_answers,
    encode,
    read_hub,
    read_jsonl,
    vocabulary,
)
from training.loop import resuming as checkpoints
from training.loop.objectives import Objective
from training.loop.trainer import METRICS, DiffusionTrainer, Load, Measure, Save, noise
from training.step_data import StepExample

from . import config_file
from .presets import PRESETS, Preset, PretrainPreset, PRMPreset

if TYPE_CHECKING:
    from training.sft import SFTOptions

logger = logging.getLogger(__name__)

TRANSFORMERS = "4.57"        # the oldest whose Trainer trains here; evaluation takes older ones
EVENTS = "runs"        # what transformers calls the folder of TensorBoard's files
INSTALL = {"tensorboard": "pip install 'llada-plugins[train]'", "wandb": "pip install wandb"}
RESULTS = ("*.safetensors", "*.safetensors.index.json", "adapter_config.json")        # what a run leaves beside its checkpoints
AT_LEAST_ONE = ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps", "save_total_limit", "num_threads")
ABOVE_ZERO = ("num_train_epochs", "logging_steps", "save_steps", "eval_steps", "adam_epsilon")
FROM_ZERO = ("learning_rate", "weight_decay", "max_grad_norm", "dataloader_num_workers", "warmup_steps")
NOT_HERE = {        # flags of transformers that would do nothing, or nothing good -> what to do instead
    "resume_from_checkpoint": "--resume continues from the newest checkpoint in output_dir",
    "label_smoothing_factor": "the objectives have none",
    "gradient_checkpointing_kwargs": "every block is computed again, as torch does without reentrance",
    "activation_checkpointing_kwargs": "every block is computed again, as torch does without reentrance",
    "use_liger_kernel": "it knows other models only",
    "warmup_ratio": "--warmup_steps below 1 is the share of all updates",
    "group_by_length": "rows are drawn at random",
    "overwrite_output_dir": "--overwrite starts again, --resume continues",
    "past_index": "the models have no past",
    "use_legacy_prediction_loop": "there is one evaluation loop",
}
FIXED = {"train_sampling_strategy": "random", "save_safetensors": True}        # flags that take one value here
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "chat_template.json",
    "additional_chat_templates/*.jinja", "added_tokens.json", "vocab.json", "merges.txt", "tokenizer.model")


@dataclass
class RunArguments(TrainingArguments):
    """transformers' TrainingArguments; defaults run a sensible small job."""

    output_dir: str = arg(help="folder for checkpoint, metrics.jsonl and run.json; must be empty unless --resume or --overwrite")
    report_to: list[str] = field(default_factory=lambda: ["none"], metadata={
        "help": f"where else the lines of metrics.jsonl go: tensorboard (event files in output_dir/{EVENTS}), wandb, and transformers' other "
                "trackers; all = whatever is installed, none = nowhere, so nothing is sent unasked"})
    resume: bool = arg(False, "continue from the newest checkpoint in output_dir with the flags of its run; of them, length, precision, max_grad_norm, "
                             "evaluation, logging and saving may change")
    overwrite: bool = arg(False, "start again in an output_dir that holds a run: its checkpoints, weights, metrics.jsonl and event files are deleted")
    lr_scheduler_type: str = arg("cosine", "learning-rate schedule after the warm-up: cosine, linear, constant, … (transformers' names)")
    warmup_steps: float = arg(0.03, "updates of linear warm-up; below 1, the share of all updates")
    logging_steps: float = arg(10, "updates between lines of metrics.jsonl; below 1, the share of all updates")
    logging_nan_inf_filter: bool = arg(False, "leave it off: a loss that is not finite ends the run")
    disable_tqdm: bool = arg(True, "no progress bar below the log lines")
    dataloader_pin_memory: bool = arg(False, "page-locked memory for batches; they are small here")
    num_threads: int | None = arg(None, "CPU threads (default: torch's choice); tiny models are fastest on one, by far on busy cores")
    ddp_find_unused_parameters: bool | None = arg(False, "leave it off: every update reaches all that trains")
    remove_unused_columns: bool = arg(False, "leave it off: batches are made by this package")

    @silenced()
    def __post_init__(self) -> None:
        for name in self._VALID_DICT_FIELDS:        # which transformers reads without saying which
            value = getattr(self, name)
            try:
                json.loads(value if isinstance(value, str) and value.startswith("{") else "{}")
            except ValueError as error:
                raise ValueError(f"--{name} {value}: not JSON: {error}") from None
        warmup_steps, self.warmup_steps = self.warmup_steps, 0        # transformers 4 knows no share
        super().__post_init__()
        self.warmup_steps = warmup_steps
        self._check_numbers()
        for name, remedy in NOT_HERE.items():
            if getattr(self, name, None) not in (None, False, -1, {}):        # which there are depends on the version
                raise ValueError(f"--{name} is not supported: leave it out; {remedy}")
        for name, value in FIXED.items():
            if getattr(self, name, value) != value:
                raise ValueError(f"--{name} must be {value}, got {getattr(self, name)}")
        reject_unknown(dict.fromkeys(self.report_to), INTEGRATION_TO_CALLBACK, "--report_to")
        if missing := [name for name in self.report_to if name not in get_available_reporting_integrations()]:
            remedy = INSTALL.get(missing[0], "install its package")
            raise ImportError(f"--report_to {missing[0]}: it is not installed; {remedy}, or leave it out")

    def _check_numbers(self) -> None:
        """So written that NaN is refused everywhere."""
        for names, lowest in ((AT_LEAST_ONE, "at least 1"), (ABOVE_ZERO, "above 0"), (FROM_ZERO, "a number from 0 up")):
            for name in names:
                value = getattr(self, name)
                if value is not None and not (value >= 1 if names is AT_LEAST_ONE else 0 < value < math.inf if names is ABOVE_ZERO
                                              else 0 <= value < math.inf):
                    raise ValueError(f"--{name} must be {lowest}, got {value}")
        for name in ("adam_beta1", "adam_beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"--{name} must be at least 0 and below 1, got {getattr(self, name)}")
        if self.max_steps == 0 or self.max_steps < -1:
            raise ValueError(f"--max_steps must be at least 1, or -1 for whole epochs, got {self.max_steps}")

    def get_warmup_steps(self, num_training_steps: int) -> int:
        """Updates of warm-up among so many; the share of transformers 5, in 4 as well."""
        share = self.warmup_steps < 1
        return math.ceil(num_training_steps * self.warmup_steps) if share else int(self.warmup_steps)

    def check_optimizer(self) -> None:
        """Raise ValueError on an optimizer or a schedule that cannot be made: a package is missing, or an argument, or one is wrong."""
        weight = nn.Parameter(torch.zeros(1))
        try:
            make, arguments = Trainer.get_optimizer_cls_and_kwargs(self)
            optimizer = make([weight], **arguments)
        except (ValueError, ImportError, TypeError, KeyError, AssertionError) as error:
            remedy = "; see --optim_args, which are NAME=VALUE with commas between" if self.optim_args else ""
            raise ValueError(f"--optim {self.optim.value}: {error}{remedy}") from None
        try:
            get_scheduler(self.lr_scheduler_type, optimizer, num_warmup_steps=1, num_training_steps=10,
                          scheduler_specific_kwargs=dict(self.lr_scheduler_kwargs or {}))
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"--lr_scheduler_type {self.lr_scheduler_type.value}: {error}; see --lr_scheduler_kwargs") from None


class Job(NamedTuple):
    """A model, its data and the folder that has its tokenizer."""

    model: nn.Module
    train: list[Example] | list[StepExample]
    evaluation: list[Example] | list[StepExample] | None
    collate: Callable[[Sequence[Any]], dict[str, Tensor]]        # of those rows
    tokenizer_folder: Path


def parse(options: type, usage: str, argv: Sequence[str] | None,
          presets: Mapping[str, Preset | PRMPreset | PretrainPreset] = PRESETS) -> tuple[Any, RunArguments]:
    """An instance of `options` and the run's arguments from a command line; what it leaves open, the file of --config says, then --preset.

    Unknown flags are an error, in the file as well.
    """
    check_transformers()
    parser = dataclass_parser([options, RunArguments], usage=usage)
    parser.add_argument("--config", metavar="FILE", help="YAML or JSON file of flags by name; those of the command line win")
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
    logging.basicConfig(level=logging.INFO if parsed[1].process_index == 0 else logging.WARNING, format="%(message)s")
    if parsed[1].num_threads is not None:
        torch.set_num_threads(parsed[1].num_threads)
    return parsed[0], parsed[1]


def check_transformers() -> None:
    """End the program where transformers is too old to train with."""
    if Version(transformers.__version__) < Version(TRANSFORMERS):
        refuse(ImportError(f"training needs transformers {TRANSFORMERS} or newer, found {transformers.__version__}: "
                           f"pip install 'transformers>={TRANSFORMERS}'"))


def refuse(error: Exception) -> NoReturn:
    """End the program with one line; for errors in what the user gave."""
    sys.exit(f"error: {error}")


def check_output(arguments: RunArguments) -> None:
    """Refuse an output folder that the run may not write into, or cannot resume from; on the first process only."""
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
            raise ValueError(f"--resume: {last} is beyond --max_steps {arguments.max_steps}: give {done} or more, or another output_dir")
        if not arguments.deepspeed:        # whose checkpoints are its own
            checkpoints.check_whole(Path(last))
    elif folder.exists() and not folder.is_dir():
        raise ValueError(f"output_dir {folder} is a file: give a folder")
    elif folder.is_dir() and any(folder.iterdir()) and not arguments.overwrite:
        raise ValueError(f"output_dir {folder} is not empty: give another, or --resume to continue it, or --overwrite to start again")


def preset_job(name: str, arguments: RunArguments, presets: Mapping[str, Preset] = PRESETS) -> Job:
    """A preset's model and data; of a model from scratch, the tokenizer is written into the output folder."""
    if name not in presets:
        raise ValueError(f"--preset must be one of {', '.join(presets)}, got {name!r}")
    preset = presets[name]
    if isinstance(preset.model, str):
        folder, words = _checkpoint(preset.model)
        model = _trainable(folder)
    else:
        folder = Path(arguments.output_dir)
        model, words = _from_scratch(preset.model, folder, arguments)
    train, evaluation = (encode(pairs, words, append_eos=preset.append_eos) for pairs in preset.pairs())
    return Job(model, train, evaluation, collate_answers(words.eos_id), folder)


def checkpoint_job(options: SFTOptions, arguments: RunArguments) -> Job:
    """The checkpoint and the rows that the options name; where these are kept, one process of a machine tokenises for all."""
    if options.data is None:
        raise ValueError("--model needs --data, a JSONL file or a hub name")
    folder, words = _checkpoint(options.model)
    if options.seq_len is not None and not 0 < options.seq_len <= words.max_length:
        raise ValueError(f"--seq_len must be between 1 and the model's {words.max_length} tokens, got {options.seq_len}")
    with arguments.main_process_first() if options.token_cache else nullcontext():
        train, evaluation = _rows(options, words)
    return Job(_trainable(folder, options.dtype), train, evaluation, collate_answers(words.eos_id), folder)


def _rows(options: SFTOptions, words: Vocabulary) -> tuple[Examples, Examples | None]:
    rules = dict(append_eos=options.append_eos, seq_len=options.seq_len, cache=options.token_cache and Path(options.token_cache))
    evaluation = None if options.eval_data is None else read_jsonl(Path(options.eval_data), words, **rules)
    if hub.looks_like_a_path(options.data) and not Path(options.data).is_dir():
        for name in ("dataset_config", "eval_split"):
            if getattr(options, name) is not None:
                raise ValueError(f"--{name} has no effect on a file ({options.data}): leave it out, or give --eval_data FILE")
        train = read_jsonl(Path(options.data), words, **rules)
    else:
        train = read_hub(options.data, options.dataset_config, options.train_split, words, **rules)
        if options.eval_split is not None:
            evaluation = read_hub(options.data, options.dataset_config, options.eval_split, words, **rules)
    return train, evaluation


def _from_scratch(shape: Mapping[str, Any], folder: Path, arguments: RunArguments) -> tuple[LLaDA, Vocabulary]:
    with arguments.main_process_first():
        ids = byte_tokenizer(folder)
    words = vocabulary(folder, 256 + len(ids), shape["max_sequence_length"], ids[EOS])
    config = LLaDAConfig(vocab_size=words.vocab_size, mask_token_id=ids[MASK], eos_token_id=ids[EOS], pad_token_id=ids[EOS], **shape)
    model = LLaDA(config)
    initialise(model, noise("weights", arguments.seed))
    return model, words


def _checkpoint(pretrained: str) -> tuple[Path, Vocabulary]:
    folder = resolve(pretrained, option="--model")
    config = read_config(folder)
    for field in ("mask_token_id", "eos_token_id"):
        if getattr(config, field) is None:
            raise ValueError(f"{folder / 'config.json'}: {field} is missing, training needs it")
    return folder, vocabulary(folder, config.vocab_size, config.max_sequence_length, config.eos_token_id)


def _trainable(folder: Path, dtype: str = "float32") -> LLaDA:
    return load_model(folder, device="cpu", dtype=dtype).requires_grad_(True)


def train_logits_alone(model: LLaDA) -> None:
    """Freeze what a loss of the logits does not reach, for whose gradient DDP would wait; and say so."""
    if model.own_stream:
        logger.warning(
            "the score of this checkpoint's own policy stream stays as it is, while what it reads "
            "changes: python -m training.remask_sft --joint trains both"
        )
    for parameter in model.score_parameters():
        parameter.requires_grad_(False)


def run(job: Job, objective: Objective, arguments: RunArguments, command: Sequence[str], *, save: Save | None = None,
        load: Load | None = None, measure: Measure | None = None, options: Any = None, **extra: Any) -> dict[str, float]:
    """Train the job's model and leave checkpoint, metrics.jsonl and run.json (all arguments and options) in the output folder.

    Returns the metrics of the last evaluation, none without data for it. save, load (by default of a whole model), measure, extra: see
    trainer.py. options: the command's own, a dataclass.
    """
    save = save or save_checkpoint(job.tokenizer_folder, {"training": {"command": shlex.join(command)}})
    try:
        if arguments.eval_on_start and job.evaluation is None:
            raise ValueError("--eval_on_start has nothing to evaluate on: give --eval_data FILE, or leave it out")
        trainer = DiffusionTrainer(job.model, arguments, objective=objective, save=save, collate=job.collate,
                                   train=job.train, evaluation=job.evaluation, load=load, measure=measure, **extra)
        if asks_for_fsdp(arguments) and not trainer.is_fsdp_enabled:
            raise ValueError("FSDP needs accelerators, on CPUs accelerate says nothing and trains with DDP: leave it out, or take ddp.yaml")
        rows, batch = len(job.train) if isinstance(job.train, Sized) else math.inf, arguments.per_device_train_batch_size * arguments.world_size
        if arguments.dataloader_drop_last and rows < batch:
            raise ValueError(f"--dataloader_drop_last leaves nothing of {rows} rows, which are less than a batch ({batch}): leave it out")
        if arguments.should_save:
            _begin(arguments, command, options and asdict(options), checkpoints.identity(job.model, job.train))
    except (ValueError, OSError) as error:
        refuse(error)
    try:
        with nullcontext() if arguments.disable_tqdm else logging_redirect_tqdm():        # lines go above the bar
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


def _begin(arguments: RunArguments, command: Sequence[str], options: Mapping[str, Any] | None, identity: Mapping[str, str]) -> None:
    folder = Path(arguments.output_dir)
    results = [path for pattern in ("checkpoint-*", *RESULTS) for path in folder.glob(pattern)]
    for old in [*results, folder / EVENTS, folder / METRICS] if arguments.overwrite else []:
        shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
    rows = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    description = {"command": list(command), "config": config_file.given(command)[1], "options": options or {}, "rows_of_update": rows,
                   "arguments": arguments.to_dict()}
    checkpoints.begin(folder, description, identity, resume=arguments.resume)


def asks_for_fsdp(arguments: RunArguments) -> bool:
    """By flag, or by a configuration of accelerate launch, which passes it on in the environment."""
    return bool(arguments.fsdp) or os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"


def mean_length(rows: Sequence[Example], most: int = 100) -> int:
    """Tokens of a row, by some of them."""
    some = [rows[number] for number in range(min(most, len(rows)))]
    return round(sum(len(row.input_ids) for row in some) / len(some))


def save_checkpoint(tokenizer_folder: Path, extra_config: Mapping[str, Any]) -> Save:
    """Writes a model in the published layout, which `load_model` reads, with the tokenizer's files as they are."""
    def save(model: nn.Module, folder: Path, state: Mapping[str, Tensor] | None) -> None:
        if state is not None:
            model = empty_like(model)
            model.load_state_dict(state, assign=True)
        save_model(model, folder, extra_config)
        copy_tokenizer(tokenizer_folder, folder)
    return save


def copy_tokenizer(source: Path, target: Path) -> None:
    """The tokenizer's files as they are."""
    if source.resolve() == target.resolve():
        return
    for path in (path for pattern in TOKENIZER_FILES for path in source.glob(pattern)):
        copy = target / path.relative_to(source)
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, copy)
