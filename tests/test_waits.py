"""No step waits for the device: what would make a GPU's host wait is counted on the
CPU, and more steps bring no more of it.

A wait is a value that Python asks a tensor for, an operator whose result has as many
elements as its input decides, or data of the host that become a tensor on the device.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from llada_plugins.diffusion.denoiser import Canvas, Denoiser, Prediction
from llada_plugins.diffusion.random_streams import uniform
from llada_plugins.methods.policy_head import PolicyHead, policy_denoiser
from llada_plugins.methods.router import Router, RouterConfig
from llada_plugins.methods.routing import routed
from llada_plugins.models.llada import LLaDA
from llada_plugins.models.special_tokens import SpecialTokens
from llada_plugins.sampling.confidence import CONFIDENCE
from llada_plugins.sampling.config import SamplerConfig
from llada_plugins.sampling.generate import generate

MASK, EOS, EOT, D = 39, 38, 37, 32  # of make_model's models
SPECIAL = SpecialTokens(MASK, EOS, EOT)
PROMPTS = [[5, 6, 7], [8], [4, 4, 9, 10, 31, 12]]
READ = {
    Tensor.tolist,
    Tensor.item,
    Tensor.cpu,
    Tensor.numpy,
    Tensor.__bool__,
    Tensor.__int__,
    Tensor.__float__,
    Tensor.__index__,
    Tensor.__contains__,
    Tensor.__array__,
    torch.equal,
    torch.allclose,
}
SIZED = (
    "nonzero",
    "masked_select",
    "_local_scalar_dense",
    "is_nonzero",
    "unique",
    "_unique",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "bincount",
    "repeat_interleave",
    "equal",
    "masked_scatter",
)


class Waits:
    """Within it, what would wait for the device is counted in `found`, by its name."""

    def __init__(self) -> None:
        self.found: Counter[str] = Counter()
        self.stack = ExitStack()

    def __enter__(self) -> Waits:
        self.stack.enter_context(_Calls(self.found))
        self.stack.enter_context(_Operators(self.found))
        return self

    def __exit__(self, *error: Any) -> None:
        self.stack.close()


class _Calls(TorchFunctionMode):
    def __init__(self, found: Counter[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        placed = "device" in kwargs or any(isinstance(each, torch.device) for each in args)
        if (
            function in READ
            or function in (torch.tensor, torch.as_tensor, Tensor.new_tensor, Tensor.to)
            and placed
        ):
            self.found[function.__name__] += 1
        return function(*args, **kwargs)


class _Operators(TorchDispatchMode):
    def __init__(self, found: Counter[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        name = operator.overloadpacket.__name__
        by_mask = name.startswith("index") and any(
            isinstance(each, Tensor) and each.dtype == torch.bool
            for given in args[1:]
            if isinstance(given, (list, tuple))
            for each in given
        )
        if name in SIZED or by_mask:
            self.found[f"aten {name}"] += 1
        return operator(*args, **(kwargs or {}))


def waits(decode: Callable[[], Any]) -> Counter[str]:
    with Waits() as waited:
        decode()
    return waited.found


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.tolist(),
        lambda x: x.sum().item(),
        lambda x: int(x.max()),
        lambda x: bool(x.any()),
        lambda x: x[x > 1],
        lambda x: x[:, x[0] > 1],
        lambda x: x.masked_select(x > 1),
        lambda x: x.nonzero(),
        lambda x: torch.tensor([1, 2], device=x.device),
        lambda x: 3 in x,
        lambda x: torch.as_tensor(3, device=x.device),
        lambda x: x.cpu(),
        lambda x: x.to(x.device),
        lambda x: list(range(x.sum().long())),
        lambda x: x.index_put_((x > 1,), torch.tensor(0.0)),
        lambda x: x.unique(),
        lambda x: 1 if (x == x).all() else 0,
    ],
    ids=range(17),
)
def test_what_waits_is_counted(wait):
    assert waits(lambda: wait(torch.arange(4.0).view(2, 2))).total() >= 1


def test_what_does_not_wait_is_not_counted():
    x, at = torch.arange(4.0).view(2, 2), torch.tensor([1, 0])

    def work() -> None:
        (
            x[at],
            x[..., 0],
            x.masked_fill(x > 1, 0),
            torch.where(x > 1, x, 0.0),
            x.argsort(stable=True),
            x.to(torch.float64),
            len(x),
            x.shape,
        )
        x[..., 1] = -torch.inf
        uniform(at, 3, at, 1)

    assert not waits(work)


def randomised(module: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        parameter.data = (parameter.dim() == 1) + 0.3 * torch.randn(
            parameter.shape, generator=generator
        )
    return module.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def model(make_model) -> LLaDA:
    made = make_model()
    with torch.inference_mode():
        made(torch.tensor([[5]]))  # its rotary tables go to the device once
    return made


@pytest.fixture(scope="module")
def denoisers(model) -> dict[str, Denoiser]:
    """With a policy head, so that every confidence source has what it ranks by; and
    behind a router of both blocks.
    """
    plain = policy_denoiser(model, randomised(PolicyHead(D, 8)))
    router = randomised(Router(RouterConfig(d_model=D, max_positions=64, blocks=2)))
    return {
        "plain": plain,
        "routed": routed(
            plain, router, model.embedding, MASK, model.model["transformer"]["blocks"]
        ),
    }


def waits_of(model: LLaDA, denoise: Denoiser, steps: int, options: dict[str, Any]) -> Counter[str]:
    config = SamplerConfig(gen_length=8, steps=steps, **options)
    return waits(lambda: generate(model, PROMPTS, config, denoise=denoise, special=SPECIAL))


GREEDY = dict()
ALL = dict(
    temperature=0.8,
    top_k=9,
    top_p=0.9,
    cfg_scale=0.7,
    logits_eos_inf=True,
    confidence_eos_eot_inf=True,
)


@pytest.mark.parametrize("kind", ["plain", "routed"])
@pytest.mark.parametrize(
    "cache", [dict(), dict(cache="prefix"), dict(cache="dual", cache_refresh=2)], ids=str
)
@pytest.mark.parametrize("source", CONFIDENCE)
@pytest.mark.parametrize(
    "options", [GREEDY, ALL], ids=["greedy", "sampled, guided, ends kept back"]
)
def test_a_step_of_a_fixed_schedule_waits_for_nothing(
    model, denoisers, kind, cache, source, options
):
    few, many = (
        waits_of(
            model,
            denoisers[kind],
            steps,
            dict(block_length=4, confidence_source=source, **cache, **options),
        )
        for steps in (2, 8)
    )
    assert few == many


@pytest.mark.parametrize("kind", ["plain", "routed"])
@pytest.mark.parametrize(
    "options",
    [
        dict(revise=True, confidence_source="ups"),
        dict(revise=True, temperature=1.0, block_length=4, cfg_scale=1.0),
        dict(remask_ratio=0.5),
        dict(remask_ratio=0.3, cache="dual", block_length=4),
        dict(early_stop=True),
        dict(sampling_method="semi_ar_origin", block_length=4),
        dict(confidence_source="random", revise=True),
    ],
    ids=str,
)
def test_nor_does_one_that_takes_tokens_back_or_whose_canvas_grows(model, denoisers, kind, options):
    few, many = (waits_of(model, denoisers[kind], steps, options) for steps in (4, 8))
    assert few == many


@pytest.mark.parametrize("kind", ["plain", "routed"])
@pytest.mark.parametrize(
    "more",
    [
        dict(),
        dict(cache="dual"),
        dict(cfg_scale=0.5, temperature=0.7, confidence_eos_eot_inf=True),
        dict(revise_below=0.02, confidence_source="ups"),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "rule",
    [
        dict(threshold=1e-6),
        dict(threshold=0.06),
        dict(threshold=1.0),
        dict(factor=1.9),
        dict(error_budget=2.8),
    ],
    ids=str,
)
def test_a_step_of_an_adaptive_rule_waits_once_to_know_who_is_done(
    model, denoisers, kind, more, rule
):
    calls = []

    def counted(canvas: Canvas, window: slice) -> Prediction:
        calls.append(len(canvas.tokens))
        return denoisers[kind](canvas, window)

    found = waits_of(model, counted, 8, {**more, **rule})
    fixed = waits_of(
        model,
        denoisers[kind],
        8,
        {name: value for name, value in more.items() if name != "revise_below"},
    )
    # a fixed schedule has one, when the block begins
    assert found == fixed + Counter(tolist=min(len(calls) + 1, 8) - 1)
