"""The rules of tolerance.py: what it measures, and that no test picks a bound by hand."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.tolerance import EPS, forward_error, measured, rounding, twice_naive

pytestmark = pytest.mark.floats

ROOT = Path(__file__).parents[1]
FILES = sorted([*(ROOT / "tests").glob("*.py"), *(ROOT / "benchmarks").glob("*.py")])
COARSE = 5e-3  # half of a printed second digit; from here on a number is about statistics
BOUNDS = {"atol", "rtol", "abs", "rel", "abs_tol", "rel_tol"}
COMPARES = {"assert_close", "allclose", "assert_allclose", "isclose", "assert_almost_equal"}


def numbers(node: ast.AST) -> set[float]:
    """Positive numbers written in an expression, if it has nothing else; what is
    computed from names has none.
    """
    if any(isinstance(part, (ast.Name, ast.Call)) for part in ast.walk(node)):
        return set()
    value = eval(compile(ast.Expression(node), "", "eval"), {})  # of a constant expression
    return {value} if isinstance(value, float) and value > 0 else set()


def hand_picked(source: str) -> list[str]:
    """What allows less than COARSE by a number, or by the defaults of a comparison."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            bounds = [word.value for word in node.keywords if word.arg in BOUNDS]
            small = any(value < COARSE for bound in bounds for value in numbers(bound))
            if small or (name in COMPARES and not bounds):
                found.append(f"{node.lineno}: {ast.unparse(node)}")
        elif (
            isinstance(node, ast.Compare)
            and isinstance(node.ops[-1], (ast.Lt, ast.LtE))
            and any(value < COARSE for value in numbers(node.comparators[-1]))
        ):
            found.append(f"{node.lineno}: {ast.unparse(node)}")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_no_file_picks_a_bound_of_rounding_by_hand(path):
    source = path.read_text(encoding="utf-8")
    if path != Path(__file__):
        assert not hand_picked(source)
        assert (
            "tests.tolerance" not in source
            or not path.name.startswith("test_")
            or "pytest.mark.floats" in source
        )


@pytest.mark.parametrize(
    "line, refused",
    [
        ("assert_close(a, b)", True),
        ("assert_close(a, b, atol=1e-5, rtol=0)", True),
        ("assert_close(a, b, atol=bound, rtol=0)", False),
        ("assert a == pytest.approx(b, abs=1e-4)", True),
        ("assert a == pytest.approx(b, rel=0.5 * 10 ** -3)", True),
        ("assert a == pytest.approx(b, rel=0.1)", False),
        ("assert a == pytest.approx(b, abs=rounding(3, b))", False),
        ("assert (a - b).abs().max() < 1e-6", True),
        ("assert 0 <= p <= 1", False),
    ],
)
def test_a_bound_that_is_a_small_number_is_found(line, refused):
    assert bool(hand_picked(line)) == refused


def test_a_measured_bound_is_twice_the_error_of_float32_and_modules_stay_as_they_are():
    linear = nn.Linear(300, 500)
    x = torch.randn(4, 300, generator=torch.Generator().manual_seed(0))

    def product(of: nn.Module) -> Tensor:
        return of(x.to(of.weight.dtype))

    with torch.no_grad():
        exact = x.double() @ linear.weight.double().t() + linear.bias.double()
        bound = measured(product, linear)
        assert bound == twice_naive(product(linear), exact)
    assert linear.weight.dtype == torch.float32 == torch.float
    assert torch.ones(1).half().float().dtype == torch.float32
    assert EPS < bound < rounding(2 * 301, x.abs() @ linear.weight.abs().t() + 1)


def test_a_change_of_a_thousandth_exceeds_what_a_model_rounds(make_model):
    model = make_model()
    bound = forward_error(model)
    tokens = torch.arange(12)[None]
    before = model(tokens)
    model.model["transformer"]["blocks"][0].q_proj.weight.data *= 1.001
    assert (model(tokens) - before).abs().max() > bound
