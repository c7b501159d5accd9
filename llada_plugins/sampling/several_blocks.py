"""Multi-block decoding: which blocks of a window each row works on (d3LLM, arXiv 2601.07568).

A row begins with its first block. When the last one that has entered is full enough
(block_add_threshold), or full, the next one enters, at most one a step. A block becomes fully
active when the one before it is full enough (decoded_token_threshold). Tokens that pass the
rule are kept in all blocks that have entered; where a step keeps at least one, FLOORS says.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from .config import SamplerConfig
from .facts import FloorIn


class Sizes(NamedTuple):
    """Tokens of the K blocks of a window; each is (1, K)."""

    of_block: Tensor  # the last may have fewer
    to_add: Tensor  # that stand before the next block enters
    to_activate: Tensor  # that stand before the next block is fully active

    @classmethod
    def of(cls, num_columns: int, config: SamplerConfig, device: torch.device) -> Sizes:
        """Of a window of so many columns."""
        starts = range(0, num_columns, config.block)
        sizes = [min(config.block, num_columns - start) for start in starts]
        shares = 1.0, config.block_add_threshold, config.decoded_token_threshold
        numbers = [[_tokens(share, size) for size in sizes] for share in shares]
        return cls(*(torch.tensor([each], device=device) for each in numbers))


class BlocksInWork(NamedTuple):
    """How far the K blocks of a window are, in N rows, before a step.

    A flag stays once it is set, whatever revision masks again.
    """

    width: int  # tokens of a block; the last may have fewer
    sizes: Sizes
    entered: Tensor  # (N, K) bool
    active: Tensor  # (N, K) bool: fully
    done: Tensor  # (N, K) bool: was full once, and stays as it is
    age: Tensor  # (N, K) steps since it entered
    led: Tensor  # (N, K) steps that it was the first one with masks, this one included

    @classmethod
    def of(cls, masked: Tensor, config: SamplerConfig) -> BlocksInWork:
        """Of rows in which nothing was done; masked: (N, W) bool."""
        sizes = Sizes.of(masked.shape[1], config, masked.device)
        nothing = masked.new_zeros(len(masked), sizes.of_block.shape[1])
        first = nothing.clone()
        first[:, 0] = True
        numbers = nothing.long()
        return cls(config.block, sizes, first, nothing, nothing, numbers - 1, numbers)

    def keep_rows(self, places: Tensor) -> BlocksInWork:
        """The rows at these places alone."""
        width, sizes, *of_rows = self
        return BlocksInWork(width, sizes, *(each[places] for each in of_rows))

    def before_step(self, masked: Tensor) -> BlocksInWork:
        """The blocks before the next step, which finds these columns (N, W) masked."""
        left = self.by_block(masked, False).sum(-1)  # (N, K)
        filled = self.sizes.of_block - left
        full = left == 0
        done = self.done | (self.entered & full)
        adds = full | (filled >= self.sizes.to_add)
        last = self.entered.sum(-1, keepdim=True) - 1  # (N, 1)
        number = last + 1 + adds.gather(1, last).long()
        entered = torch.arange(left.shape[1], device=left.device) < number
        ready = filled >= self.sizes.to_activate
        after_ready = torch.cat([torch.ones_like(ready[:, :1]), ready[:, :-1]], 1)
        first = _first(~done)
        return BlocksInWork(
            self.width,
            self.sizes,
            entered,
            self.active | (entered & after_ready),
            done,
            torch.where(self.entered, self.age + 1, 0),
            self.led + first,
        )

    def by_block(self, values: Tensor, filler: float) -> Tensor:
        """Values (N, W) as (N, K, width), a short last block filled up."""
        missing = -values.shape[1] % self.width
        by_block: Tensor = pad(values, (0, missing), value=filler).unflatten(1, (-1, self.width))
        return by_block

    def columns(self, of_blocks: Tensor, num_columns: int) -> Tensor:
        """What is said of blocks (N, K), of each of their columns (N, W)."""
        return of_blocks[..., None].expand(-1, -1, self.width).flatten(1)[:, :num_columns]

    def in_work(self, num_columns: int) -> Tensor:
        """Columns (N, W) of blocks that have entered and were never full, bool."""
        return self.columns(self.entered & ~self.done, num_columns)

    def due(self, num_columns: int, config: SamplerConfig) -> Tensor:
        """Columns (N, W) of the blocks for which no forward is left after this step, bool."""
        at_end = _first(~self.done) & (self.led >= config.forwards_per_block)
        return self.columns(at_end, num_columns)


def _tokens(share: float | None, size: int) -> int:
    """How many tokens of a block that share of it is, rounded up; None is all."""
    return size if share is None else math.ceil(share * size - 1e-9)


def _first(flags: Tensor) -> Tensor:
    """The first true one of each row (N, K) alone, bool."""
    return flags & (flags.cumsum(-1) == 1)


def of_active(blocks: BlocksInWork) -> Tensor:
    """Every fully active block (D2F, arXiv 2508.09192)."""
    return blocks.active & ~blocks.done


def of_first(blocks: BlocksInWork) -> Tensor:
    """The first one with masks."""
    return _first(~blocks.done)


# blocks (N, K) of which a step keeps at least one token, bool
FLOORS: dict[FloorIn, Callable[[BlocksInWork], Tensor]] = {
    "active": of_active,
    "first": of_first,
    "first_and_best": of_first,  # keep() adds the best of all
}
