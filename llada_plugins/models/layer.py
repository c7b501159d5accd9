"""What transformer layers of every family share; not what a layer computes.

How they are called, what they keep and attend to, how they run: compiled, with activation
checkpointing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .compiling import Compiling
from .joint import Joint, JointWeights
from .past import LayerPast

# torch 2.5 brought it
GROUPED = "enable_gqa" in (F.scaled_dot_product_attention.__doc__ or "")

# of all heads that share a key: as many as attention kernels of a GPU take at once
FEW_QUERIES = 128


class View(NamedTuple):
    """What the blocks of one forward share: where their columns stand, what these attend to."""

    cos: Tensor  # (W, head_dim) of the columns in work; by row: (B, 1, W, head_dim)
    sin: Tensor
    # bool, broadcastable to (B, H, W, L), True = may be attended; None = everything
    visible: Tensor | None = None
    # (W,) their places among the L columns of past; in slots by row: (B, W)
    columns: Tensor | None = None
    past: Sequence[LayerPast] | None = None
    # of each block, where it keeps features of the last columns in work
    features: Sequence[LayerFeatures] | None = None
    # (B, N) of those columns, in the order in which ties are chosen: see features.py
    order: Tensor | None = None
    number: int | None = None  # of those columns that a block computes; None: all

    def run(self, block: nn.Module, x: Tensor, layer: int) -> Tensor:
        """The block's output for x (B, W, D). layer: which of past is the block's.

        A block gets tensors alone, so that a compiler sees all that it reads and writes.
        """
        past = () if self.past is None else (*self.past[layer], self.columns)
        kept: tuple[Tensor | int | None, ...] = ()
        if self.features is not None:
            kept = *self.features[layer], self.order, self.number
        output: Tensor = block(x, self.cos, self.sin, self.visible, *past, *kept)
        return output


class LayerFeatures(NamedTuple):
    """What one block has added to the last M columns, which it writes in place."""

    attended: Tensor  # (B, M, D) by attention
    fed: Tensor  # (B, M, D) by its MLP or experts


class Streams(NamedTuple):
    """What a forward pass computes before the head."""

    hidden: Tensor  # (B, L, D) final-norm hidden state
    confidence: Tensor | None = None  # (B, L) raw score of an unmasking-policy stream, fp32

    def cut(self, num_rows: int) -> Streams:
        """Those of so many rows that stood side by side in fewer."""
        confidence = self.confidence
        if confidence is not None:
            confidence = confidence.reshape(num_rows, -1)
        return Streams(self.hidden.reshape(num_rows, -1, self.hidden.shape[-1]), confidence)


def attend(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
    """Bidirectional attention of queries (B, H, W, head_dim), (B, H, W, head_dim).

    k, v: (B, G, L, head_dim), of which each serves H / G heads in a row. visible: bool,
    broadcastable to (B, H, W, L), True = may be attended.
    """
    # On the CPU the fused backward costs 5x the explicit one at L = 33 (52 % of a
    # training step).
    fused = q.device.type != "cpu" or not q.requires_grad
    times = q.shape[1] // k.shape[1]
    if times > 1 and fused and _serves_groups(q, visible, times):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=visible, enable_gqa=True)
    if times > 1 and fused and _is_small(visible, k):
        return _attend_as_one_head(q, k, v, visible, times)
    if times > 1:
        k, v = k.repeat_interleave(times, 1), v.repeat_interleave(times, 1)
    if fused:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=visible)
    score = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if visible is not None:
        score = score.masked_fill(~visible, -math.inf)
    attended: Tensor = score.float().softmax(-1).to(v.dtype) @ v
    return attended


def _attend_as_one_head(
    q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, times: int
) -> Tensor:
    """`attend` where the queries of all heads that share a key stand one after another.

    So keys and values of a cache are read as they are, not copied to every head.
    """
    width = q.shape[2]
    q = q.unflatten(1, (-1, times)).flatten(2, 3)  # (B, G, times * W, head_dim)
    if visible is not None and visible.shape[2] > 1:
        visible = visible.repeat(1, 1, times, 1)
    attended: Tensor = F.scaled_dot_product_attention(q, k, v, attn_mask=visible)
    attended = attended.unflatten(2, (times, width))  # (B, G, times, W, head_dim)
    return attended.flatten(1, 2)


def _is_small(visible: Tensor | None, k: Tensor) -> bool:
    """Is a mask of as many queries as `times` heads have smaller than copies of the keys?"""
    return visible is None or visible.shape[2] < k.shape[2]


def _serves_groups(q: Tensor, visible: Tensor | None, times: int) -> bool:
    """Does a fused kernel serve several heads from one of k and v, so that none are copied?

    On a GPU that is flash attention, which takes no mask; with one, torch would go to
    the kernel that writes all scores out. Of several rows it reads k and v once a head: for
    a cache's few queries (32 rows of 32, H100) that takes 133 us, and as one head 84.
    """
    if not GROUPED or q.device.type == "cpu":
        return GROUPED
    few = q.shape[0] > 1 and times * q.shape[2] <= FEW_QUERIES
    return visible is None and not few


def write(memory: Tensor, columns: Tensor, new: Tensor) -> None:
    """Put new keys or values (B, H, W, head_dim) at their columns, (W,) or (B, W), of memory."""
    if columns.dim() == 1:
        # not index_copy_: compiled, that copies all of memory, and back (torch 2.13)
        memory[:, :, columns] = new
        return
    rows = torch.arange(len(columns), device=columns.device)[:, None]
    memory[rows, :, columns] = new.transpose(1, 2)


class Layer(nn.Module):
    """One layer of a transformer, which may run compiled; a subclass says what in `compute`."""

    # names of linear modules that get the same input
    same_input: tuple[tuple[str, ...], ...] = ()

    def __init__(self) -> None:
        super().__init__()
        # keep the input alone for the backward pass, and compute everything else again
        # in it
        self.recompute = False
        # of the model, for all its layers; None: nothing is compiled
        self.compiling: Compiling | None = None
        self.joint_weights = JointWeights()

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        visible: Tensor | None = None,
        keys: Tensor | None = None,
        values: Tensor | None = None,
        columns: Tensor | None = None,
        attended: Tensor | None = None,
        fed: Tensor | None = None,
        order: Tensor | None = None,
        number: int | None = None,
    ) -> Tensor:
        """x: (B, W, D); the others as in View, LayerPast and LayerFeatures.

        Given keys and values, those of x are written into them at `columns`, and x
        attends to all L of them. Given features, the layer runs eager.
        """
        given = x, cos, sin, visible, keys, values, columns
        if attended is not None and fed is not None:
            if self.compiling is not None and self.compiling.wanted(x.device):
                self.compiling.note("layers run eager: with cache=partial each chooses its columns")
            return self.compute_in_part(LayerFeatures(attended, fed), order, number, *given)
        run = self.compute if self.compiling is None else partial(self.compiling.run, self)
        # inside the layer: hooks that change its input, such as a router's, run once
        if self.recompute and torch.is_grad_enabled():
            output: Tensor = checkpoint(run, *given, use_reentrant=False)
            return output
        return run(*given)

    def compute(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        visible: Tensor | None,
        keys: Tensor | None,
        values: Tensor | None,
        columns: Tensor | None,
        joint: Joint | None = None,
    ) -> Tensor:
        """What `forward` returns: one graph for a compiler. joint: in the place of modules."""
        raise NotImplementedError

    def compute_in_part(
        self, features: LayerFeatures, order: Tensor | None, number: int | None, *given: Any
    ) -> Tensor:
        """What `forward` returns where it is given features. given: what comes before those."""
        raise NotImplementedError

    def outputs_of(
        self, names: tuple[str, ...], x: Tensor, joint: Joint | None
    ) -> Sequence[Tensor]:
        """What the modules of these names make of x, by one product where that is given."""
        if joint is None or names not in joint:
            return [getattr(self, name)(x) for name in names]
        sizes = [getattr(self, name).out_features for name in names]
        together = F.linear(x, *joint[names])
        return torch.split(together, sizes, -1)


class ActivationCheckpointing(nn.Module):
    """A module with Layers inside, whose activations may be computed again in the backward.

    Its methods have the names that transformers' Trainer calls.
    """

    def activation_checkpointing_enable(self, **_: Any) -> None:
        """Every layer keeps its input alone for the backward pass, whatever the options are."""
        for module in self.modules():
            if isinstance(module, Layer):
                module.recompute = True

    gradient_checkpointing_enable = activation_checkpointing_enable
