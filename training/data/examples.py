"""Clean token rows: one by one, many on the disk, and as batches."""

from __future__ import annotations

import tempfile
from array import array
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import torch
from torch import Tensor


class Example(NamedTuple):
    """A clean token row: prompt, then answer."""

    input_ids: list[int]
    prompt_length: int


Collate = Callable[[Sequence[Example]], dict[str, Tensor]]


class Examples(Sequence[Example]):
    """Rows on the disk, mapped as they are read: 16 bytes of memory a row.

    So they need not fit into memory.

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


def collate_answers(eos_id: int, block_length: int = 1, longest: int | None = None) -> Collate:
    """Batches for SFT: answers padded with EOS to the longest row.

    Padding counts as answer (LLaDA, GUIDELINES.md). block_length: rows are padded to whole
    blocks, as decoding fills them, but never beyond `longest`, the model's context.

    A batch holds input_ids (B, L) and weight (B, L), fp32: 1 / answer length at answer
    tokens, padding included, 0 in the prompt.
    """

    def collate(examples: Sequence[Example]) -> dict[str, Tensor]:
        length = max(len(example.input_ids) for example in examples)
        whole = -(-length // block_length) * block_length  # rounded up
        length = max(length, min(whole, longest or whole))
        rows = [ids + [eos_id] * (length - len(ids)) for ids, _ in examples]
        tokens = torch.tensor(rows)  # (B, L)
        prompt_length = torch.tensor([example.prompt_length for example in examples])[:, None]
        answer = torch.arange(length) >= prompt_length
        return {"input_ids": tokens, "weight": answer.float() / (length - prompt_length)}

    return collate
