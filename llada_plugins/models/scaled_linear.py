"""Linears that multiply 8-bit numbers: of the weight a scale for each output, of the input
a scale for each token, which is found when it comes.

By torch's own operators and not by torchao's Linears, whose integer product fails in a
compiled layer of at most 16 rows on a GPU, overflows on CPUs without VNNI, and whose fp8
leaves matrices of some sizes as they are without a word.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

logger = logging.getLogger(__name__)

# The least scale, so that a row of zeros is divided by no zero.
LEAST_SCALE = torch.finfo(torch.float32).tiny
# torch._int_mm on a GPU takes more rows than these.
TOO_FEW = 16


class Rounded(NamedTuple):
    """A matrix in 8 bits: values times scale."""

    values: Tensor  # (R, I)
    scale: Tensor  # (R, 1) fp32


Product = Callable[[Rounded, Rounded, torch.dtype], Tensor]  # (R, O) of (R, I) and (O, I)


def fp8_product(x: Rounded, weight: Rounded, dtype: torch.dtype) -> Tensor:
    # fast accumulation, as inference is run on Hopper: its error is far below fp8's
    return torch._scaled_mm(
        x.values,
        weight.values.t(),
        x.scale,
        weight.scale.t(),
        out_dtype=dtype,
        use_fast_accum=True,
    )


def _scaled(sums: Tensor, x: Rounded, weight: Rounded, dtype: torch.dtype) -> Tensor:
    return (sums.float() * x.scale * weight.scale.t()).to(dtype)


def int8_product(x: Rounded, weight: Rounded, dtype: torch.dtype) -> Tensor:
    return _scaled(torch._int_mm(x.values, weight.values.t()), x, weight, dtype)


def int8_product_on_gpu(x: Rounded, weight: Rounded, dtype: torch.dtype) -> Tensor:
    # Rows of zeros are added always: whether there are too few would be another graph.
    values = F.pad(x.values, (0, 0, 0, TOO_FEW))
    return _scaled(torch._int_mm(values, weight.values.t())[:-TOO_FEW], x, weight, dtype)


def int8_product_in_float(x: Rounded, weight: Rounded, dtype: torch.dtype) -> Tensor:
    return _scaled(x.values.float() @ weight.values.float().t(), x, weight, dtype)


@functools.cache
def int8_product_for(device_type: str) -> Product:
    """The product of whole numbers that is right there."""
    if device_type == "cuda":
        return int8_product_on_gpu
    if _sums_are_exact():
        return int8_product
    logger.warning(
        "this CPU's 8-bit products overflow (it has no VNNI): int8_dynamic multiplies the same "
        "whole numbers in float32, which is right and saves no time"
    )
    return int8_product_in_float


def _sums_are_exact() -> bool:
    """Are torch._int_mm's sums of the largest products right on this CPU?

    Without VNNI, oneDNN adds pairs of products in 16 bits, which they exceed.
    """
    for num_rows in (1, 32):  # a vector and a matrix may go to different kernels
        largest = torch.full((num_rows, 64), 127, dtype=torch.int8)
        weight = torch.tensor([127, -127], dtype=torch.int8)[:, None].expand(2, 64).repeat(16, 1)
        sums = torch._int_mm(largest, weight.t())
        if not torch.equal(sums.double(), largest.double() @ weight.double().t()):
            return False
    return True


class Format(NamedTuple):
    """Numbers in 8 bits, and who multiplies them."""

    dtype: torch.dtype
    largest: float
    capability: tuple[int, int]  # of the first NVIDIA GPU that can
    architectures: str  # of GPUs that can
    multiple: int  # both sides of a weight on a GPU are multiples of it
    results: tuple[torch.dtype, ...]  # dtypes of its products on a GPU
    product_for: Callable[[str], Product]  # by the device's type


FORMATS = {
    "int8_dynamic": Format(
        dtype=torch.int8,
        largest=127,
        capability=(7, 5),
        architectures="Turing, Ampere and later",
        multiple=8,
        results=(torch.bfloat16, torch.float16, torch.float32),
        product_for=int8_product_for,
    ),
    "fp8": Format(
        dtype=torch.float8_e4m3fn,
        largest=448,
        capability=(8, 9),
        architectures="Ada, Hopper and later",
        multiple=16,
        results=(torch.bfloat16,),
        product_for=lambda device_type: fp8_product,
    ),
}


def rounded(rows: Tensor, form: Format) -> Rounded:
    """Rows (R, I), each in steps of a scale of its own: its largest value is the format's."""
    rows = rows.float()
    scale = (rows.abs().amax(-1, keepdim=True) / form.largest).clamp(min=LEAST_SCALE)
    values = rows / scale
    if not form.dtype.is_floating_point:
        values = values.round()
    return Rounded(values.to(form.dtype), scale)


class ScaledLinear(nn.Module):
    """A Linear whose weight is kept in 8 bits, and whose input is rounded to 8 bits as it comes.

    A token's scale is its own, so what else is in its batch does not change it. Plain
    tensors and no buffers: a cast of the model would take them along.
    """

    def __init__(self, linear: nn.Linear, method: str) -> None:
        super().__init__()
        self.method, self.bias = method, linear.bias
        self.values, self.scale = rounded(linear.weight.data, FORMATS[method])
        self.dtype = linear.weight.dtype
        self.product = FORMATS[method].product_for(linear.weight.device.type)

    def forward(self, x: Tensor) -> Tensor:
        """(..., O) of x (..., I); raises ValueError where a gradient is wanted."""
        if x.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                f"quantize={self.method} rounds activations, through which there is no gradient: "
                "train on the model as it is stored"
            )
        rows = rounded(x.reshape(-1, x.shape[-1]), FORMATS[self.method])
        product = self.product(rows, Rounded(self.values, self.scale), x.dtype)
        product = product.view(*x.shape[:-1], len(self.values))
        return product if self.bias is None else product + self.bias

    def dequantised(self) -> Tensor:
        """The weight (O, I) by which it multiplies, in the dtype in which it was given."""
        return (self.values.float() * self.scale).to(self.dtype)


def check_device(quantize: str | None, device: torch.device, dtype: torch.dtype) -> None:
    """Raise ValueError where the device cannot multiply such numbers, for results in dtype."""
    form = FORMATS.get(quantize or "")
    if form is None:
        return
    if device.type == "cuda":
        _check_gpu(f"quantize={quantize}", form, device, dtype)
    ones = rounded(torch.ones(32, 32, device=device), form)
    try:
        form.product_for(device.type)(ones, ones, dtype)
    except (RuntimeError, ValueError) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise ValueError(
            f"quantize={quantize} does not work on {device} with torch {torch.__version__} "
            f"({lines[0]}): use quantize=int8 or nf4, or another version of torch"
        ) from error


def _check_gpu(option: str, form: Format, device: torch.device, dtype: torch.dtype) -> None:
    capability = torch.cuda.get_device_capability(device)
    if capability < form.capability:
        found, needed = (".".join(map(str, pair)) for pair in (capability, form.capability))
        others = [name for name, each in FORMATS.items() if capability >= each.capability]
        raise ValueError(
            f"{option} needs a GPU of compute capability {needed} ({form.architectures}), and "
            f"{device} has {found}: use quantize={', '.join(others + ['int8'])} or nf4"
        )
    if dtype not in form.results:
        allowed = ", ".join(str(each).removeprefix("torch.") for each in form.results)
        raise ValueError(
            f"{option} on a GPU needs dtype={allowed}, got {str(dtype).removeprefix('torch.')}"
        )


def check_shape(quantize: str | None, name: str, shape: torch.Size, device: torch.device) -> None:
    """Raise ValueError where a GPU does not multiply by a weight of that shape (…, O, I)."""
    form = FORMATS.get(quantize or "")
    if form is None or device.type != "cuda":
        return
    if any(size % form.multiple for size in shape[-2:]):
        raise ValueError(
            f"quantize={quantize} on a GPU needs weights whose sides are multiples of "
            f"{form.multiple}, and {name} is {list(shape[-2:])}: use quantize=int8 or nf4"
        )
