"""Training data of prompts and answers, as token rows and batches of them.

Rows come from files, data sets of the hub or text pairs; a malformed one is refused by
its place.
"""

from __future__ import annotations

import json
import logging
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from llada_plugins.files.jsonl import parse, read_lines
from llada_plugins.files.utf8 import check_text
from llada_plugins.models.text import render_chat
from llada_plugins.models.tokenizer import load_tokenizer

from . import dialogue, hub, row_keys
from .token_cache import digest, kept

logger = logging.getLogger(__name__)

FORMS = (
    '{"prompt": text, "completion": text}, {"messages": [{"role", "content"}]}, '
    '{"conversations": [{"from", "value"}]} or {"input_ids": [ids], "prompt_length": number}'
)

# raise it when rows of the same data and options become other examples: kept ones are
# then made again
CACHE_VERSION = 2
# of FORMS
COLUMNS: tuple[tuple[str, ...], ...] = (
    ("messages",),
    ("conversations",),
    ("prompt", "completion"),
    ("input_ids", "prompt_length"),
)


class Example(NamedTuple):
    """A clean token row: prompt, then answer."""

    input_ids: list[int]
    prompt_length: int


Collate = Callable[[Sequence[Example]], dict[str, Tensor]]


class Examples(Sequence[Example]):
    """Rows on the disk, mapped as they are read, so that they need not fit into memory:
    16 bytes of it a row.

    They are in a temporary file (of TMPDIR) without a name, which ends with the
    process, or in files of a folder, to be loaded again.
    """

    def __init__(self, rows: Iterable[Example], folder: Path | None = None) -> None:
        lengths, self._prompt_lengths = array("q"), array("q")
        with _token_file(folder) as file:
            for row in rows:
                file.write(np.array(row.input_ids, np.uint32).tobytes())
                lengths.append(len(row.input_ids))
                self._prompt_lengths.append(row.prompt_length)
            file.flush()
            self._tokens = np.memmap(file, np.uint32, "r") if lengths else np.empty(0, np.uint32)
        self._ends = np.cumsum(lengths, dtype=np.int64)
        if folder is not None:
            np.save(folder / "rows.npy", np.stack([self._ends, self._prompt_lengths]))

    @classmethod
    def load(cls, folder: Path) -> Examples:
        """Those that are in a folder."""
        found = cls(())
        found._ends, found._prompt_lengths = np.load(folder / "rows.npy")
        found._tokens = np.memmap(folder / "tokens.bin", np.uint32, "r")
        return found

    def __len__(self) -> int:
        return len(self._prompt_lengths)

    def __getitem__(self, number: int) -> Example:  # type: ignore[override]  # no slices
        number = range(len(self))[number]  # negative numbers, and IndexError beyond
        begin = self._ends[number - 1] if number else 0
        ids = self._tokens[begin : self._ends[number]].tolist()
        return Example(ids, int(self._prompt_lengths[number]))


def _token_file(folder: Path | None) -> IO[bytes]:
    """An empty file for tokens, to be written and mapped."""
    return tempfile.TemporaryFile() if folder is None else (folder / "tokens.bin").open("w+b")


class RowSource(NamedTuple):
    """Rows, or the JSON texts of some, with their places."""

    name: str  # in messages, before a row's place
    digest: Callable[[], str]  # of the rows
    rows: Iterable[tuple[str, Any]]
    without: str  # what is said where there are none


class Vocabulary(NamedTuple):
    """How text becomes ids, and which ids and lengths the model knows."""

    encode: Callable[[str], list[int]]
    vocab_size: int
    max_length: int
    eos_id: int
    # a chat as the prompt; None without a chat template
    render: Callable[[Sequence[dialogue.Message]], str] | None = None
    identity: Callable[[], Any] | None = None  # what encode and render do, by content


def vocabulary(folder: Path, vocab_size: int, max_length: int, eos_id: int) -> Vocabulary:
    """The vocabulary of a checkpoint folder's tokenizer."""
    tokenizer = load_tokenizer(folder)

    def encode_text(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def identity() -> list[Any]:
        backend = tokenizer.backend_tokenizer.to_str()
        return [backend, tokenizer.chat_template, tokenizer.special_tokens_map]

    render = partial(render_chat, tokenizer) if tokenizer.chat_template else None
    return Vocabulary(encode_text, vocab_size, max_length, eos_id, render, identity)


def encode(
    pairs: Iterable[tuple[str, str]], vocab: Vocabulary, *, append_eos: bool
) -> list[Example]:
    """Token rows of (prompt, answer) texts; append_eos: an EOS after each answer, for
    answers whose length the model must learn.
    """
    return [_encode(prompt, answer, vocab, append_eos) for prompt, answer in pairs]


def read_jsonl(
    path: Path,
    vocab: Vocabulary,
    *,
    append_eos: bool,
    seq_len: int | None = None,
    cache: Path | None = None,
) -> Examples:
    """Token rows of a JSONL file, a line in any of FORMS: of a dialogue one example an
    answer, else one; ids are taken as they are.

    A dialogue's prompts are rendered by the chat template; texts of prompt and
    completion are taken as they are. seq_len: longer rows lose the end of their answer;
    where the prompt leaves it no token they are left out, and counted in the log.
    cache: folder that keeps token rows of the same data, vocabulary and options; None
    keeps none. Raises FileNotFoundError, or ValueError that names file and line.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such data file; give a JSONL file with rows {FORMS}")
    rows = ((f":{number}", line) for number, line in read_lines(path))
    source = RowSource(
        str(path),
        lambda: digest([path]),
        rows,
        f"{path}: no rows; give a JSONL file with rows {FORMS}",
    )
    return _kept(source, vocab, append_eos, seq_len, cache)


def read_hub(
    name: str,
    config: str | None,
    split: str,
    vocab: Vocabulary,
    *,
    append_eos: bool,
    seq_len: int | None = None,
    cache: Path | None = None,
) -> Examples:
    """Token rows of a data set of the hub, or of a folder that `datasets` loads, in any
    of FORMS; other columns are left out.

    Of those, the ones that would change what is learned must be empty (row_keys.py).
    seq_len, cache: see `read_jsonl`. Raises FileNotFoundError, or ValueError that names
    split and row.
    """
    named = hub.Hub(name, config)
    title = named.title
    split, rows = hub.load(named, split, "--data")
    form = next((form for form in COLUMNS if set(form) <= set(rows.column_names)), None)
    if form is None:
        raise ValueError(
            f"--data {title} has columns {', '.join(rows.column_names)}, and rows must be {FORMS}"
        )
    columns = [*form, *(name for name in rows.column_names if name in row_keys.KNOWN)]
    numbered = enumerate(rows.select_columns(columns), 1)
    source = RowSource(
        f"{title} {split}",
        lambda: f"{rows._fingerprint} {columns}",
        ((f": row {number}", row) for number, row in numbered),
        f"--data {title}: split {split} has no rows",
    )
    return _kept(source, vocab, append_eos, seq_len, cache)


def collate_answers(eos_id: int) -> Collate:
    """Batches for SFT: answers padded with EOS to the longest row; padding counts as
    answer (LLaDA, GUIDELINES.md).

    A batch holds input_ids (B, L) and weight (B, L), fp32: 1 / answer length at answer
    tokens, padding included, 0 in the prompt.
    """

    def collate(examples: Sequence[Example]) -> dict[str, Tensor]:
        length = max(len(example.input_ids) for example in examples)
        rows = [ids + [eos_id] * (length - len(ids)) for ids, _ in examples]
        tokens = torch.tensor(rows)  # (B, L)
        prompt_length = torch.tensor([example.prompt_length for example in examples])[:, None]
        answer = torch.arange(length) >= prompt_length
        return {"input_ids": tokens, "weight": answer.float() / (length - prompt_length)}

    return collate


def _kept(
    source: RowSource, vocab: Vocabulary, append_eos: bool, seq_len: int | None, cache: Path | None
) -> Examples:
    """The source's examples, from the cache where it has them; logs how many were left out."""
    if cache is None:
        examples, left_out = _read(source, vocab, append_eos, seq_len)
    else:
        examples, left_out = _cached(source, vocab, append_eos, seq_len, cache)
    if left_out is not None:
        logger.info(
            "%s%s: the prompt leaves no room for an answer in --seq_len %d; left out, %d of %d "
            "examples in all",
            source.name,
            left_out.first,
            seq_len,
            left_out.number,
            left_out.number + len(examples),
        )
    return examples


def _cached(
    source: RowSource, vocab: Vocabulary, append_eos: bool, seq_len: int | None, cache: Path
) -> tuple[Examples, LeftOut | None]:
    def write(folder: Path) -> None:
        examples, left_out = _read(source, vocab, append_eos, seq_len, folder)
        meta = {"source": source.name, "num_rows": len(examples), "left_out": left_out}
        (folder / "meta.json").write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")

    assert vocab.identity is not None  # else rows of two tokenizers could not be told apart
    made_of = [
        "rows",
        CACHE_VERSION,
        source.digest(),
        vocab.identity(),
        vocab.vocab_size,
        vocab.max_length,
        vocab.eos_id,
        append_eos,
        seq_len,
    ]
    folder = kept(cache, made_of, write)
    left_out = json.loads((folder / "meta.json").read_text(encoding="utf-8"))["left_out"]
    return Examples.load(folder), LeftOut(*left_out) if left_out else None


class LeftOut(NamedTuple):
    """Examples whose prompt leaves no room for an answer."""

    first: str  # place of the first
    number: int


def _read(
    source: RowSource,
    vocab: Vocabulary,
    append_eos: bool,
    seq_len: int | None,
    folder: Path | None = None,
) -> tuple[Examples, LeftOut | None]:
    """Examples, and which were left out."""
    left_out: list[str] = []  # places

    def fitting() -> Iterator[Example]:
        for place, row in source.rows:
            try:
                for example in _parse(_value(row), vocab, append_eos):
                    if _has_no_room(example, seq_len):
                        left_out.append(place)
                        continue
                    cut = example._replace(input_ids=example.input_ids[:seq_len])
                    yield _check(cut, vocab)
            except ValueError as error:
                raise ValueError(f"{source.name}{place}: {error}") from None

    examples = Examples(fitting(), folder)
    if left_out and not examples:
        raise ValueError(
            f"{source.name}{left_out[0]}: the prompt leaves no room for an answer in --seq_len "
            f"{seq_len}, nor does any other: raise it, or shorten them"
        )
    if not examples:
        raise ValueError(source.without)
    return examples, LeftOut(left_out[0], len(left_out)) if left_out else None


def _value(row: Any) -> Any:
    return parse(row) if isinstance(row, str) else row


def _has_no_room(example: Example, seq_len: int | None) -> bool:
    """Would seq_len leave nothing of the answer? Malformed rows are not for this test."""
    if seq_len is None:
        return False
    return seq_len <= example.prompt_length < len(example.input_ids)


def _parse(row: Any, vocab: Vocabulary, append_eos: bool) -> list[Example]:
    """The examples of a row: of a dialogue one an answer, else one."""
    if not isinstance(row, dict):
        raise _unexpected(type(row).__name__)
    row = row_keys.own(row)
    keys = row.keys()
    if keys == {"prompt", "completion"} and all(isinstance(text, str) for text in row.values()):
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
    prompt_ids = vocab.encode(prompt)
    return Example(prompt_ids + vocab.encode(answer) + [vocab.eos_id] * append_eos, len(prompt_ids))


def _check(example: Example, vocab: Vocabulary) -> Example:
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
    return example
