"""A job: the model, its data and what a run of them saves."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from torch import Tensor, nn

from llada_plugins.files.atomic import write_whole
from llada_plugins.files.json_files import read_json
from llada_plugins.models.families import FAMILIES, with_attention
from llada_plugins.models.folder import read_config, resolve, special_tokens
from llada_plugins.models.initial import empty_like, initialise
from llada_plugins.models.llada import LLaDA
from llada_plugins.models.llada_config import Attention, LLaDAConfig
from llada_plugins.models.loading import load_model, save_model
from training.data import hub
from training.data.byte_tokenizer import EOS, MASK, byte_tokenizer
from training.data.encoding import Vocabulary, encode, vocabulary
from training.data.examples import Collate, Example, collate_answers
from training.data.rows import read_hub, read_jsonl
from training.loop.random_streams import random_stream
from training.loop.reading import Reading
from training.loop.trainer import Save

from .arguments import RunArguments
from .presets import PRESETS, Preset, starting_from

if TYPE_CHECKING:
    from .options import SFTOptions

logger = logging.getLogger(__name__)

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
)

Model = TypeVar("Model", bound=nn.Module)
Other = TypeVar("Other", bound=nn.Module)
Rows = TypeVar("Rows")  # what holds rows, by number


@dataclass(frozen=True)
class Job(Generic[Model, Rows]):
    """A model, its data and the folder that has its tokenizer."""

    model: Model
    train: Rows
    evaluation: Rows | None
    collate: Callable[[Sequence[Any]], dict[str, Tensor]]  # of those rows
    tokenizer_folder: Path

    def with_model(self, model: Other) -> Job[Other, Rows]:
        """The same data for another model."""
        return Job(model, self.train, self.evaluation, self.collate, self.tokenizer_folder)


AnswerJob = Job[LLaDA, Sequence[Example]]


class Checkpoint(NamedTuple):
    """A folder to start from, and what its model knows."""

    folder: Path
    vocab: Vocabulary


# --- jobs of prompts and answers ------------------------------------------------------


def answer_job(
    options: SFTOptions, arguments: RunArguments, presets: Mapping[str, Preset] = PRESETS
) -> AnswerJob:
    """The job of a preset, or of the checkpoint and the rows that the options name."""
    if options.preset:
        own = starting_from(options.model, options.preset, presets)
        return preset_job(options.preset, arguments, own)
    return checkpoint_job(options, arguments)


def preset_job(
    name: str, arguments: RunArguments, presets: Mapping[str, Preset] = PRESETS
) -> AnswerJob:
    """A preset's model and data.

    Of a model from scratch, the tokenizer is written into the output folder.
    """
    if name not in presets:
        raise ValueError(f"--preset must be one of {', '.join(presets)}, got {name!r}")
    preset = presets[name]
    if isinstance(preset.model, str):
        folder, vocab = checkpoint(preset.model)
        model = trainable(folder)
    else:
        folder = Path(arguments.output_dir)
        model, vocab = _from_scratch(preset.model, folder, arguments)
    train, evaluation = (
        encode(pairs, vocab, append_eos=preset.append_eos) for pairs in preset.pairs()
    )
    return Job(model, train, evaluation, answer_batches(model, vocab), folder)


def checkpoint_job(options: SFTOptions, arguments: RunArguments) -> AnswerJob:
    """The checkpoint and the rows that the options name.

    Where these are kept, one process of a machine tokenises for all.
    """
    if options.data is None:
        raise ValueError("--model needs --data, a JSONL file or a hub name")
    assert options.model is not None
    folder, vocab = checkpoint(options.model, options.attention, options.block_length)
    if options.seq_len is not None and not 0 < options.seq_len <= vocab.max_length:
        raise ValueError(
            f"--seq_len must be between 1 and the model's {vocab.max_length} tokens, got "
            f"{options.seq_len}"
        )
    with arguments.main_process_first() if options.token_cache else nullcontext():
        train, evaluation = _rows(options, options.data, vocab)
    model = trainable(folder, options.dtype, options.attention, options.block_length)
    return Job(model, train, evaluation, answer_batches(model, vocab), folder)


def answer_batches(model: LLaDA, vocab: Vocabulary) -> Collate:
    """Batches of rows for the model."""
    return collate_answers(vocab.eos_id, block_length(model.config) or 1, vocab.max_length)


def _rows(
    options: SFTOptions, data: str, vocab: Vocabulary
) -> tuple[Sequence[Example], Sequence[Example] | None]:
    """Rows to train on, and those for the evaluation, if the options name any."""
    cache = Path(options.token_cache) if options.token_cache else None
    append_eos, seq_len = options.append_eos, options.seq_len
    read_file = partial(read_jsonl, append_eos=append_eos, seq_len=seq_len, cache=cache)
    read_set = partial(read_hub, append_eos=append_eos, seq_len=seq_len, cache=cache)
    evaluation = None
    if options.eval_data is not None:
        evaluation = read_file(Path(options.eval_data), vocab)
    if hub.looks_like_a_path(data) and not Path(data).is_dir():
        for name in ("dataset_config", "eval_split"):
            if getattr(options, name) is not None:
                raise ValueError(
                    f"--{name} has no effect on a file ({data}): leave it out, or give "
                    "--eval_data FILE"
                )
        return read_file(Path(data), vocab), evaluation
    train = read_set(data, options.dataset_config, options.train_split, vocab)
    if options.eval_split is not None:
        evaluation = read_set(data, options.dataset_config, options.eval_split, vocab)
    return train, evaluation


def _from_scratch(
    shape: Mapping[str, Any], folder: Path, arguments: RunArguments
) -> tuple[LLaDA, Vocabulary]:
    with arguments.main_process_first():
        ids = byte_tokenizer(folder)
    vocab = vocabulary(folder, 256 + len(ids), shape["max_sequence_length"], ids[EOS], ids[MASK])
    config = LLaDAConfig(
        vocab_size=vocab.vocab_size,
        mask_token_id=ids[MASK],
        eos_token_id=ids[EOS],
        pad_token_id=ids[EOS],
        **shape,
    )
    model = LLaDA(config)
    initialise(model, random_stream("weights", arguments.seed))
    return model, vocab


# --- models ---------------------------------------------------------------------------


def checkpoint(
    pretrained: str,
    attention: Attention | None = None,
    block_length: int | None = None,
    option: str = "--model",
) -> Checkpoint:
    """The folder of a checkpoint with all the ids that training needs.

    ValueError where one is missing, or the model cannot have that attention and blocks of so
    many tokens: before weights and data are read.
    """
    folder = resolve(pretrained, option=option)
    config = with_attention(read_config(folder), attention, str(folder))
    with_blocks(config, block_length)
    special = special_tokens(folder, config)
    for field, token in (
        ("mask_token_id", special and special.mask),
        ("eos_token_id", special and special.eos),
    ):
        if token is None:
            raise ValueError(
                f"{folder / 'config.json'}: {field} is missing, training needs it, and the "
                "tokenizer does not name it"
            )
    assert special is not None and special.eos is not None
    size, length = config.vocab_size, config.max_sequence_length
    return Checkpoint(folder, vocabulary(folder, size, length, special.eos, special.mask))


def mask_id(config: LLaDAConfig) -> int:
    """The mask token of a model that trains; `checkpoint` has seen to it that there is one."""
    assert config.mask_token_id is not None
    return config.mask_token_id


def block_length(config: LLaDAConfig) -> int | None:
    """Tokens of a block of a block-causal model, None of one with full attention."""
    return config.block_length if config.attention == "block_causal" else None


def reading_of(config: LLaDAConfig) -> Reading:
    """How the model reads noisy rows."""
    return Reading(FAMILIES[config.family].shift, block_length(config))


def eos_id(config: LLaDAConfig) -> int:
    """The EOS token of a model that trains; `checkpoint` has seen to it that there is one."""
    assert config.eos_token_id is not None
    return config.eos_token_id


def trainable(
    folder: Path,
    dtype: str = "float32",
    attention: Attention | None = None,
    block_length: int | None = None,
) -> LLaDA:
    """The model of a folder, on the CPU, with gradients for all weights.

    Its config names the mask and EOS that decoding would take, so that what is saved does.
    block_length: in place of the checkpoint's.
    """
    model = load_model(folder, device="cpu", dtype=dtype, attention=attention).requires_grad_(True)
    model.config = with_blocks(model.config, block_length)
    if (special := model.special_tokens) is not None:
        model.config = replace(model.config, mask_token_id=special.mask, eos_token_id=special.eos)
    return model


def with_blocks(config: LLaDAConfig, length: int | None) -> LLaDAConfig:
    """The config of a block-causal model with blocks of so many tokens; None: its own.

    ValueError under full attention.
    """
    if length is None:
        return config
    if config.attention != "block_causal":
        raise ValueError(
            f"--block_length {length} is for models with block-causal attention, and this one has "
            "full attention: leave it out, or of an A2D model give --attention block_causal"
        )
    return replace(config, block_length=length)


def train_logits_alone(model: LLaDA) -> None:
    """Freeze what a loss of the logits does not reach, for whose gradient DDP would wait.

    It says so in the log.
    """
    if model.own_stream:
        logger.warning(
            "the score of this checkpoint's own policy stream stays as it is, while what it reads "
            "changes: python -m training.remask_sft --joint trains both"
        )
    for parameter in model.score_parameters():
        parameter.requires_grad_(False)


def mean_length(rows: Sequence[Example], most: int = 100) -> int:
    """Tokens of a row, by some of them."""
    some = [rows[number] for number in range(min(most, len(rows)))]
    return round(sum(len(row.input_ids) for row in some) / len(some))


def noisy_share(config: LLaDAConfig, rows: Sequence[Example], most: int = 100) -> float:
    """The share of a row's tokens that a block-causal model gets noisy as well, by some rows."""
    if block_length(config) is None:
        return 1.0
    some = [rows[number] for number in range(min(most, len(rows)))]
    answers = sum(len(row.input_ids) - row.prompt_length for row in some)
    return answers / sum(len(row.input_ids) for row in some)


# --- output folders -------------------------------------------------------------------


def save_checkpoint(tokenizer_folder: Path, extra_config: Mapping[str, Any]) -> Save:
    """Writes a model in the published layout, which `load_model` reads.

    The tokenizer's files stay as they are.
    """

    def save(model: nn.Module, folder: Path, state: Mapping[str, Tensor] | None) -> None:
        assert isinstance(model, LLaDA)
        if state is not None:
            model = empty_like(model)
            model.load_state_dict(state, assign=True)
        save_model(model, folder, extra_config)
        copy_tokenizer(tokenizer_folder, folder)

    return save


def load_checkpoint(model: nn.Module, folder: Path) -> None:
    """Fill a model from a folder that `save_checkpoint` wrote, to resume.

    Its tensors have their published names there, which are the module's in some families only.
    """
    assert isinstance(model, LLaDA)
    dtype = str(model.dtype).removeprefix("torch.")
    model.load_state_dict(load_model(folder, device="cpu", dtype=dtype).state_dict())


def add_metrics(config: Path, metrics: Mapping[str, Any]) -> None:
    """Write what was measured after training into a saved config, under `training`."""
    saved = read_json(config)
    saved["training"]["metrics"] = dict(metrics)
    write_whole(config, json.dumps(saved, indent=1, sort_keys=True) + "\n")


def copy_tokenizer(source: Path, target: Path) -> None:
    """The tokenizer's files as they are."""
    if source.resolve() == target.resolve():
        return
    for pattern in TOKENIZER_FILES:
        for path in source.glob(pattern):
            copy = target / path.relative_to(source)
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, copy)
