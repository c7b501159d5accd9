"""Training data of prompts and answers: token rows of a file or of a data set of the hub.

A malformed row is refused by its place. What a row is made into is in encoding.py.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from llada_plugins.files.jsonl import parse, read_lines

from . import hub, row_keys
from .encoding import FORMS, Vocabulary, check_example, has_no_room, parse_row
from .examples import Example, Examples
from .token_cache import digest, kept

logger = logging.getLogger(__name__)

# raise it when rows of the same data and options become other examples, or what is kept
# beside them changes: kept ones are then made again
CACHE_VERSION = 4
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
    where the prompt leaves it no token they are left out. Both are counted in the log.
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
    """The source's examples, from the cache where it has them; logs which did not fit."""
    if cache is None:
        examples, too_long = _read(source, vocab, append_eos, seq_len)
    else:
        examples, too_long = _cached(source, vocab, append_eos, seq_len, cache)
    total = len(examples) + (too_long.left_out.number if too_long.left_out else 0)
    for what, those in (
        ("the prompt leaves no room for an answer in --seq_len %d; left out", too_long.left_out),
        ("the answer loses its end after --seq_len %d tokens; cut", too_long.cut),
    ):
        if those is not None:
            message = f"%s%s: {what}, %d of %d examples in all"
            logger.info(message, source.name, those.first, seq_len, those.number, total)
    return examples


def _cached(
    source: RowSource, vocab: Vocabulary, append_eos: bool, seq_len: int | None, cache: Path
) -> tuple[Examples, TooLong]:
    def write(folder: Path) -> None:
        examples, too_long = _read(source, vocab, append_eos, seq_len, folder)
        meta = {"source": source.name, "num_rows": len(examples), **too_long._asdict()}
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
        vocab.mask_id,
        append_eos,
        seq_len,
    ]
    folder = kept(cache, made_of, write)
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    found = {name: Those(*meta[name]) if meta[name] else None for name in TooLong._fields}
    return Examples.load(folder), TooLong(**found)


class Those(NamedTuple):
    """Some examples."""

    first: str  # place of the first
    number: int

    @classmethod
    def at(cls, places: Sequence[str]) -> Those | None:
        """Of these places; None of none."""
        return cls(places[0], len(places)) if places else None


class TooLong(NamedTuple):
    """Examples that seq_len does not hold whole."""

    left_out: Those | None  # whose prompt leaves no room for an answer
    cut: Those | None  # whose answer has lost its end


def _read(
    source: RowSource,
    vocab: Vocabulary,
    append_eos: bool,
    seq_len: int | None,
    folder: Path | None = None,
) -> tuple[Examples, TooLong]:
    """Examples, and which did not fit."""
    left_out: list[str] = []  # places
    cut: list[str] = []

    def fitting() -> Iterator[Example]:
        for place, row in source.rows:
            try:
                for example in parse_row(_value(row), vocab, append_eos):
                    if has_no_room(example, seq_len):
                        left_out.append(place)
                        continue
                    short = example._replace(input_ids=example.input_ids[:seq_len])
                    if len(short.input_ids) < len(example.input_ids):
                        cut.append(place)
                    yield check_example(short, vocab)
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
    return examples, TooLong(Those.at(left_out), Those.at(cut))


def _value(row: Any) -> Any:
    return parse(row) if isinstance(row, str) else row
