"""The order of rows under --batches_by_length: batches whose rows have similar lengths."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler

from .random_streams import random_stream

POOL = 50  # updates whose rows are sorted together: few leave little padding, many little chance


class RowsByLength(Sampler[int]):
    """Numbers of rows, each once an epoch, so that an update has rows of similar lengths.

    Rows are shuffled, those of POOL updates sorted by length, and the updates shuffled
    again. What fills no whole update comes last, drawn at random as well.

    lengths: of all rows, in tokens. update: rows of an update, over all its micro-batches
    and processes, so that the order is the same however an update is divided. an_epoch:
    its updates. The order depends on the seed and the updates done alone, so that a resumed
    run meets the same.
    """

    def __init__(self, lengths: Sequence[int], update: int, an_epoch: int, seed: int) -> None:
        self.lengths, self.update = torch.tensor(lengths, dtype=torch.long), update
        self.an_epoch, self.seed = an_epoch, seed
        # the trainer says how many updates are done: what libraries tell a sampler of its
        # epoch does not reach it in every resumed run of several processes
        self.num_done: Callable[[], int] = lambda: 0

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        epoch = self.num_done() // max(self.an_epoch, 1)
        generator = random_stream("rows by length", self.seed, epoch)
        rows = torch.randperm(len(self.lengths), generator=generator)
        num_updates = len(rows) // self.update
        whole, rest = rows[: num_updates * self.update], rows[num_updates * self.update :]
        pools = [pool[self.lengths[pool].argsort()] for pool in whole.split(POOL * self.update)]
        updates = torch.cat([*pools, whole[:0]]).view(num_updates, self.update)
        yield from updates[torch.randperm(num_updates, generator=generator)].flatten().tolist()
        yield from rest[self.lengths[rest].argsort()].tolist()


def lengths_of(rows: Any) -> list[int]:
    """Tokens of every row; ValueError where rows have no lengths of their own."""
    if not hasattr(rows, "__len__") or not hasattr(rows[0], "input_ids"):
        raise ValueError(
            "--batches_by_length: rows of pre-training all have one length: leave it out"
        )
    return [len(row.input_ids) for row in rows]
