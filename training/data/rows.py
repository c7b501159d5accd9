"""Training data: files, data sets of the hub and text pairs to token rows, token rows
to batches. Refuses malformed rows by their place.
"""

from __future__ import annotations

import json
import logging
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from llada_plugins.files.jsonl import check_text, parse, read_lines
from llada_plugins.models.text import load_tokenizer, render_chat

from . import dialogue, hub, row_keys
from .token_cache import digest, kept

logger = logging.getLogger(__name__)

FORMS = (
    '{"prompt": text, "completion": text}, {"messages": [{"role", "content"}]}, {"conversations": '
    '[{"from", "value"}]} '
    'or {"input_ids": [ids], "prompt_length": number}'
)

# raise it when rows of the same data and options become other examples: kept ones are
# then made again
RULES = 2
# of these forms
COLUMNS = (
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
        with (
            tempfile.TemporaryFile()
            if folder is None
            else (folder / "tokens.bin").open("w+b") as file
        ):
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

    def __getitem__(self, number: int) -> Example:
        number = range(len(self))[number]  # negative numbers, and IndexError beyond
        return Example(
            self._tokens[self._ends[number - 1] if number else 0 : self._ends[number]].tolist(),
            int(self._prompt_lengths[number]),
        )


class RowSource(NamedTuple):
    """Rows, or the JSON texts of some, with their places."""

    name: str  # in messages, a row's place behind it
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
    return Vocabulary(
        lambda text: tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"],
        vocab_size,
        max_length,
        eos_id,
        partial(render_chat, tokenizer) if tokenizer.chat_template else None,
        lambda: [
            tokenizer.backend_tokenizer.to_str(),
            tokenizer.chat_template,
            tokenizer.special_tokens_map,
        ],
    )


def encode(
    pairs: Iterable[tuple[str, str]], words: Vocabulary, *, append_eos: bool
) -> list[Example]:
    """Token rows of (prompt, answer) texts; append_eos: an EOS after each answer, for
    answers whose length the model must learn.
    """
    return [_encode(prompt, answer, words, append_eos) for prompt, answer in pairs]


def read_jsonl(
    path: Path,
    words: Vocabulary,
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
    return _kept(source, words, append_eos, seq_len, cache)


def read_hub(
    name: str,
    config: str | None,
    split: str,
    words: Vocabulary,
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
    columns = next((form for form in COLUMNS if set(form) <= set(rows.column_names)), None)
    if columns is None:
        raise ValueError(
            f"--data {title} has columns {', '.join(rows.column_names)}, and rows must be {FORMS}"
        )
    columns = [*columns, *(name for name in rows.column_names if name in row_keys.KNOWN)]
    placed = (
        (f": row {number}", row) for number, row in enumerate(rows.select_columns(columns), 1)
    )
    source = RowSource(
        f"{title} {split}",
        lambda: f"{rows._fingerprint} {columns}",
        placed,
        f"--data {title}: split {split} has no rows",
    )
    return _kept(source, words, append_eos, seq_len, cache)


def collate_answers(eos_id: int) -> Collate:
    """Batches for SFT: answers padded with EOS to the longest row; padding counts as
    answer (LLaDA, GUIDELINES.md).

    A batch holds input_ids (B, L) and weight (B, L), fp32: 1 / answer length at answer
    tokens, padding included, 0 in the prompt.
    """

    def collate(examples: Sequence[Example]) -> dict[str, Tensor]:
        length = max(len(example.input_ids) for example in examples)
        # (B, L)
        tokens = torch.tensor(
            [
                example.input_ids + [eos_id] * (length - len(example.input_ids))
                for example in examples
            ]
        )
        prompt_length = torch.tensor([example.prompt_length for example in examples])[:, None]
        answer = torch.arange(length) >= prompt_length
        return {"input_ids": tokens, "weight": answer.float() / (length - prompt_length)}

    return collate


def _kept(
    source: RowSource, words: Vocabulary, append_eos: bool, seq_len: int | None, cache: Path | None
) -> Examples:
    if cache is None:
        examples, left_out = _read(source, words, append_eos, seq_len)
    else:

        def write(folder: Path) -> None:
            examples, left_out = _read(source, words, append_eos, seq_len, folder)
            meta = {"source": source.name, "num_rows": len(examples), "left_out": left_out}
            (folder / "meta.json").write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")

        folder = kept(
            cache,
            [
                "rows",
                RULES,
                source.digest(),
                words.identity(),
                words.vocab_size,
                words.max_length,
                words.eos_id,
                append_eos,
                seq_len,
            ],
            write,
        )
        examples, left_out = (
            Examples.load(folder),
            json.loads((folder / "meta.json").read_text(encoding="utf-8"))["left_out"],
        )
    if left_out:
        place, number = left_out
        logger.info(
            "%s%s: the prompt leaves no room for an answer in --seq_len %d; left out, %d of %d "
            "examples in all",
            source.name,
            place,
            seq_len,
            number,
            number + len(examples),
        )
    return examples


def _read(
    source: RowSource,
    words: Vocabulary,
    append_eos: bool,
    seq_len: int | None,
    folder: Path | None = None,
) -> tuple[Examples, tuple[str, int] | None]:
    """Examples, and of those that were left out the first one's place and their number."""
    left_out: list[str] = []

    def fitting() -> Iterator[Example]:
        for place, row in source.rows:
            try:
                for example in _parse(
                    parse(row) if isinstance(row, str) else row, words, append_eos
                ):
                    if seq_len is not None and seq_len <= example.prompt_length < len(
                        example.input_ids
                    ):
                        left_out.append(place)
                    else:
                        yield _check(example._replace(input_ids=example.input_ids[:seq_len]), words)
            except ValueError as error:
                raise ValueError(f"{source.name}{place}: {error}") from None

    examples = Examples(fitting(), folder)
    if left_out and not examples:
        raise ValueError(
            f"{source.name}{left_out[0]}: the prompt leaves no room for an answer in --seq_len "
            f"{seq_len}, nor does any other: "
            "raise it, or shorten them"
        )
    if not examples:
        raise ValueError(source.without)
    return examples, (left_out[0], len(left_out)) if left_out else None


def _parse(row: Any, words: Vocabulary, append_eos: bool) -> list[Example]:
    row = row_keys.own(row) if isinstance(row, dict) else row
    keys = row.keys() if isinstance(row, dict) else ()
    if keys == {"prompt", "completion"} and all(isinstance(text, str) for text in row.values()):
        return [_encode(row["prompt"], row["completion"], words, append_eos)]
    if keys == {"input_ids", "prompt_length"}:
        ids, prompt_length = row["input_ids"], row["prompt_length"]
        if isinstance(ids, list) and all(type(token) is int for token in [*ids, prompt_length]):
            return [Example(ids, prompt_length)]
    if len(keys) == 1 and (form := next(iter(keys))) in dialogue.KEYS:
        return encode(_answers(dialogue.read(form, row[form]), words), words, append_eos=append_eos)
    found = f"keys {sorted(row)}" if isinstance(row, dict) else type(row).__name__
    raise ValueError(
        f"expected {FORMS}, found {found} or a value of another type; python -m training.convert "
        "reads other forms"
    )


def _answers(messages: list[dialogue.Message], words: Vocabulary) -> list[tuple[str, str]]:
    if words.render is None:
        raise ValueError(
            "a dialogue needs a chat template, and this tokenizer has none: give prompt and "
            "completion instead"
        )
    return list(dialogue.pairs(messages, words.render))


def _encode(prompt: str, answer: str, words: Vocabulary, append_eos: bool) -> Example:
    check_text(prompt)
    check_text(answer)
    prompt_ids = words.encode(prompt)
    return Example(prompt_ids + words.encode(answer) + [words.eos_id] * append_eos, len(prompt_ids))


def _check(example: Example, words: Vocabulary) -> Example:
    if not 0 <= example.prompt_length < len(example.input_ids):
        raise ValueError(
            f"prompt_length ({example.prompt_length}) must leave at least one answer token of "
            f"{len(example.input_ids)} tokens"
        )
    if len(example.input_ids) > words.max_length:
        raise ValueError(
            f"{len(example.input_ids)} tokens, but the model takes {words.max_length}: shorten or "
            "drop the row, or give "
            f"--seq_len {words.max_length}, after which rows lose the end of their answer, or are "
            "left out if it has no room"
        )
    if not all(0 <= token < words.vocab_size for token in example.input_ids):
        raise ValueError(f"input_ids must be between 0 and {words.vocab_size - 1}")
    return example
