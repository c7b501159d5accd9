"""Bounds of float comparisons: measured in the test that uses them, or derived from
eps, depth and magnitude.

No bound is picked by hand: a number that holds on one processor fails on another, whose
kernels add in another order.

`measured` runs the code of the test in float32 and in float64 and takes twice the
difference: two float32 results in different orders each err by as much, hence differ by
at most twice that. `rounding` is for a few operations whose sums can be counted. Plain
`pytest.approx(x)`, which allows 1e-6 x, is for arithmetic in float64: it is 4e9
roundings there. Sampling errors and printed digits are no rounding: each such test
derives its own. tests/test_tolerance.py keeps these rules.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from llada_plugins.models.rotary import Rotations

EPS, EPS64 = torch.finfo(torch.float32).eps, torch.finfo(torch.float64).eps


def largest(values: Any) -> float:
    """The largest absolute value of a tensor, a number or a list of them."""
    values = values.detach() if isinstance(values, Tensor) else torch.tensor(values)
    return float(values.double().abs().max())


def rounding(depth: int, *values: Any, eps: float = EPS) -> float:
    """Bound of what `depth` roundings in a row change: depth x eps x the largest
    magnitude among the values.

    depth: counts the terms of the longest sum and the operations around it, of both
    sides of a comparison. For a sum whose terms cancel, `values` are the sums of
    absolute terms.
    """
    return depth * eps * max(map(largest, values))


@contextmanager
def float64_casts() -> Iterator[None]:
    """Code that asks for float32 by `.float()` or `torch.float`, as softmax and rotary
    tables do, gets float64.
    """
    torch.Tensor.float, torch.float = torch.Tensor.double, torch.float64
    try:
        yield
    finally:
        del torch.Tensor.float  # the base class has it still
        torch.float = torch.float32


def in_float64(module: nn.Module) -> nn.Module:
    """A copy with float64 weights, which computes its rotary tables again."""
    module = copy.deepcopy(module).double()
    for part in module.modules():
        if isinstance(rotations := getattr(part, "rotations", None), Rotations):
            rotations.tables.clear()
    return module


def twice_naive(naive: Tensor, exact: Tensor) -> float:
    """Twice the largest error of a result, and one rounding of its largest value: a few
    numbers may be right by chance.
    """
    assert exact.dtype == torch.float64 != naive.dtype
    naive, exact = naive.detach(), exact.detach()
    return 2 * largest(naive - exact) + rounding(1, exact, eps=torch.finfo(naive.dtype).eps)


def measured(compute: Callable[..., Tensor], *modules: nn.Module) -> float:
    """Twice the error of compute(*modules) in the modules' dtype, against the same code in float64.

    The result should have hundreds of numbers: the largest error of a few is small by chance.
    """
    with torch.no_grad():
        naive = compute(*modules)
        with float64_casts():
            exact = compute(*map(in_float64, modules))
    return twice_naive(naive, exact)


def forward_error(
    model: nn.Module, read: Callable[[Tensor], Tensor] = lambda logits: logits
) -> float:
    """`measured` of what `read` makes of a model's logits of random rows: all together,
    and each alone.

    One row and many go to different kernels; the larger of their errors holds for a
    batch of any size.
    """
    length = min(24, model.config.max_sequence_length)
    tokens = torch.randint(
        0, model.config.vocab_size, (8, length), generator=torch.Generator().manual_seed(0)
    )
    # of (16, length, V)
    return measured(lambda of: read(torch.cat([of(tokens), *map(of, tokens.split(1))])), model)


def token_error(model: nn.Module, cfg_scale: float = 0.0) -> float:
    """Bound in nats of how much two float32 log-probabilities of a token differ; what
    guides a row here is another row.
    """

    def log_p(logits: Tensor) -> Tensor:
        other = logits.roll(1, 0)
        return (other + (cfg_scale + 1) * (logits - other) if cfg_scale else logits).log_softmax(-1)

    return forward_error(model, log_p)


def likelihood_error(model: nn.Module, num_tokens: int, cfg_scale: float = 0.0) -> float:
    """Bound in nats of how much two log-likelihoods of an answer differ, or their standard errors.

    A value is a mean over masks, in float64, of sums whose weights are those of
    `num_tokens` tokens. A standard error is at most the largest term's over the root of
    their number, which exceeds the weights that strata have.
    """
    return num_tokens * token_error(model, cfg_scale)
