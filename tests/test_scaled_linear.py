"""Linears that multiply 8-bit numbers, against arithmetic in float64 on the numbers that a
second implementation of the rounding gives.
"""

from __future__ import annotations

import logging
import re

import pytest
import torch
from torch import Tensor, nn

from llada_plugins.engine.engine import Engine, Request
from llada_plugins.models import scaled_linear
from llada_plugins.models.loading import load_model, save_model
from llada_plugins.models.mixture import Mixture
from llada_plugins.models.past import Past
from llada_plugins.models.placement import DTYPES
from llada_plugins.models.quantization import QuantisedStack, quantise_linear
from llada_plugins.models.scaled_linear import FORMATS, ScaledLinear, check_device, check_shape
from llada_plugins.tasks import sudoku
from tests.test_compiling import Graphs
from tests.tolerance import EPS, rounding

pytestmark = pytest.mark.floats
every_method = pytest.mark.parametrize("method", FORMATS)

# All positive values of fp8 (E4M3: four bits of exponent, three of fraction, no infinity),
# from its definition: fraction / 8 x 2^-6 below the least normal number, then
# (1 + fraction / 8) x 2^(exponent - 7). The largest pattern is NaN.
E4M3 = torch.tensor(
    [fraction / 8 * 2**-6 for fraction in range(8)]
    + [
        (1 + fraction / 8) * 2.0 ** (exponent - 7)
        for exponent in range(1, 16)
        for fraction in range(8)
    ][:-1],
    dtype=torch.double,
)
INT8 = torch.arange(128, dtype=torch.double)
LEVELS = {"int8_dynamic": INT8, "fp8": E4M3}  # positive; the negative ones mirror them


def test_the_largest_values_of_the_formats_are_those_of_their_definitions():
    for method, form in FORMATS.items():
        assert LEVELS[method][-1] == form.largest
    assert torch.equal(E4M3, E4M3.to(torch.float8_e4m3fn).double())


def scales(rows: Tensor, method: str) -> Tensor:
    """(R, 1): of every row what its largest value is of the format's."""
    return rows.double().abs().amax(-1, keepdim=True) / LEVELS[method][-1]


def half_steps(rows: Tensor, method: str) -> Tensor:
    """Of every value of rows (R, I), half the distance of the levels around it."""
    scale, levels = scales(rows, method), LEVELS[method]
    above = torch.searchsorted(levels, (rows.double().abs() / scale).contiguous())
    above = above.clamp(1, len(levels) - 1)
    return scale * (levels[above] - levels[above - 1]) / 2


def random_linear(outputs: int = 48, inputs: int = 160, dtype=torch.float32) -> nn.Linear:
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(inputs, outputs, dtype=dtype)
    for parameter in linear.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator).to(dtype)
    return linear.requires_grad_(False)


def random_rows(*shape: int, dtype=torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)


def made(linear: nn.Linear, method: str) -> ScaledLinear:
    return quantise_linear(linear, method)


# ---- the numbers


@every_method
def test_every_value_is_rounded_to_the_nearest_level(method):
    rows = random_rows(64, 160)
    values, scale = scaled_linear.rounded(rows, FORMATS[method])
    assert values.dtype == FORMATS[method].dtype and scale.shape == (64, 1)
    torch.testing.assert_close(
        scale.double(), scales(rows, method), atol=rounding(2, scale), rtol=0
    )
    # no farther than half a step, but for the rounding of scale and quotient
    error = (values.double() * scale - rows.double()).abs()
    assert (error <= half_steps(rows, method) + rounding(4, rows)).all()
    # and the steps are those that the format has: not a coarser one
    assert all(float(each) in LEVELS[method] for each in values.double().abs().unique())


def exact_product(linear: ScaledLinear, x: Tensor) -> tuple[Tensor, Tensor]:
    """In float64, of the numbers that are multiplied: the output, and the sum of all
    absolute terms.
    """
    rows = scaled_linear.rounded(x.flatten(0, -2), FORMATS[linear.method])
    x64, w64 = (
        values.double() * scale.double() for values, scale in (rows, (linear.values, linear.scale))
    )
    bias = 0 if linear.bias is None else linear.bias.double()
    size = x64.abs() @ w64.abs().t() + abs(bias)
    return tuple(each.view(*x.shape[:-1], -1) for each in (x64 @ w64.t() + bias, size))


def product_bound(linear: ScaledLinear, size: Tensor, dtype: torch.dtype) -> Tensor:
    """How far a right output may lie from `exact_product`."""
    # one operand scaled, each product, their sum, two scales, a bias: in float32; then
    # the product and the sum with the bias are rounded to the dtype
    terms = linear.values.shape[1]
    return size * (EPS * (terms + 5) + 2 * torch.finfo(dtype).eps)


@every_method
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("rows", [(1,), (2, 7), (40,)], ids=str)
@pytest.mark.parametrize("shape", [(48, 160), (7, 100), (96, 336)], ids=str)
def test_the_output_is_the_product_of_the_rounded_numbers(method, dtype, rows, shape):
    precision = DTYPES[dtype]
    linear = made(random_linear(*shape, dtype=precision), method)
    x = random_rows(*rows, shape[1], dtype=precision)
    found = linear(x)
    assert found.dtype == precision and found.shape == (*rows, shape[0])
    expected, size = exact_product(linear, x)
    assert ((found.double() - expected).abs() <= product_bound(linear, size, precision)).all()


@every_method
def test_the_error_is_that_of_half_steps(method):
    """Against the Linear as it was: |x'w' - xw| <= |x'| |w' - w| + |x' - x| |w|."""
    linear, x = random_linear(), random_rows(40, 160)
    weight = linear.weight.double()
    expected = x.double() @ weight.t() + linear.bias.double()
    x_error, w_error = (half_steps(rows, method) for rows in (x, weight))
    bound = (x.double().abs() + x_error) @ w_error.t() + x_error @ weight.abs().t()
    found = made(linear, method)
    _, size = exact_product(found, x)
    slack = product_bound(found, size, x.dtype) + rounding(8, size)
    error = (found(x).double() - expected).abs()
    assert (error <= bound + slack).all()
    assert error.max() > slack.max()  # it is rounded indeed


@every_method
def test_a_token_gets_the_scale_of_its_own(method):
    """A value of 1e4 elsewhere in the batch takes nothing from it."""
    linear, x = made(random_linear(), method), random_rows(2, 20, 160)
    alone = torch.cat([linear(row[None, None])[0] for row in x.flatten(0, 1)]).view(2, 20, -1)
    x[1, 3, 5] = 1e4
    together = linear(x)
    changed = torch.zeros(2, 20, dtype=torch.bool)
    changed[1, 3] = True
    if method == "int8_dynamic":  # sums of whole numbers have no order
        assert torch.equal(together[~changed], alone[~changed])
    _, size = exact_product(linear, x)
    bound = 2 * product_bound(linear, size, x.dtype)  # of either side
    assert ((together - alone).abs() <= bound)[~changed].all()
    assert not torch.equal(together[changed], alone[changed])


@every_method
@pytest.mark.parametrize("largest", [0.0, 1e-40, 1e-30, 1e30])
def test_rows_of_any_size_are_finite(method, largest):
    linear, x = made(random_linear(), method), random_rows(3, 160)
    x[1] *= largest / x[1].abs().max()
    found = linear(x)
    assert found.isfinite().all()
    if not largest:
        assert torch.equal(found[1], linear.bias)
    expected, size = exact_product(linear, x)
    assert ((found - expected).abs() <= product_bound(linear, size, x.dtype)).all()


@every_method
def test_the_weight_takes_a_byte_a_value_and_four_an_output(method):
    linear = made(random_linear(512, 1024), method)
    tensors = [part for part in vars(linear).values() if isinstance(part, Tensor)]
    assert sum(part.nbytes for part in tensors) == 512 * 1024 + 4 * 512
    assert [name for name, _ in linear.named_parameters()] == ["bias"]


@pytest.mark.parametrize("sizes", [(1, 160), (40, 336)], ids=str)
def test_the_three_integer_products_are_one(sizes):
    """On a CPU, on one without VNNI, and on a GPU, whose product wants more rows."""
    rows, inputs = sizes
    generator = torch.Generator().manual_seed(0)
    x, weight = (
        scaled_linear.Rounded(
            torch.randint(-127, 128, (num, inputs), dtype=torch.int8, generator=generator),
            torch.rand(num, 1, generator=generator),
        )
        for num in (rows, 24)
    )
    products = [scaled_linear.int8_product_on_gpu, scaled_linear.int8_product_in_float]
    exact = x.values.double() @ weight.values.double().t()
    expected = (exact.float() * x.scale * weight.scale.t()).float()  # whole numbers below 2^24
    if scaled_linear.int8_product_for("cpu") is scaled_linear.int8_product:
        products.append(scaled_linear.int8_product)
    else:
        products.remove(scaled_linear.int8_product_on_gpu)  # the same operator, which is wrong
    for product in products:
        assert torch.equal(product(x, weight, torch.float32), expected)


def test_a_cpu_whose_sums_overflow_multiplies_in_float_and_says_so(monkeypatch, caplog):
    honest = torch._int_mm

    def saturating(x: Tensor, weight: Tensor) -> Tensor:
        """As oneDNN by vpmaddubsw: x as if unsigned, pairs of products in 16 bits."""
        pairs = (x.int() + 128)[:, :, None] * weight.int()[None]  # (R, I, O)
        pairs = pairs.unflatten(1, (-1, 2)).sum(2).clamp(-(2**15), 2**15 - 1)
        return pairs.sum(1).int() - 128 * weight.int().sum(0)

    linear, x = random_linear(), random_rows(4, 160)
    expected = made(linear, "int8_dynamic")(x)
    monkeypatch.setattr(torch, "_int_mm", saturating)
    scaled_linear.int8_product_for.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            found = made(random_linear(), "int8_dynamic")
            assert made(random_linear(), "int8_dynamic").product is found.product
        assert found.product is scaled_linear.int8_product_in_float
        (record,) = caplog.records
        assert "8-bit products overflow" in record.message
        monkeypatch.setattr(torch, "_int_mm", honest)
        assert torch.equal(found(x), expected)
    finally:
        scaled_linear.int8_product_for.cache_clear()


# ---- in a model


@every_method
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_linear_of_a_forward_multiplies_its_rounded_input(method, dtype):
    model = load_model(device="cpu", dtype=dtype, quantize=method)
    seen = []
    for module in model.modules():
        if isinstance(module, ScaledLinear):
            module.register_forward_hook(lambda *each: seen.append(each))
    with torch.inference_mode():
        model(torch.arange(24).view(2, 12))
    assert len(seen) == 7 * model.config.n_layers
    for linear, (x,), found in seen:
        expected, size = exact_product(linear, x)
        bound = product_bound(linear, size, found.dtype)
        assert ((found.double() - expected).abs() <= bound).all()


def quantisation_error(model: nn.Module, plain: nn.Module, tokens: Tensor) -> float:
    """The largest change of a hidden state that rounding to 8 bits makes.

    Another order of sums may round an activation to the next level, so a whole model's
    outputs cannot be held to less.
    """
    return float((model.streams(tokens).hidden - plain.streams(tokens).hidden).abs().max())


@every_method
@torch.inference_mode()
def test_columns_of_a_cache_are_those_of_a_whole_forward(method):
    model, plain = (load_model(device="cpu", quantize=each) for each in (method, None))
    tokens = torch.randint(0, 38, (3, 20), generator=torch.Generator().manual_seed(0))
    past = Past()
    whole = model.streams(tokens, past=past).hidden
    part = model.streams(tokens, past=past, columns=slice(6, 11)).hidden
    bound = quantisation_error(model, plain, tokens)
    assert (part - whole[:, 6:11]).abs().max() <= bound
    typical = (part - whole[:, 6:11]).abs().median()
    assert typical <= rounding(model.config.d_model, whole)


@every_method
@pytest.mark.parametrize("cache", ["prefix", "dual"])
@pytest.mark.parametrize("name", ["llada", "llada_ups"])
def test_cached_and_remasking_decodes_fill_every_cell(method, cache, name):
    options = dict(gen_length=16, block_length=8, cache=cache, batch_size=2, device="cpu")
    engine = Engine(name, quantize=method, **options)
    puzzles = [problem.puzzle for problem in sudoku.problems("test", 2)]
    answers = [
        completion.text
        for _, completion in engine.generate([Request(each, engine.sampler) for each in puzzles])
    ]
    assert all(re.fullmatch("[1-4]{16}", answer) for answer in answers)


@every_method
def test_experts_are_rounded_one_by_one_and_the_router_is_not(method, golden):
    folder = golden / "families" / "llada_moe" / "checkpoint"
    options = dict(device="cpu", dtype="float32")
    model, plain = (load_model(folder, **options, quantize=each) for each in (method, None))
    for name, module in model.named_modules():
        if isinstance(module, Mixture):
            before = plain.get_submodule(name)
            assert torch.equal(module.router.weight, before.router.weight)
            for leaf in ("gate_up", "down"):
                stack, weights = getattr(module, leaf), getattr(before, leaf).weight
                assert isinstance(stack, QuantisedStack)
                for expert, weight in zip(stack.experts, weights):
                    error = (expert.dequantised() - weight).abs()
                    assert (error <= half_steps(weight, method) + rounding(6, weight)).all()
    seen = []
    for module in model.modules():
        if isinstance(module, ScaledLinear):
            module.register_forward_hook(lambda *each: seen.append(each))
    model(torch.arange(40).view(2, 20) % 38)
    # attention's, and experts'
    assert len(seen) > 6 * model.config.n_layers
    for linear, (x,), found in seen:
        expected, size = exact_product(linear, x)
        assert ((found - expected).abs() <= product_bound(linear, size, found.dtype)).all()


@pytest.mark.slow
@every_method
def test_compiled_layers_share_their_graphs_and_change_nothing(method):
    torch._dynamo.reset()
    graphs, model = Graphs(), load_model(device="cpu", quantize=method)
    shapes = [
        torch.arange(36).view(3, 12),
        torch.arange(20).view(2, 10),
        torch.arange(60).view(4, 15),
    ]
    with torch.inference_mode():
        expected = [model(tokens % 38) for tokens in shapes]
        model.compile_layers("on", graphs)
        found = [model(tokens % 38) for tokens in shapes]
    assert all(map(torch.equal, found, expected))
    assert graphs.num_calls == [len(shapes) * model.config.n_layers]
    assert not model.compiling.notes


@pytest.mark.slow
@every_method
def test_inductor_compiles_them(method):
    torch._dynamo.reset()
    model, plain = (load_model(device="cpu", quantize=each) for each in (method, None))
    tokens = torch.arange(36).view(3, 12)
    with torch.inference_mode():
        expected = model.streams(tokens).hidden
        bound = quantisation_error(model, plain, tokens)
        model.compile_layers("on")
        found = model.streams(tokens).hidden
    assert not model.compiling.notes
    assert (found - expected).abs().max() <= bound


@every_method
def test_a_gradient_is_refused_rather_than_cut(method):
    linear, x = made(random_linear(), method), random_rows(3, 160).requires_grad_(True)
    with pytest.raises(ValueError, match=f"quantize={method} rounds activations, through which"):
        linear(x)
    with torch.no_grad():
        assert linear(x).shape == (3, 48)


# ---- where it cannot be


class FakeGPU:
    """What torch says of a GPU that is not there."""

    def __init__(self, monkeypatch, capability: tuple[int, int]) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)


REFUSED = [
    ("fp8", (8, 0), "bfloat16", r"fp8 needs a GPU of compute capability 8.9 \(Ada, Hopper and "
     r"later\), and cuda has 8.0: use quantize=int8_dynamic, int8 or nf4"),
    ("fp8", (7, 0), "bfloat16", r"fp8 needs .* and cuda has 7.0: use quantize=int8 or nf4"),
    ("int8_dynamic", (7, 0), "float16", r"int8_dynamic needs a GPU of compute capability 7.5 .* "
     r"has 7.0: use quantize=int8 or nf4"),
    ("fp8", (9, 0), "float32", r"fp8 on a GPU needs dtype=bfloat16, got float32"),
]  # fmt: skip


@pytest.mark.parametrize("method, capability, dtype, message", REFUSED)
def test_a_gpu_that_cannot_is_refused_before_the_folder_is_looked_at(
    monkeypatch, tmp_path, method, capability, dtype, message
):
    FakeGPU(monkeypatch, capability)
    with pytest.raises(ValueError, match=message) as caught:
        load_model(tmp_path / "none", device="cuda", dtype=dtype, quantize=method)
    assert "\n" not in str(caught.value)


@every_method
def test_a_torch_without_the_product_is_refused_before_the_folder_is_looked_at(
    monkeypatch, tmp_path, method
):
    def absent(*_: object, **__: object) -> None:
        raise NotImplementedError("Could not run it\non this backend")

    monkeypatch.setattr(scaled_linear.torch, "_scaled_mm", absent)
    monkeypatch.setattr(scaled_linear.torch, "_int_mm", absent)
    scaled_linear.int8_product_for.cache_clear()
    with pytest.raises(ValueError) as caught:
        load_model(tmp_path / "none", device="cpu", quantize=method)
    message = str(caught.value)
    assert "\n" not in message and re.search(
        rf"quantize={method} does not work on cpu with torch .* \(Could not run it\): use", message
    )


def test_a_cpu_can_do_both():
    for method in FORMATS:
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            check_device(method, torch.device("cpu"), dtype)
    for method in (None, "int8", "nf4", "packed"):
        check_device(method, torch.device("cuda"), torch.float32)  # their own packages say


def test_a_weight_that_a_gpu_does_not_take_is_named():
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    check_shape("fp8", "a.b", torch.Size([6, 48, 32]), cuda)
    check_shape("int8_dynamic", "a.b", torch.Size([24, 8]), cuda)
    check_shape("fp8", "a.b", torch.Size([7, 3]), cpu)
    check_shape("int8", "a.b", torch.Size([7, 3]), cuda)
    for method, multiple in (("fp8", 16), ("int8_dynamic", 8)):
        with pytest.raises(
            ValueError,
            match=rf"quantize={method} on a GPU needs weights whose sides are multiples of "
            rf"{multiple}, and a.b is \[{multiple}, {multiple // 2}\]: use quantize=int8 or nf4",
        ):
            check_shape(method, "a.b", torch.Size([multiple, multiple // 2]), cuda)


@every_method
def test_loading_holds_one_layer_twice_and_no_more(method, tmp_path, make_model, monkeypatch):
    """Each Linear is rounded before the next is read."""
    save_model(make_model(), tmp_path)
    plain_at_once, made_of = [], scaled_linear.ScaledLinear.__init__

    def counting(self: ScaledLinear, linear: nn.Linear, method: str) -> None:
        plain_at_once.append(linear)
        made_of(self, linear, method)

    monkeypatch.setattr(scaled_linear.ScaledLinear, "__init__", counting)
    model = load_model(tmp_path, device="cpu", quantize=method)
    assert len(plain_at_once) == 14
    held = {id(module) for module in model.modules()}
    assert not held & {id(linear) for linear in plain_at_once}
