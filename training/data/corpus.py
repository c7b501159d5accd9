"""Pre-training data: text, tokenised once into a file from which rows are cut.

Text comes from files, folders or the hub. It is read as a stream and tokens are mapped
from the disk, so neither has to fit into memory, and rows can still be shuffled.
Documents follow each other, each with an EOS after it; rows are cut wherever they end.
What is on the disk is named by a digest of the data, the tokenizer and EOS, and used
again by any run with the same; it does not depend on the length of rows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from llada_plugins.files.jsonl import each_row
from llada_plugins.files.utf8 import check_text, open_text

from .hub import Hub, load, looks_like_a_path
from .token_cache import digest, kept

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORMS = '{"text": text} or {"input_ids": [ids]}, other keys aside'
# what files call them
SPLITS = {
    "train": ("train",),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}
PIECE = 1 << 18  # characters of a text file that are tokenised together, up to the end of a line
BATCH = 1 << 20  # characters that go to the tokenizer at a time

Piece = str | list[int] | None  # text, ids as they are, or the end of a document


NAMES = {
    "wikitext2": Hub("Salesforce/wikitext", "wikitext-2-raw-v1", joined=True),
    "wikitext103": Hub("Salesforce/wikitext", "wikitext-103-raw-v1", joined=True),
    "tinystories": Hub("roneneldan/TinyStories"),
}


class Source(NamedTuple):
    """Text that can be read more than once."""

    name: str  # in messages
    digest: Callable[[], str]  # of what is read
    pieces: Callable[[], Iterator[Piece]]


def find(dataset: str, config: str | None, split: str | None) -> Source:
    """A split of a file, of a folder, or of a hub data set.

    A file is its own only split; a folder has a file or more for each.

    split: None is the validation split, or the test split where there is no other.
    Raises FileNotFoundError or ValueError that says what there is.
    """
    path = Path(dataset).expanduser()
    if dataset in NAMES:
        if config is not None:
            raise ValueError(
                f"--dataset_config has no effect on --dataset {dataset}, which is "
                f"{NAMES[dataset].title}: leave it out"
            )
        return _hub(NAMES[dataset], split)
    if not path.exists():
        if looks_like_a_path(dataset):
            raise FileNotFoundError(
                f"{dataset}: no such data; give a text file, a JSONL file with rows {FORMS}, a "
                f"folder with a file for each split, a hub name, or one of {', '.join(NAMES)}"
            )
        return _hub(Hub(dataset, config), split)
    if config is not None:
        raise ValueError(f"--dataset_config has no effect on files ({dataset}): leave it out")
    files = [path] if path.is_file() else _split_files(path, split)
    return Source(
        ", ".join(map(str, files)),
        lambda: digest(files),
        lambda: (piece for file in files for piece in _read(file)),
    )


def _split_files(folder: Path, split: str | None) -> list[Path]:
    """The files whose name has the split as a word.

    Such are wiki.train.tokens and train-00000-of-00002.jsonl.
    """
    files = sorted(file for file in folder.iterdir() if file.is_file())
    for name in ("validation", "test") if split is None else (split,):
        names = next((each for each in SPLITS.values() if name in each), (name,))
        found = [file for file in files if set(names) & set(re.split(r"[._-]", file.name))]
        if found:
            return found
    there = ", ".join(file.name for file in files) or "nothing"
    raise FileNotFoundError(
        f"{folder} has no file for the split {split or 'validation or test'}, but {there}: choose "
        "with --train_split and --eval_split, or give a file"
    )


def _read(file: Path) -> Iterator[Piece]:
    return _rows_of(file) if file.suffix in (".jsonl", ".json") else _text_of(file)


def _rows_of(file: Path) -> Iterator[Piece]:
    """The documents of a JSONL file."""
    for piece in each_row(file, _row):
        yield piece
        yield None


def _text_of(file: Path) -> Iterator[Piece]:
    """A text file, which is one document."""
    past = 0  # lines
    # newline="": a line's end stays what it is
    with open_text(file, newline="") as stream:
        while lines := stream.readlines(PIECE):
            for number, line in enumerate(lines, past + 1):
                try:
                    check_text(line)
                except ValueError as error:
                    raise ValueError(f"{file}:{number}: {error}") from None
            past += len(lines)
            yield "".join(lines)
    yield None


def _row(row: Any) -> Piece:
    text, ids = (row.get("text"), row.get("input_ids")) if isinstance(row, dict) else (None, None)
    if isinstance(text, str) and ids is None:
        check_text(text)
        return text
    if isinstance(ids, list) and text is None and all(type(token) is int for token in ids):
        return ids
    found = f"keys {sorted(row)}" if isinstance(row, dict) else type(row).__name__
    raise ValueError(f"expected {FORMS}, found {found} or a value of another type")


def _hub(hub: Hub, split: str | None) -> Source:
    name, rows = load(hub, split, "--dataset")
    if "text" not in rows.column_names:
        raise ValueError(
            f"--dataset {hub.title} has no column text, but {', '.join(rows.column_names)}"
        )

    def pieces() -> Iterator[Piece]:
        for row in rows:
            yield row["text"]
            if not hub.joined:
                yield None
        if hub.joined:
            yield None

    return Source(f"{hub.title} {name}", lambda: f"{rows._fingerprint} {hub.joined}", pieces)


class Rows(torch.utils.data.Dataset):
    """Rows of seq_len tokens, the last one shorter, of a tokenised source.

    Every n-th where there are more than `limit`.
    """

    def __init__(self, folder: Path, seq_len: int, limit: int | None = None) -> None:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        self.key: str = folder.name
        self.bytes_per_token: float | None = None  # where rows are ids
        if meta["num_bytes"] is not None:
            self.bytes_per_token = meta["num_bytes"] / meta["num_tokens"]
        self.seq_len = seq_len
        self._tokens = np.memmap(folder / "tokens.bin", meta["dtype"], "r")
        total = -(-len(self._tokens) // seq_len)  # rounded up
        self._numbers: Sequence[int] = range(total)
        if limit is not None and total > limit:
            self._numbers = [number * total // limit for number in range(limit)]

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, number: int) -> list[int]:
        first = self._numbers[number] * self.seq_len
        return self._tokens[first : first + self.seq_len].tolist()


def tokenise(
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    vocab_size: int,
    eos_id: int,
    cache: Path,
    mask_id: int | None = None,
) -> Path:
    """The folder in `cache` that has the source's tokens, made if it is not there.

    mask_id: which no document may hold; None: it is not looked for. Raises ValueError on
    that, on ids outside the vocabulary, and on data without any text.
    """
    kind = "uint16" if vocab_size <= 1 << 16 else "uint32"

    def write(folder: Path) -> None:
        num_tokens = num_documents = 0
        num_bytes: int | None = 0
        with (folder / "tokens.bin").open("wb") as file:
            for ids, size, ended in _encoded(source.pieces(), tokenizer):
                num_bytes = None if size is None or num_bytes is None else num_bytes + size
                _check_ids(ids, source.name, vocab_size, mask_id, num_documents + 1)
                num_documents += ended
                num_tokens += len(ids)
                np.array(ids + [eos_id] * ended, kind).tofile(file)
        if num_tokens == 0:
            raise ValueError(
                f"{source.name}: no text; give a text file, or a JSONL file with rows {FORMS}"
            )
        meta = {
            "source": source.name,
            "dtype": kind,
            "num_tokens": num_tokens + num_documents,
            "num_bytes": num_bytes,
            "num_documents": num_documents,
        }
        (folder / "meta.json").write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")

    made_of = [source.digest(), tokenizer.backend_tokenizer.to_str(), eos_id, kind, mask_id]
    return kept(cache, made_of, write)


def _check_ids(
    ids: list[int], name: str, vocab_size: int, mask_id: int | None, document: int
) -> None:
    """document: the number of the one that the ids are of, from 1."""
    if ids and not 0 <= min(ids) <= max(ids) < vocab_size:
        raise ValueError(
            f"{name}: input_ids must be between 0 and {vocab_size - 1}, found {min(ids)} to "
            f"{max(ids)}"
        )
    if mask_id is not None and mask_id in ids:
        raise ValueError(
            f"{name}: document {document} holds the mask token ({mask_id}), which the noise of "
            "training puts there: leave it out of the text"
        )


class Encoded(NamedTuple):
    """A piece as ids."""

    ids: list[int]
    size: int | None  # bytes of the text; None where the piece was ids already
    ended: bool  # does a document end here?


def _encoded(pieces: Iterator[Piece], tokenizer: PreTrainedTokenizerBase) -> Iterator[Encoded]:
    """The pieces as ids; texts are tokenised many at a time."""
    waiting: list[Piece] = []
    size = 0
    for piece in pieces:
        waiting.append(piece)
        size += len(piece or ())
        if size >= BATCH:
            yield from _encode_all(waiting, tokenizer)
            waiting, size = [], 0
    yield from _encode_all(waiting, tokenizer)


def _encode_all(pieces: list[Piece], tokenizer: PreTrainedTokenizerBase) -> Iterator[Encoded]:
    texts = [piece for piece in pieces if isinstance(piece, str)]
    ids: Iterator[list[int]] = iter(())
    if texts:  # the tokenizer takes no empty list
        options = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False}
        ids = iter(tokenizer(texts, **options)["input_ids"])
    for piece in pieces:
        if piece is None:
            yield Encoded([], 0, True)
        elif isinstance(piece, str):
            yield Encoded(next(ids), len(piece.encode()), False)
        else:
            yield Encoded(piece, None, False)


def collate_rows(
    eos_id: int, boundaries: bool
) -> Callable[[Sequence[list[int]]], dict[str, Tensor]]:
    """Batches for pre-training: input_ids and weight, both (B, L).

    weight is fp32, 1 at tokens and 0 at the padding of short rows.

    With padding an attention_mask (B, L) that hides it; with boundaries one (B, L, L)
    under which a token attends to those of its document alone. A document ends with its
    EOS.
    """

    def collate(rows: Sequence[list[int]]) -> dict[str, Tensor]:
        length = max(len(row) for row in rows)
        tokens = torch.tensor([row + [eos_id] * (length - len(row)) for row in rows])  # (B, L)
        real = torch.arange(length) < torch.tensor([len(row) for row in rows])[:, None]
        batch = {"input_ids": tokens, "weight": real.float()}
        if boundaries:
            end = (tokens == eos_id).long()
            document = end.cumsum(-1) - end  # (B, L): the EOS is its document's last token
            # (B, L, L); padding is documents of one token
            batch["attention_mask"] = document[:, :, None] == document[:, None, :]
        elif not real.all():
            batch["attention_mask"] = real
        return batch

    return collate
