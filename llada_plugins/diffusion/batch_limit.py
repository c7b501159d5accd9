"""How many rows are computed at once, and fewer of them after memory was too small."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

logger = logging.getLogger(__name__)

OutOfMemory = torch.cuda.OutOfMemoryError  # torch 2.4 has it under this name alone
Item = TypeVar("Item")
Result = TypeVar("Result")


class BatchLimit:
    """How many rows of so many tokens make a batch: as planned, until one does not fit.

    rows_at_once: the plan, from the tokens of the longest row. After a batch that did not
    fit, none holds more than half of its tokens.
    """

    def __init__(self, rows_at_once: Callable[[int], int]) -> None:
        self.rows_at_once = rows_at_once
        self.most_tokens: int | None = None  # what is known to be too much is above it

    def __call__(self, longest: int) -> int:
        rows = self.rows_at_once(longest)
        if self.most_tokens is not None:
            rows = min(rows, self.most_tokens // longest)
        return max(1, rows)

    def halve(self, num_rows: int, longest: int) -> None:
        """Plan half of a batch that did not fit; said once.

        Raises OutOfMemory where the batch had one row.
        """
        if num_rows == 1:
            raise OutOfMemory(
                f"one row of {longest} tokens does not fit the device's memory: lower gen_length "
                "or max_length, load the model with quantize=int8 or nf4, or take a device with "
                "more memory"
            )
        if self.most_tokens is None:
            logger.warning(
                "out of memory with %d rows of %d tokens: from here on batches are half as large, "
                "smaller still where that does not fit; what was in work is done again",
                num_rows,
                longest,
            )
        self.most_tokens = num_rows // 2 * longest


def in_halves(
    run: Callable[[Sequence[Item]], list[Result]],
    items: Sequence[Item],
    limit: BatchLimit,
    longest: int,
) -> list[Result]:
    """run(items), in halves as often as memory is too small; results in the items' order.

    longest: tokens of the longest item's row.
    """
    try:
        return run(items)
    except OutOfMemory:
        limit.halve(len(items), longest)
    # not within `except`, where the error still holds what the step had computed
    release_memory()
    middle = (len(items) + 1) // 2
    parts = (items[:middle], items[middle:])
    return [result for part in parts for result in in_halves(run, part, limit, longest)]


def release_memory() -> None:
    """Give what torch keeps of freed memory back, so that smaller pieces can be had of it."""
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
