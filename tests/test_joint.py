"""Joint products of compiled layers: the numbers of single ones, and weights that stay their own.

On a CPU nothing is joined; here it is.
"""

from __future__ import annotations

import copy
import pickle

import peft
import pytest
import torch
from torch import Tensor, nn

from llada_plugins.models import compiling
from llada_plugins.models.block import GATE_UP, QKV, Block
from llada_plugins.models.joint import JointWeights
from llada_plugins.models.llada import LLaDA
from llada_plugins.models.loading import load_model, save_model
from llada_plugins.models.snapshot import Snapshot
from tests.test_compiling import Graphs, graphs, outputs, tokens  # noqa: F401 - a fixture
from tests.tolerance import measured

pytestmark = pytest.mark.floats


@pytest.fixture(autouse=True)
def joining(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "JOINING", ("cpu",))


def hidden(model: LLaDA) -> Tensor:
    """Hidden states of one forward."""
    with torch.inference_mode():
        return model.streams(tokens(2, 9)).hidden


def layer_of(model: LLaDA, number: int = 0) -> Block:
    block = model.blocks[number]
    assert isinstance(block, Block)
    return block


def joint_of(layer: Block) -> list[tuple[str, ...]]:
    """The names of what is joined."""
    x = torch.zeros(1, 1, layer.config.d_model)
    return list(layer.joint_weights.of(layer, layer.same_input, x))


def storages(layer: nn.Module, names: tuple[str, ...]) -> set[int]:
    return {getattr(layer, name).weight.untyped_storage().data_ptr() for name in names}


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields", [{}, dict(n_kv_heads=2, include_bias=True), dict(include_qkv_bias=True)], ids=str
)
def test_joint_products_are_those_of_the_modules(make_model, graphs, fields):
    model = make_model(**fields)
    bound = measured(outputs, model)
    expected, weights = outputs(model), copy.deepcopy(model.state_dict())
    model.compile_layers("on", graphs)
    torch.testing.assert_close(outputs(model), expected, atol=bound, rtol=0)
    for layer in model.blocks:
        assert len(storages(layer, QKV)) == len(storages(layer, GATE_UP)) == 1
    assert all(map(torch.equal, model.state_dict().values(), weights.values()))
    assert not model.compiling.notes


def test_all_layers_share_the_graphs_of_joint_products(make_model, graphs):
    model = make_model(n_layers=5)
    model.compile_layers("on", graphs)
    with torch.inference_mode():
        model(tokens(2, 9))
        model(tokens(2, 9))
    assert graphs.num_calls == [10]


class Products:
    """A backend of torch.compile that counts the products with weights of its graphs."""

    def __init__(self) -> None:
        self.num: list[int] = []

    def __call__(self, graph: torch.fx.GraphModule, examples: list) -> object:
        self.num.append(sum("linear" in str(node.target) for node in graph.graph.nodes))
        return graph.forward


@pytest.mark.parametrize("inference, num_products", [(True, 4), (False, 7)])
def test_a_layer_has_four_products_in_the_place_of_seven(make_model, inference, num_products):
    torch._dynamo.reset()
    model, products = make_model(), Products()
    model.compile_layers("on", products)
    with torch.inference_mode(inference), torch.set_grad_enabled(False):
        model(tokens(2, 9))
    assert products.num == [num_products]


def test_weights_that_are_written_in_place_count(make_model, graphs):
    model = make_model()
    bound = measured(hidden, model)
    model.compile_layers("on", graphs)
    hidden(model)
    with torch.no_grad():
        layer_of(model).k_proj.weight.mul_(-1.0)
    found = hidden(model)
    assert len(storages(layer_of(model), QKV)) == 1
    model.compile_layers("off")
    torch.testing.assert_close(found, hidden(model), atol=bound, rtol=0)


@pytest.mark.parametrize("way", ["data", "module", "cast and back", "state_dict", "assign"])
def test_weights_that_take_the_place_of_others_count(make_model, graphs, way):
    model, other = make_model(), make_model()
    with torch.no_grad():
        for each in other.parameters():
            each.mul_(1.25)
    bound = measured(hidden, model)
    model.compile_layers("on", graphs)
    hidden(model)
    layer, of_other = layer_of(model), layer_of(other)
    if way == "data":
        layer.v_proj.weight.data = of_other.v_proj.weight.data.clone()
    elif way == "module":
        layer.up_proj = of_other.up_proj
    elif way == "cast and back":
        model.double().float()
        layer.v_proj.weight.data.neg_()
    else:
        model.load_state_dict(other.state_dict(), assign=way == "assign")
    found = hidden(model)
    model.compile_layers("off")
    torch.testing.assert_close(found, hidden(model), atol=bound, rtol=0)


def test_an_adapter_is_called_and_its_neighbours_are_as_before(make_model, graphs):
    model = make_model()
    bound = measured(hidden, model)
    model.compile_layers("on", graphs)
    hidden(model)
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(model, config).base_model.model
    found = hidden(adapted)
    assert joint_of(layer_of(model)) == [GATE_UP]
    model.compile_layers("off")
    torch.testing.assert_close(found, hidden(adapted), atol=bound, rtol=0)


@pytest.mark.parametrize(
    "make_copy", [copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))]
)
def test_a_copy_has_weights_of_its_own(make_model, make_copy):
    layer = layer_of(make_model())
    joint_of(layer)
    other = make_copy(layer)
    assert not other.joint_weights._groups
    assert not storages(layer, QKV) & storages(other, QKV)
    with torch.no_grad():
        other.q_proj.weight.zero_()
    assert layer.q_proj.weight.abs().sum() > 0


def test_a_model_that_has_joint_weights_trains_and_saves(make_model, graphs, tmp_path):
    model = make_model().requires_grad_(True)
    model.compile_layers("on", graphs)
    hidden(model)
    model(tokens(2, 9)).sum().backward()
    gradients = [each.grad for each in layer_of(model).parameters()]
    assert all(each is not None and each.abs().sum() > 0 for each in gradients)
    save_model(model, tmp_path)
    loaded = load_model(tmp_path, device="cpu", dtype="float32")
    assert all(map(torch.equal, loaded.state_dict().values(), model.state_dict().values()))


def test_what_is_no_plain_product_is_left_alone(make_model):
    layer = layer_of(make_model())
    x = torch.zeros(1, 1, layer.config.d_model)
    weights, groups = JointWeights(), (QKV, GATE_UP)
    layer.k_proj.register_forward_hook(lambda module, given, output: output)
    assert list(weights.of(layer, groups, x)) == [GATE_UP]
    layer.up_proj.bias = nn.Parameter(torch.zeros(layer.up_proj.out_features))  # gate has none
    assert not weights.of(layer, groups, x)
    assert not weights.of(layer, groups, x.bfloat16())


def test_nothing_is_held_twice(make_model):
    layer = layer_of(make_model())
    before = {each.untyped_storage().data_ptr(): each.nbytes for each in layer.parameters()}
    joint_of(layer)
    tensors: list[Tensor] = [*layer.parameters()]
    for group in layer.joint_weights._groups.values():
        tensors += [each for each in group.weights if each is not None]
    after = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors}
    assert sum(after.values()) == sum(before.values())


def test_graphs_that_were_captured_before_are_not_replayed(make_model):
    model = make_model()
    before = Snapshot(model)
    joint_of(layer_of(model))
    after = Snapshot(model)
    joint_of(layer_of(model))
    assert not before.holds() and after.holds()
