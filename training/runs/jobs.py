"""A job: the model, its data and what a run of them saves."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor, nn

from llada_plugins.models.folder import read_config, resolve
from llada_plugins.models.llada import LLaDA, empty_like, initialise
from llada_plugins.models.llada_config import LLaDAConfig
from llada_plugins.models.loading import load_model, save_model
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
from training.data.steps import StepExample
from training.loop.trainer import Save, noise

from .arguments import RunArguments
from .presets import PRESETS, Preset

if TYPE_CHECKING:
    from .options import SFTOptions

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


class Job(NamedTuple):
    """A model, its data and the folder that has its tokenizer."""

    model: nn.Module
    train: list[Example] | list[StepExample]
    evaluation: list[Example] | list[StepExample] | None
    collate: Callable[[Sequence[Any]], dict[str, Tensor]]  # of those rows
    tokenizer_folder: Path


def preset_job(name: str, arguments: RunArguments, presets: Mapping[str, Preset] = PRESETS) -> Job:
    """A preset's model and data; of a model from scratch, the tokenizer is written into
    the output folder.
    """
    if name not in presets:
        raise ValueError(f"--preset must be one of {', '.join(presets)}, got {name!r}")
    preset = presets[name]
    if isinstance(preset.model, str):
        folder, words = _checkpoint(preset.model)
        model = _trainable(folder)
    else:
        folder = Path(arguments.output_dir)
        model, words = _from_scratch(preset.model, folder, arguments)
    train, evaluation = (
        encode(pairs, words, append_eos=preset.append_eos) for pairs in preset.pairs()
    )
    return Job(model, train, evaluation, collate_answers(words.eos_id), folder)


def checkpoint_job(options: SFTOptions, arguments: RunArguments) -> Job:
    """The checkpoint and the rows that the options name; where these are kept, one
    process of a machine tokenises for all.
    """
    if options.data is None:
        raise ValueError("--model needs --data, a JSONL file or a hub name")
    folder, words = _checkpoint(options.model)
    if options.seq_len is not None and not 0 < options.seq_len <= words.max_length:
        raise ValueError(
            f"--seq_len must be between 1 and the model's {words.max_length} tokens, got "
            f"{options.seq_len}"
        )
    with arguments.main_process_first() if options.token_cache else nullcontext():
        train, evaluation = _rows(options, words)
    return Job(
        _trainable(folder, options.dtype), train, evaluation, collate_answers(words.eos_id), folder
    )


def _rows(options: SFTOptions, words: Vocabulary) -> tuple[Examples, Examples | None]:
    rules = dict(
        append_eos=options.append_eos,
        seq_len=options.seq_len,
        cache=options.token_cache and Path(options.token_cache),
    )
    evaluation = (
        None if options.eval_data is None else read_jsonl(Path(options.eval_data), words, **rules)
    )
    if hub.looks_like_a_path(options.data) and not Path(options.data).is_dir():
        for name in ("dataset_config", "eval_split"):
            if getattr(options, name) is not None:
                raise ValueError(
                    f"--{name} has no effect on a file ({options.data}): leave it out, or give "
                    "--eval_data FILE"
                )
        train = read_jsonl(Path(options.data), words, **rules)
    else:
        train = read_hub(options.data, options.dataset_config, options.train_split, words, **rules)
        if options.eval_split is not None:
            evaluation = read_hub(
                options.data, options.dataset_config, options.eval_split, words, **rules
            )
    return train, evaluation


def _from_scratch(
    shape: Mapping[str, Any], folder: Path, arguments: RunArguments
) -> tuple[LLaDA, Vocabulary]:
    with arguments.main_process_first():
        ids = byte_tokenizer(folder)
    words = vocabulary(folder, 256 + len(ids), shape["max_sequence_length"], ids[EOS])
    config = LLaDAConfig(
        vocab_size=words.vocab_size,
        mask_token_id=ids[MASK],
        eos_token_id=ids[EOS],
        pad_token_id=ids[EOS],
        **shape,
    )
    model = LLaDA(config)
    initialise(model, noise("weights", arguments.seed))
    return model, words


def _checkpoint(pretrained: str) -> tuple[Path, Vocabulary]:
    folder = resolve(pretrained, option="--model")
    config = read_config(folder)
    for field in ("mask_token_id", "eos_token_id"):
        if getattr(config, field) is None:
            raise ValueError(f"{folder / 'config.json'}: {field} is missing, training needs it")
    return folder, vocabulary(
        folder, config.vocab_size, config.max_sequence_length, config.eos_token_id
    )


def _trainable(folder: Path, dtype: str = "float32") -> LLaDA:
    return load_model(folder, device="cpu", dtype=dtype).requires_grad_(True)


def mean_length(rows: Sequence[Example], most: int = 100) -> int:
    """Tokens of a row, by some of them."""
    some = [rows[number] for number in range(min(most, len(rows)))]
    return round(sum(len(row.input_ids) for row in some) / len(some))


def save_checkpoint(tokenizer_folder: Path, extra_config: Mapping[str, Any]) -> Save:
    """Writes a model in the published layout, which `load_model` reads, with the
    tokenizer's files as they are.
    """

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
