"""Weights of Linears in 8 or 4 bits, and activations too where that is to save time.

int8 is by torchao, NF4 by bitsandbytes, both optional packages: there activations stay in
the model's dtype. Those that round activations (scaled_linear.py) give every token a scale
of its own, since an answer must not depend on its batch: what chooses scales or outlier
columns by the whole of it (LLM.int8) is not offered. Checkpoints that are stored in 4 bits
are read by gptq.py.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llada_plugins.options.startup_messages import silenced

from .mixture import StackedLinear
from .scaled_linear import FORMATS, ScaledLinear

# values of the option; "packed" leaves a GPTQ checkpoint as it is stored
Quantize = Literal["int8", "int8_dynamic", "fp8", "nf4", "packed"]
QUANTIZE = get_args(Quantize)

NF4_BLOCK = 64  # weights that share a scale


class Quantization(NamedTuple):
    """What became of a model's weights when it was loaded; `quantization_of` finds it."""

    method: str  # in words, for results
    num_parameters: int  # of the model as it was before; packed weights do not show their number
    # of the weights as they were before; None where they are plain tensors again
    fingerprint: str | None
    gptq: bool = False  # is its checkpoint GPTQ's?


class NF4Linear(nn.Module):
    """A Linear whose weight is NF4 (QLoRA, arXiv 2305.14314), dequantised in every forward.

    The scales of its blocks are in 8 bits. It stays on the device where it was made. Not
    bitsandbytes' own Linear4bit: on CPUs with AVX512-BF16 that takes a bfloat16 kernel
    which fails at sizes that are no multiples of its blocks.
    """

    def __init__(self, linear: nn.Linear) -> None:
        from bitsandbytes.functional import quantize_4bit

        super().__init__()
        self.shape, self.bias = linear.weight.shape, linear.bias
        # In rows of one block: bitsandbytes 0.50 dequantises longer rows wrongly on the
        # CPU where a block runs over their end (336 inputs: relative error .253, as
        # rows of one block .092).
        missing = -self.shape.numel() % NF4_BLOCK  # values of the last block
        rows = F.pad(linear.weight.data.flatten(), (0, missing)).view(-1, NF4_BLOCK)
        self.packed, self.state = quantize_4bit(
            rows, quant_type="nf4", blocksize=NF4_BLOCK, compress_statistics=True
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.dequantised(), self.bias)

    def dequantised(self) -> Tensor:
        """The weight (O, I), in the dtype in which it was given."""
        from bitsandbytes.functional import dequantize_4bit

        values = dequantize_4bit(self.packed, self.state).flatten()
        return values[: self.shape.numel()].view(self.shape)


def _int8(linear: nn.Linear) -> nn.Module:
    """One scale for each output, symmetric; the weight's class knows how to multiply."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(linear, Int8WeightOnlyConfig(set_inductor_config=False))
    return linear


class Method(NamedTuple):
    """A way to quantise a Linear."""

    package: str  # whose arithmetic it is
    make: Callable[[nn.Linear], nn.Module]  # what takes the Linear's place


METHODS = {
    "int8": Method("torchao", _int8),
    **{name: Method("torch", partial(ScaledLinear, method=name)) for name in FORMATS},
    "nf4": Method("bitsandbytes", NF4Linear),
}


@silenced()
def check_quantize(quantize: str | None) -> None:
    """Raise ValueError on an unknown value, ImportError where its package is not installed."""
    if quantize is not None and quantize not in QUANTIZE:
        raise ValueError(f"quantize must be none or one of {', '.join(QUANTIZE)}, got {quantize!r}")
    if quantize in METHODS:
        package = METHODS[quantize].package
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ImportError(
                f"quantize={quantize} needs {package} ({error}): pip install "
                "'llada-plugins[quantize]'"
            ) from error


def check_applies(quantize: str | None, source: Path, *, packed: bool, has_linears: bool) -> None:
    """Raise ValueError where the option does not suit the checkpoint.

    packed: is it GPTQ? has_linears: is there what can be quantised?
    """
    if packed and quantize in METHODS:
        raise ValueError(
            f"quantize={quantize} is for checkpoints in full precision, and {source} is GPTQ "
            "4-bit: leave it out (weights are dequantised), or give quantize=packed (they stay "
            "in 4 bits)"
        )
    if quantize == "packed" and not packed:
        raise ValueError(
            f"quantize=packed is for GPTQ checkpoints, and {source} is none: give quantize=int8 "
            "or nf4, or leave it out"
        )
    if quantize is not None and not has_linears:
        raise ValueError(
            f"quantize={quantize} would change nothing: the blocks of {source} have no Linear"
        )


def quantization_of(model: nn.Module) -> Quantization | None:
    """What became of the model's weights; None where they are as the checkpoint has them."""
    return getattr(model, "quantization", None)


def num_parameters(model: nn.Module) -> int:
    """Parameters of the model, however its weights are kept."""
    record = quantization_of(model)
    if record is not None:
        return record.num_parameters
    return sum(parameter.numel() for parameter in model.parameters())


def describe(method: str) -> str:
    """A method of METHODS in words, for results."""
    package = METHODS[method].package
    return f"{method} ({package} {version(package)})"


class QuantisedStack(nn.Module):
    """A stack of experts, each quantised as the Linear that it is."""

    def __init__(self, stack: StackedLinear, method: str) -> None:
        super().__init__()
        self.outputs = stack.weight.shape[1]
        self.experts = nn.ModuleList(
            quantise_linear(_linear(weight), method) for weight in stack.weight.data
        )

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        """As StackedLinear's."""
        parts = x.tensor_split(ends[:-1].tolist())
        # a package's kernel need not take no rows at all
        products = [expert(part) for expert, part in zip(self.experts, parts) if len(part)]
        return torch.cat(products) if products else x.new_empty(0, self.outputs)


def _linear(weight: Tensor) -> nn.Linear:
    outputs, inputs = weight.shape
    linear = nn.Linear(inputs, outputs, bias=False, device="meta")
    linear.weight = nn.Parameter(weight.clone(), requires_grad=False)  # which lets the stack go
    return linear


def quantised(module: nn.Linear | StackedLinear, method: str) -> nn.Module:
    """What takes the module's place, which is not to be used again."""
    if isinstance(module, StackedLinear):
        return QuantisedStack(module, method)
    return quantise_linear(module, method)


def quantise_linear(linear: nn.Linear, method: str) -> nn.Module:
    """What takes the Linear's place; the Linear may change, so it is not to be used again."""
    return METHODS[method].make(linear.requires_grad_(False))
