"""A row of prompt and answer, in any of FORMS, as token rows that the model can learn."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from llada_plugins.files.utf8 import check_text
from llada_plugins.models import text
from llada_plugins.models.tokenizer import load_tokenizer

from . import dialogue, row_keys
from .examples import Example

FORMS = (
    '{"prompt": text, "completion": text}, {"messages": [{"role", "content"}]}, '
    '{"conversations": [{"from", "value"}]} or {"input_ids": [ids], "prompt_length": number}'
)


class Vocabulary(NamedTuple):
    """How text becomes ids, and which ids and lengths the model knows."""

    encode: Callable[[str], list[int]]  # of an answer: no special tokens are added
    # of a prompt, as an Engine encodes it: with those that the tokenizer puts round a text
    encode_prompt: Callable[[str], list[int]]
    vocab_size: int
    max_length: int
    eos_id: int
    # a chat as the prompt; None without a chat template
    render: Callable[[Sequence[dialogue.Message]], str] | None = None
    identity: Callable[[], Any] | None = None  # what encode and render do, by content
    mask_id: int | None = None  # which no row may hold; None: it is not looked for


def vocabulary(
    folder: Path, vocab_size: int, max_length: int, eos_id: int, mask_id: int | None = None
) -> Vocabulary:
    """The vocabulary of a checkpoint folder's tokenizer."""
    tokenizer = load_tokenizer(folder)

    def encode_answer(string: str) -> list[int]:
        return tokenizer(string, add_special_tokens=False, verbose=False)["input_ids"]

    def identity() -> list[Any]:
        backend = tokenizer.backend_tokenizer.to_str()
        return [backend, tokenizer.chat_template, tokenizer.special_tokens_map]

    render = partial(text.render_chat, tokenizer) if tokenizer.chat_template else None
    encode_prompt = partial(text.encode, tokenizer)
    return Vocabulary(
        encode_answer, encode_prompt, vocab_size, max_length, eos_id, render, identity, mask_id
    )


def encode(
    pairs: Iterable[tuple[str, str]], vocab: Vocabulary, *, append_eos: bool
) -> list[Example]:
    """Token rows of (prompt, answer) texts.

    append_eos: an EOS after each answer, for answers whose length the model must learn.
    """
    return [_encode(prompt, answer, vocab, append_eos) for prompt, answer in pairs]


def has_no_room(example: Example, seq_len: int | None) -> bool:
    """Would seq_len leave nothing of the answer? Malformed rows are not for this test."""
    if seq_len is None:
        return False
    return seq_len <= example.prompt_length < len(example.input_ids)


def parse_row(row: Any, vocab: Vocabulary, append_eos: bool) -> list[Example]:
    """The examples of a row: of a dialogue one an answer, else one."""
    if not isinstance(row, dict):
        raise _unexpected(type(row).__name__)
    row = row_keys.own(row)
    keys = row.keys()
    if keys == {"prompt", "completion"} and all(isinstance(value, str) for value in row.values()):
        if not row["completion"]:
            raise ValueError(
                "'completion' is empty: leave the row out, or, to teach that nothing is answered, "
                "give input_ids whose answer is EOS"
            )
        return [_encode(row["prompt"], row["completion"], vocab, append_eos)]
    if keys == {"input_ids", "prompt_length"}:
        ids, prompt_length = row["input_ids"], row["prompt_length"]
        if isinstance(ids, list) and all(type(token) is int for token in [*ids, prompt_length]):
            return [Example(ids, prompt_length)]
    if len(keys) == 1 and keys <= dialogue.KEYS.keys():
        [form] = keys
        answers = _answers(dialogue.read(form, row[form]), vocab)
        return encode(answers, vocab, append_eos=append_eos)
    raise _unexpected(f"keys {sorted(row)}")


def _unexpected(found: str) -> ValueError:
    return ValueError(
        f"expected {FORMS}, found {found} or a value of another type; python -m training.convert "
        "reads other forms"
    )


def _answers(messages: list[dialogue.Message], vocab: Vocabulary) -> list[tuple[str, str]]:
    if vocab.render is None:
        raise ValueError(
            "a dialogue needs a chat template, and this tokenizer has none: give prompt and "
            "completion instead"
        )
    return list(dialogue.pairs(messages, vocab.render))


def _encode(prompt: str, answer: str, vocab: Vocabulary, append_eos: bool) -> Example:
    check_text(prompt)
    check_text(answer)
    prompt_ids = vocab.encode_prompt(prompt)
    return Example(prompt_ids + vocab.encode(answer) + [vocab.eos_id] * append_eos, len(prompt_ids))


def check_example(example: Example, vocab: Vocabulary) -> Example:
    if not 0 <= example.prompt_length < len(example.input_ids):
        raise ValueError(
            f"prompt_length ({example.prompt_length}) must leave at least one answer token of "
            f"{len(example.input_ids)} tokens"
        )
    if len(example.input_ids) > vocab.max_length:
        raise ValueError(
            f"{len(example.input_ids)} tokens, but the model takes {vocab.max_length}: shorten or "
            f"drop the row, or give --seq_len {vocab.max_length}, after which rows lose the end "
            "of their answer, or are left out if it has no room"
        )
    if not all(0 <= token < vocab.vocab_size for token in example.input_ids):
        raise ValueError(f"input_ids must be between 0 and {vocab.vocab_size - 1}")
    if vocab.mask_id is not None and vocab.mask_id in example.input_ids:
        place = example.input_ids.index(vocab.mask_id)
        raise ValueError(
            f"token {place} is the mask token ({vocab.mask_id}), which the noise of training puts "
            "there and which no answer holds: leave it out of the text, or the row"
        )
    return example
