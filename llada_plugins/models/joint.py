"""Products with one input as one product: of queries, keys and values; of gate and up.

A short step waits for kernels to begin, and one of them is faster than three. On an H100
three products of 4096 x 4096 for 256 columns take 11 us longer than one, two of
4096 x 12288 take 4 us longer; for 1024 columns it is 4 and 27 us. Nothing is held
twice: the weights of the modules become rows of the joint one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .submodules import is_plain_linear


class Weights(NamedTuple):
    """Of a linear map."""

    weight: Tensor  # (sum of the modules' outputs, inputs)
    bias: Tensor | None


# by the names of the modules; those that are missing are called one by one
Joint = Mapping[tuple[str, ...], Weights]


class JointWeights:
    """The joint weights of one layer.

    A layer has them while it runs compiled, for inference. Its modules stay what they are:
    their weights may be read, saved and written in place, and whatever takes their place
    (an adapter, another weight) is found at the next call.
    """

    def __init__(self) -> None:
        self._groups: dict[tuple[str, ...], _Group] = {}

    def __reduce__(self) -> tuple[type[JointWeights], tuple[()]]:
        """A copy, as of a copied layer, begins without: its weights stand by themselves."""
        return JointWeights, ()

    def of(self, layer: nn.Module, groups: Sequence[tuple[str, ...]], x: Tensor) -> Joint:
        """The groups of the layer's modules that can be joined for an input like x."""
        found = {}
        for names in groups:
            parts = [getattr(layer, name) for name in names]
            if not all(is_plain_linear(part, x) for part in parts):
                continue
            if len({part.bias is None for part in parts}) > 1:
                continue
            group = self._groups.get(names)
            if group is None or not group.is_of(parts):
                self._groups.pop(names, None)
                group = self._groups[names] = _Group(parts)
            found[names] = group.weights
        return found


class _Group:
    """Modules whose weights are rows of one tensor."""

    @torch.no_grad()
    def __init__(self, parts: Sequence[nn.Linear]) -> None:
        # weights made in inference mode could never be trained
        with torch.inference_mode(False):
            weight = _side_by_side([part.weight for part in parts])
            biases = [part.bias for part in parts if part.bias is not None]
            self.weights = Weights(weight, _side_by_side(biases) if biases else None)
        self.places = _places(parts)

    def is_of(self, parts: Sequence[nn.Linear]) -> bool:
        """Are the modules' weights those rows still?"""
        return _places(parts) == self.places


def _side_by_side(parts: Sequence[Tensor]) -> Tensor:
    """All rows in one tensor, which the parts become views of."""
    joint = torch.cat([part.data for part in parts])
    for part, rows in zip(parts, joint.split([len(part) for part in parts])):
        part.data = rows
    return joint


def _places(parts: Sequence[nn.Linear]) -> list[tuple[int, torch.Size]]:
    """Where weights and biases lie in memory; their joint one stays, so no other lies there."""
    tensors = [each for part in parts for each in (part.weight, part.bias) if each is not None]
    return [(each.data_ptr(), each.shape) for each in tensors]
