"""What pre-training trains, on what, and what an evaluation shows.

An evaluation shows the bound, the perplexity of a byte and a sample.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm
from transformers import (
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from llada_plugins.models import text
from llada_plugins.models.families import FAMILIES, of_family, with_attention
from llada_plugins.models.folder import resolve
from llada_plugins.models.initial import initialise
from llada_plugins.models.llada import LLaDA
from llada_plugins.models.llada_config import LLaDAConfig
from llada_plugins.models.special_tokens import SpecialTokens
from llada_plugins.models.tokenizer import load_tokenizer
from llada_plugins.sampling.for_model import fitted
from llada_plugins.sampling.generate import generate
from training.data import corpus
from training.data.byte_tokenizer import EOS, MASK, byte_tokenizer
from training.loop import objectives
from training.loop.random_streams import random_stream
from training.loop.throughput import measured

from .arguments import RunArguments, asks_for_fsdp
from .command import Run
from .jobs import (
    Job,
    checkpoint,
    eos_id,
    mask_id,
    reading_of,
    train_logits_alone,
    trainable,
    with_blocks,
)
from .presets import TINY_SHAPE
from .pretrain_options import SEQ_LEN, SHAPE, PretrainOptions

TextJob = Job[LLaDA, corpus.Rows]


# --- jobs -----------------------------------------------------------------------------


def prepare(options: PretrainOptions, arguments: RunArguments, command: Sequence[str]) -> Run:
    """The run that `python -m training.pretrain` was asked for."""
    with no_litter(Path(arguments.output_dir)):
        job = pretrain_job(options, arguments)
    config = job.model.config
    # the bound before training
    arguments.eval_on_start = job.evaluation is not None and not arguments.resume
    return Run(
        job=job,
        objective=objectives.pretrain(mask_id(config), options.random_lengths, reading_of(config)),
        callbacks=[Evaluations(job, options)],
        throughput=measured(job.model, job.train.seq_len, arguments),
    )


@contextmanager
def no_litter(folder: Path) -> Iterator[None]:
    """Remove what came into the folder where the user's input is refused.

    That is a tokenizer, perhaps tokens, and no run.
    """
    fresh, before = not folder.exists(), set(folder.glob("*"))
    try:
        yield
    except (ValueError, OSError, ImportError):
        for path in [folder] if fresh else set(folder.glob("*")) - before:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        raise


class Start(NamedTuple):
    """The model to begin with, the folder of its tokenizer, and the tokens of a row."""

    model: LLaDA
    folder: Path
    seq_len: int


def pretrain_job(options: PretrainOptions, arguments: RunArguments) -> TextJob:
    """Model, rows and tokenizer.

    A tokenizer made here and, by default, the tokenised data are written into the
    output folder.
    """
    sources = _sources(options)
    output = Path(arguments.output_dir)
    if options.model is not None:
        model, folder, seq_len = _from_checkpoint(options.model, options)
    else:
        model, folder, seq_len = _from_scratch(options, output, arguments)
    _check_sample(options, folder, model)
    config, tokenizer = model.config, load_tokenizer(folder)
    eos = eos_id(config)
    cache = Path(options.token_cache) if options.token_cache else output / "tokens"
    with arguments.main_process_first():
        tokens = [
            corpus.tokenise(source, tokenizer, config.vocab_size, eos, cache, mask_id(config))
            for source in sources
        ]
    train, evaluation = corpus.Rows(tokens[0], seq_len), None
    if len(tokens) > 1:
        evaluation = corpus.Rows(tokens[1], seq_len, options.eval_rows or None)
    return Job(model, train, evaluation, corpus.collate_rows(eos, options.pack_boundaries), folder)


def _sources(options: PretrainOptions) -> list[corpus.Source]:
    """The text to train on and, where there is any, that of the validation bound."""
    dataset, config = options.dataset, options.dataset_config
    assert dataset is not None
    train = corpus.find(dataset, config, options.train_split)
    if options.eval_data is not None:
        return [train, corpus.find(options.eval_data, None, None)]
    if not Path(dataset).is_file():
        return [train, corpus.find(dataset, config, options.eval_split)]
    if options.eval_split is not None:
        raise ValueError(f"--eval_split has no effect on a file ({dataset}): give --eval_data FILE")
    return [train]


def _from_checkpoint(name: str, options: PretrainOptions) -> Start:
    folder, vocab = checkpoint(name, options.attention, options.block_length)
    model = trainable(folder, attention=options.attention, block_length=options.block_length)
    train_logits_alone(model)
    seq_len = options.seq_len or vocab.max_length
    if seq_len > vocab.max_length:
        raise ValueError(
            f"--seq_len must be between 1 and the model's {vocab.max_length} tokens, got {seq_len}"
        )
    return Start(model, folder, seq_len)


def _from_scratch(options: PretrainOptions, output: Path, arguments: RunArguments) -> Start:
    shape = {name: getattr(options, name) or default for name, default in SHAPE.items()}
    if shape["d_model"] % (2 * shape["n_heads"]):
        raise ValueError(
            f"--d_model must be a multiple of twice --n_heads ({shape['n_heads']}), got "
            f"{shape['d_model']}"
        )
    shape["mlp_hidden_size"] = options.mlp_hidden_size or -(-8 * shape["d_model"] // 48) * 16
    shape["max_sequence_length"] = seq_len = options.seq_len or SEQ_LEN
    family = options.family or "llada"
    if options.tokenizer is not None:
        folder = resolve(options.tokenizer, option="--tokenizer")
        ids = _given_tokenizer(folder, FAMILIES[family].mask_names)
    else:
        folder = output
        with arguments.main_process_first():
            ids = _byte_tokenizer(folder)
    fields: dict[str, Any] = {**TINY_SHAPE, **shape, **ids}
    config = of_family(LLaDAConfig(**fields), family)
    config = with_attention(config, options.attention, "a model from scratch")
    model = LLaDA(with_blocks(config, options.block_length))
    initialise(model, random_stream("weights", arguments.seed))
    return Start(model, folder, seq_len)


def _byte_tokenizer(folder: Path) -> dict[str, int]:
    ids = byte_tokenizer(folder)
    return _fields(ids[MASK], ids[EOS], 256 + len(ids))


def _given_tokenizer(folder: Path, mask_names: Sequence[str]) -> dict[str, int]:
    tokenizer = load_tokenizer(folder)
    known, eos = tokenizer.get_vocab(), tokenizer.eos_token_id
    mask = next((known[name] for name in mask_names if name in known), None)
    if mask is None or eos is None:
        raise ValueError(
            f"--tokenizer {folder} needs an EOS token and a mask token, one of "
            f"{', '.join(mask_names)}: add what it lacks"
        )
    return _fields(mask, eos, max(known.values()) + 1)


def _fields(mask: int, eos: int, vocab_size: int) -> dict[str, int]:
    """Fields of LLaDAConfig that come from the tokenizer."""
    return {
        "vocab_size": vocab_size,
        "mask_token_id": mask,
        "eos_token_id": eos,
        "pad_token_id": eos,
    }


def _check_sample(options: PretrainOptions, folder: Path, model: LLaDA) -> None:
    limit = model.config.max_sequence_length
    prompt = _prompt(options, load_tokenizer(folder), eos_id(model.config))
    if not options.gen_length:
        return
    if len(prompt) > fitted(options.sampler(), model.config).blocks.room(limit):
        raise ValueError(
            f"--prompt of {len(prompt)} tokens and --gen_length {options.gen_length} exceed the "
            f"model's context of {limit} tokens: lower --gen_length"
        )


def _prompt(
    options: PretrainOptions, tokenizer: PreTrainedTokenizerBase, eos_token: int
) -> list[int]:
    ids = text.encode(tokenizer, options.prompt) if options.prompt else []
    return ids or [eos_token]  # after EOS a document begins


# --- evaluations ----------------------------------------------------------------------


class Evaluations(TrainerCallback):
    """Adds the perplexity of a byte to an evaluation's line, and prints a sample.

    The sample is decoded with the same noise every time.

    The loss bounds the negative log-likelihood of a token (nats) from above, so the
    perplexity is an upper bound as well.
    """

    def __init__(self, job: TextJob, options: PretrainOptions) -> None:
        self.bytes_per_token = job.evaluation.bytes_per_token if job.evaluation else None
        self.config, self.options = job.model.config, options
        self.tokenizer = load_tokenizer(job.tokenizer_folder)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        if logs is not None and "eval_loss" in logs and self.bytes_per_token:
            of_byte = logs["eval_loss"] / self.bytes_per_token  # nats
            logs["eval_byte_perplexity"] = math.exp(min(of_byte, 700.0))  # e^710 overflows

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **given: Any,
    ) -> None:
        divided = asks_for_fsdp(args) or args.deepspeed_plugin
        if not state.is_world_process_zero or not self.options.gen_length or divided:
            return
        line = f"sample at step {state.global_step}: {self.sample(given['model'])!r}"
        with tqdm.external_write_mode():  # above the bar, if there is one
            print(line, flush=True)

    @torch.no_grad()
    def sample(self, model: LLaDA) -> str:
        """A decoded text, the prompt before it."""
        special = SpecialTokens(mask_id(self.config), eos_id(self.config))
        prompt = _prompt(self.options, self.tokenizer, eos_id(self.config))
        answer = generate(model, [prompt], self.options.sampler(), special=special)[0].answer
        return self.options.prompt + text.decode(self.tokenizer, answer, special.ends)
