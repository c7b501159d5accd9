"""What blocks have added to the columns of an answer, kept so that each computes few of them again.

dLLM-Cache (arXiv 2506.06295): between refreshes a block projects the values of all columns,
which costs little, and computes the rest at those alone whose values have moved most. Every
block chooses its own. The others get what attention and the MLP added to them before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layer import LayerFeatures, attend, write
from .past import Past
from .submodules import home

if TYPE_CHECKING:
    from .block import Block

# Squared distance of unit values below which a column counts as not moved: a cosine above
# 1 - 5e-7. What is left there is rounding, which would choose otherwise in another batch.
UNMOVED = 1e-6


class FeaturePast(Past):
    """A Past of blocks that keep features as well, of the last columns of a canvas.

    num_moving: of how many columns the next forward reads or writes them. number: how many
    of these each block computes, ties in that order (B, num_moving); None: all, and their
    features are replaced.
    """

    def __init__(self, capacity: int) -> None:
        """capacity: columns that features are kept of, at most."""
        super().__init__()
        self.capacity = self.num_moving = capacity
        self.number: int | None = None
        self.order: Tensor | None = None
        self.features: list[LayerFeatures] = []

    def make_room(
        self, blocks: Sequence[nn.Module], num_rows: int, width: int, dtype: torch.dtype
    ) -> None:
        """Have memory for the features of these blocks, each where it computes."""
        if self.features:
            return
        shape = 2, num_rows, self.capacity, width
        for block in blocks:
            memory = torch.empty(shape, dtype=dtype, device=home(block))
            self.features.append(LayerFeatures(*memory))

    def in_work(self) -> list[LayerFeatures]:
        """Those of the columns that move in the next forward."""
        first = self.capacity - self.num_moving
        return [LayerFeatures(*(each[:, first:] for each in layer)) for layer in self.features]

    def keep_rows(self, take: Callable[[Tensor], Tensor]) -> None:
        """Forget all rows but those that `take` takes from a tensor of all."""
        super().keep_rows(take)
        for layer, each in enumerate(self.features):
            self.features[layer] = LayerFeatures(*map(take, each))


def moved_most(new: Tensor, old: Tensor, order: Tensor, number: int) -> Tensor:
    """The columns (B, number), ascending, whose values (B, H, M, head_dim) moved most.

    By the cosine of a column's values in all heads with its former ones. It is compared as a
    distance, since 1 - cosine of near ones would be rounding alone. order: (B, M) columns;
    ties go to those that come first in it. There are many: in the first block the values of
    a column depend on its token alone, and in later ones they move if an earlier block has
    computed the column.
    """
    precise = torch.promote_types(new.dtype, torch.float)
    new, old = (
        F.normalize(each.to(precise).transpose(1, 2).flatten(2), dim=-1) for each in (new, old)
    )
    distance = (new - old).square().sum(-1)  # (B, M), 2 - 2 cosine
    distance = distance.masked_fill(distance < UNMOVED, 0).gather(1, order)
    farthest = distance.argsort(dim=-1, descending=True, stable=True)[:, :number]
    return order.gather(1, farthest).sort(-1).values


def compute_all(block: Block, features: LayerFeatures, x: Tensor, *given: Any) -> Tensor:
    """The block's output for x (B, W, D), and in features what it adds to the last columns.

    given: what `Block.compute` is given after x.
    """
    first = x.shape[1] - features.attended.shape[1]
    added = block.from_attention(block.attn_norm(x), *given)  # (B, W, D)
    features.attended.copy_(added[:, first:])
    x = x + added
    added = block.from_mlp(x)
    features.fed.copy_(added[:, first:])
    return x + added


def compute_moved(
    block: Block,
    features: LayerFeatures,
    order: Tensor,
    number: int,
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    visible: Tensor | None,
    keys: Tensor,
    values: Tensor,
    columns: Tensor,
) -> Tensor:
    """The block's output for x (B, W, D), of whose last M columns it computes `number`.

    The others get features as they are. order: see moved_most. Columns before those M are all
    computed. number 0: of the M columns not even values change.
    """
    first = x.shape[1] - features.attended.shape[1]
    if number == 0 and first == 0:
        return x + features.attended + features.fed
    h = block.attn_norm(x)
    work = torch.arange(first, device=x.device).expand(len(x), -1)
    chosen = work[:, :0]
    if number > 0:
        v = block.values_of(h)  # (B, G, W, head_dim)
        chosen = moved_most(v[:, :, first:], values[:, :, columns[first:]], order, number)
        work = torch.cat([work, chosen + first], 1)  # (B, first + number)
    else:
        v, columns = block.values_of(h[:, :first]), columns[:first]
    write(values, columns, v)
    q, k = block.queries_and_keys(at(h, work), _rotations_at(cos, work), _rotations_at(sin, work))
    write(keys, columns[work], k)
    added = block.gathered(attend(q, keys, values, visible))
    x = x + _with_kept(features.attended, chosen, added, first)
    added = block.from_mlp(at(x, work))
    return x + _with_kept(features.fed, chosen, added, first)


def at(values: Tensor, places: Tensor) -> Tensor:
    """Values (B, W, D) at places (B, N) of each row, as (B, N, D)."""
    return values.gather(1, places[..., None].expand(-1, -1, values.shape[-1]))


def _rotations_at(table: Tensor, places: Tensor) -> Tensor:
    """cos or sin, of columns (W, head_dim) or by row (B, 1, W, head_dim), at places (B, N)."""
    found = table[places] if table.dim() == 2 else at(table[:, 0], places)
    return found[:, None]  # (B, 1, N, head_dim)


def _with_kept(kept: Tensor, chosen: Tensor, added: Tensor, first: int) -> Tensor:
    """What is added to all columns: the computed ones (B, first + N, D) over those kept.

    kept: (B, M, D), which takes over the N at chosen (B, N).
    """
    places = chosen[..., None].expand(-1, -1, kept.shape[-1])
    kept.scatter_(1, places, added[:, first:])
    return torch.cat([added[:, :first], kept], 1)
