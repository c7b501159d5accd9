"""GPTQ 4-bit checkpoints in plain torch.

For a Linear of I inputs and O outputs, in groups of inputs that share a scale: qweight
int32 (I / 8, O), eight inputs to a word, the first in its lowest bits; qzeros int32
(groups, O / 8), eight outputs to a word; scales (groups, O); g_idx int32 (I), the group
of each input, in any order. Then weight[o, i] = scales[g_idx[i], o] * (q[i, o] -
zero[g_idx[i], o]).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llada_plugins.files.json_files import short

PACKED = ("qweight", "qzeros", "scales", "g_idx")
# What to add to a word of qzeros: "gptq" (v1) stores each zero point less one. Added to
# the word, not to each value: a zero point of 0 has borrowed from its neighbour.
ZERO_OFFSETS = {"gptq": 0x11111111, "gptq_v2": 0}


class Packing(NamedTuple):
    """How a checkpoint is packed."""

    group_size: int  # inputs that share a scale; -1 = all of them
    zero_offset: int  # a value of ZERO_OFFSETS


def read_packing(
    raw: Mapping[str, Any] | None, names: Iterable[str], source: Path
) -> Packing | None:
    """How the tensors called `names` are packed; None where they are not.

    raw: the checkpoint's quantization config, None if it has none. Raises ValueError on
    every quantisation but GPTQ with 4 bits.
    """
    packed = any(name.endswith(f".{PACKED[0]}") for name in names)
    if raw is None:
        if packed:
            raise ValueError(
                f"{source} holds packed tensors (*.{PACKED[0]}), but neither config.json "
                "(quantization_config) nor quantize_config.json says how: copy "
                "quantize_config.json from where the checkpoint was made"
            )
        return None
    # AutoGPTQ's first releases name none
    layout = raw.get("checkpoint_format") or raw.get("format") or "gptq"
    group_size = raw.get("group_size")
    said = {
        "quant_method": (raw.get("quant_method", "gptq"), ("gptq",)),
        "checkpoint_format": (layout, tuple(ZERO_OFFSETS)),
        "bits": (raw.get("bits"), (4,)),
    }
    for name, (value, allowed) in said.items():
        if value not in allowed:
            raise ValueError(
                f"{source}: its quantization config says {name}={short(value)}, but only "
                f"{' or '.join(map(repr, allowed))} can be read: give the checkpoint that it was "
                "made from, with quantize=int8 or nf4 to save memory"
            )
    if type(group_size) is not int or group_size < 1 and group_size != -1:
        raise ValueError(
            f"{source}: its quantization config says group_size={short(group_size)}, which must "
            "be a positive whole number, or -1"
        )
    if not packed:
        raise ValueError(
            f"{source}: its quantization config says gptq, but no tensor is packed "
            f"(*.{PACKED[0]}): if its weights are plain, remove quantization_config from "
            "config.json, or quantize_config.json"
        )
    return Packing(group_size, ZERO_OFFSETS[layout])


class PackedLinear(nn.Module):
    """A Linear whose weight stays packed, and is unpacked in every forward.

    A forward is of whole sequences, beside which unpacking costs little. It is made empty,
    on the meta device, in the shape of a Linear; its buffers have the checkpoint's names.
    """

    qweight: Tensor
    qzeros: Tensor
    scales: Tensor
    g_idx: Tensor

    def __init__(self, linear: nn.Linear, packing: Packing) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        inputs, outputs = linear.in_features, linear.out_features
        groups = 1 if packing.group_size == -1 else math.ceil(inputs / packing.group_size)
        shapes = ((inputs // 8, outputs), (groups, outputs // 8), (groups, outputs), (inputs,))
        for name, shape in zip(PACKED, shapes):
            dtype = torch.float16 if name == "scales" else torch.int32
            self.register_buffer(name, torch.empty(shape, dtype=dtype, device="meta"))
        self.bias = linear.bias
        self.zero_offset = packing.zero_offset

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.dequantised(x.dtype), self.bias)

    def check(self, name: str) -> None:
        """Raise ValueError where an input's group is none, which no header shows."""
        first, last, groups = int(self.g_idx.min()), int(self.g_idx.max()), len(self.scales)
        if not 0 <= first <= last < groups:
            raise ValueError(
                f"{name}.g_idx names groups {first} to {last} of {groups}: the file is damaged"
            )

    def dequantised(self, dtype: torch.dtype) -> Tensor:
        """The weight (O, I), computed in fp32."""
        shifts = torch.arange(0, 32, 4, dtype=torch.int32, device=self.qweight.device)
        weight = torch.empty(
            len(self.qweight), 8, self.out_features, dtype=torch.int8, device=self.qweight.device
        )
        for k in range(8):  # not in one go, which would hold two int32 copies of the weight
            weight[:, k] = (self.qweight >> 4 * k) & 15
        words = (self.qzeros + self.zero_offset)[..., None]  # (groups, O / 8, 1)
        zero = ((words >> shifts) & 15).to(torch.int8).flatten(1)  # (groups, O)
        group = self.g_idx.long()  # (I,)
        weight = (weight.flatten(0, 1) - zero[group]) * self.scales.float()[group]  # (I, O)
        return weight.t().to(dtype).contiguous()

    def unpacked(self, dtype: torch.dtype) -> nn.Linear:
        """The plain Linear of the same function."""
        linear = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        linear.weight = nn.Parameter(self.dequantised(dtype), requires_grad=False)
        linear.bias = self.bias
        return linear


def pack_linears(module: nn.Module, names: Iterable[str], packing: Packing) -> None:
    """Put an empty PackedLinear in the place of every Linear with packed tensors in `names`."""
    split = [name.rpartition(".") for name in names]
    packed = {place for place, _, leaf in split if leaf in PACKED}
    for name, linear in list(module.named_modules()):
        if name in packed and isinstance(linear, nn.Linear):
            replace(module, name, PackedLinear(linear, packing))


def replace(module: nn.Module, name: str, by: nn.Module) -> None:
    """Put a submodule in the place of the one of that name."""
    parent, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(parent), leaf, by)
