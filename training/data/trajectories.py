"""A teacher's answers with the order in which it unmasked their tokens: rows and batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .examples import Example, Examples, collate_answers


class Trajectory(NamedTuple):
    """A row of prompt and answer, and the way in which the answer came to be."""

    input_ids: list[int]
    prompt_length: int
    order: list[int]  # of each answer token: how many stood before it was unmasked


class Trajectories(Sequence[Trajectory]):
    """Trajectories on the disk, mapped as they are read, as Examples are.

    They are in temporary files, or in files of a folder, to be loaded again.
    """

    def __init__(self, rows: Iterable[Trajectory], folder: Path | None = None) -> None:
        rows = list(rows)
        answers, orders = (_begun(folder, name) for name in ("answers", "orders"))
        self._answers = Examples((Example(*row[:2]) for row in rows), answers)
        self._orders = Examples((Example(row.order, 0) for row in rows), orders)

    @classmethod
    def load(cls, folder: Path) -> Trajectories:
        """Those that are in a folder."""
        found = cls(())
        found._answers = Examples.load(folder / "answers")
        found._orders = Examples.load(folder / "orders")
        return found

    def __len__(self) -> int:
        return len(self._answers)

    def __getitem__(self, number: int) -> Trajectory:  # type: ignore[override]  # no slices
        return Trajectory(*self._answers[number], self._orders[number].input_ids)


def _begun(folder: Path | None, name: str) -> Path | None:
    """A new folder of that name in a folder, if there is one."""
    if folder is None:
        return None
    (folder / name).mkdir()
    return folder / name


def collate_trajectories(
    eos_id: int, longest: int | None = None
) -> Callable[[Sequence[Trajectory]], dict[str, Tensor]]:
    """Batches of answers as of `collate_answers`, with `order` (B, L) of the answer tokens.

    Padding EOS is answer that the teacher would have unmasked last, left to right. In the
    prompt the order is -1.
    """
    collate_rows = collate_answers(eos_id, longest=longest)

    def collate(rows: Sequence[Trajectory]) -> dict[str, Tensor]:
        batch = collate_rows([Example(*row[:2]) for row in rows])
        length = batch["input_ids"].shape[1]
        order = torch.full((len(rows), length), -1)
        for number, row in enumerate(rows):
            of_padding = range(len(row.order), length - row.prompt_length)
            order[number, row.prompt_length :] = torch.tensor([*row.order, *of_padding])
        return {**batch, "order": order}

    return collate
