"""Training data of prompts and answers: token rows of a file or of a data set of the hub.

A malformed row is refused by its place. What a row is made into is in encoding.py.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from llada_plugins.files.jsonl import parse, read_lines

from . import hub, row_keys
from .encoding import FORMS, Vocabulary, check_example, has_no_room, parse_row
from .examples import Example, Examples
from .token_cache import digest, kept

logger = logging.getLogger(__name__)

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


class RowSource(NamedTuple):
    """Rows, or the JSON texts of some, with their places."""

    name: str  # in messages, before a row's place
    digest: Callable[[], str]  # of the rows
    rows: Iterable[tuple[str, Any]]
    without: str  # what is said where there are none


def read_jsonl(
    path: Path,
    vocab: Vocabulary,
    *,
    append_eos: bool,
    seq_len: int | None = None,
    cache: Path | None = None,
) -> Examples:
    """Token rows of a JSONL file, a line in any of FORMS.

    A dialogue gives one example an answer, other rows give one; ids are taken as they
    are.

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
    """Token rows of a data set of the hub, or of a folder that `datasets` loads, in any of FORMS.

    Other columns are left out.

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
                for example in parse_row(_value(row), vocab, append_eos):
                    if has_no_room(example, seq_len):
                        left_out.append(place)
                        continue
                    cut = example._replace(input_ids=example.input_ids[:seq_len])
                    yield check_example(cut, vocab)
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
