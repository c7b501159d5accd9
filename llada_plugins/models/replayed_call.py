"""A function of tensors over memory that stays in place, whatever batch they are of.

What a step decides of a model's hidden states is such a function. Its arguments are records
(records.py): tensors, which are put in anew at every call, and what is the same in all calls
of a form.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any, NamedTuple

from torch import Tensor

from .captured import Captured
from .cuda_graph import Graph
from .past import row_bucket
from .records import leaves, num_branches, with_leaves

# Positions that are decided together. Their logits of 126,464 tokens take 260 MB in float32,
# and the memory of a graph serves nothing else.
MOST_POSITIONS = 512


class Size(NamedTuple):
    """How much a call decides."""

    num_rows: int
    num_columns: int  # of each row, at least
    width: int  # columns that there are

    def bucket(self) -> Size:
        """What a graph has room for: quarters of the columns, so that few graphs do."""
        quarter = -(-self.width // 4)  # rounded up
        num_columns = -(-self.num_columns // quarter) * quarter
        return Size(row_bucket(self.num_rows), min(num_columns, self.width), self.width)

    @property
    def is_small(self) -> bool:
        """May a call of that size be replayed?"""
        return self.num_rows * self.num_columns <= MOST_POSITIONS


class ReplayedCall:
    """Calls of one form, with room for a bucket of rows."""

    def __init__(self, given: tuple[Any, ...], size: Size) -> None:
        """given: arguments, each a record. size: theirs."""
        self.room = size.bucket()
        self.captured: Captured[Any] = Captured()

        def memory(leaf: Tensor) -> Tensor:
            branches = num_branches(leaf, size.num_rows)
            return leaf.new_zeros(max(1, branches * self.room.num_rows), *leaf.shape[1:])

        self.given = tuple(with_leaves(each, memory) for each in given)

    def load(self, given: tuple[Any, ...], num_rows: int) -> None:
        """Put the arguments in. Further rows keep what they had, and nothing comes of them."""
        for kept, leaf in zip(chain(*map(leaves, self.given)), chain(*map(leaves, given))):
            branches = num_branches(leaf, num_rows)
            if branches == 0:
                kept.copy_(leaf)
                continue
            rows = kept.unflatten(0, (branches, -1))[:, :num_rows]
            rows.copy_(leaf.unflatten(0, (branches, num_rows)))

    def run(
        self, function: Callable[..., Any], num_rows: int, make_graph: Callable[[], Graph]
    ) -> Any:
        """The results of so many rows. Raises RuntimeError where they cannot be captured."""
        found = self.captured.run(lambda: function(*self.given, self.room.num_columns), make_graph)
        # copies: the next call writes to the same place
        return with_leaves(found, lambda leaf: leaf[:num_rows].clone())
