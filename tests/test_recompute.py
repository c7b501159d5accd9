"""Activation checkpointing: the same gradients bit by bit while less is kept, in every
model and every training command.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from llada_plugins.methods.policy_head import PolicyHead
from llada_plugins.methods.router import Router, RouterConfig
from llada_plugins.methods.routing import RoutedLLaDA
from llada_plugins.models import layer as layer_module
from llada_plugins.models.bitower import AFTER_LAYERS, BiTowerLLaDA
from llada_plugins.models.initial import initialise
from training import remask_sft, router_sft, sft
from training.runs.policy_model import PolicyModel

pytestmark = pytest.mark.floats

TOKENS = torch.arange(2 * 24).view(2, 24) % 37
PADDED = (torch.arange(24) < torch.tensor([[24], [17]])).long()  # (B, L)


def routed(make_model) -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    model = RoutedLLaDA(
        make_model(), Router(RouterConfig(d_model=32, mode="residual", blocks=2)), 39
    )
    nn.init.normal_(model.router.out.weight)
    return (
        model,
        lambda model: (
            model(torch.where(TOKENS < 20, TOKENS, 39), PADDED, prompt_lengths=torch.tensor([4, 9]))
            .square()
            .sum()
        ),
    )


def bi_tower(make_model) -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    model = BiTowerLLaDA(
        make_model(n_layers=AFTER_LAYERS[-1] + 1, d_model=8, n_heads=2, mlp_hidden_size=8).config
    )
    initialise(model, torch.Generator().manual_seed(0))
    return model, lambda model: sum(stream.square().sum() for stream in model.streams(TOKENS))


def policy(make_model) -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    model = PolicyModel(make_model().requires_grad_(True), PolicyHead(32, 8))
    return model, lambda model: sum(output.square().sum() for output in model(TOKENS, TOKENS > 5))


MODELS = {
    "LLaDA": lambda make: (
        make().requires_grad_(True),
        lambda model: model(TOKENS, PADDED).square().sum(),
    ),
    "frozen but for a block": lambda make: (
        frozen_first(make()),
        lambda model: model(TOKENS).square().sum(),
    ),
    "router that seeds two blocks": routed,
    "bi-tower": bi_tower,
    "policy head": policy,
}


def frozen_first(model: nn.Module) -> nn.Module:
    model.requires_grad_(False).model["transformer"]["blocks"][1].requires_grad_(True)
    return model


def run(model: nn.Module, loss: Callable[[nn.Module], Tensor]) -> tuple[dict[str, Tensor], int]:
    """Gradients, and bytes that the graph keeps beside the weights."""
    weights, kept = {weight.untyped_storage().data_ptr() for weight in model.parameters()}, {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        value = loss(model)
    num_bytes = sum(kept.values())
    model.zero_grad()
    value.backward()
    return {
        name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None
    }, num_bytes


@pytest.mark.parametrize("kind", MODELS)
def test_gradients_are_the_same_bit_by_bit_and_less_is_kept(make_model, kind):
    model, loss = MODELS[kind](make_model)
    expected, whole = run(model, loss)
    expected = {name: gradient.clone() for name, gradient in expected.items()}
    model.activation_checkpointing_enable()
    found, less = run(model, loss)
    assert found.keys() == expected.keys() and found
    assert all(
        torch.equal(found[name], gradient) and gradient.abs().max() > 0
        for name, gradient in expected.items()
    )
    assert less < 0.75 * whole


def test_nothing_changes_without_a_graph(make_model):
    model = make_model()
    expected = model(TOKENS)
    model.activation_checkpointing_enable()
    assert torch.equal(model(TOKENS), expected)


COMMANDS = {
    "sft": (sft,),
    "sft --lora": (sft, "--lora", "--lora_dropout", "0.3"),
    "remask_sft": (remask_sft,),
    "remask_sft --joint": (remask_sft, "--joint"),
    "router_sft": (router_sft, "--router_blocks", "2"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_recompute_and_end_with_the_same_weights(
    tmp_path, sudokus, tiny_checkpoint, command, monkeypatch
):
    recomputed = []

    def counting(function: Callable, *given: object, **options: object) -> Tensor:
        recomputed.append(function)
        return checkpoint(function, *given, **options)

    monkeypatch.setattr(layer_module, "checkpoint", counting)
    module, *more = COMMANDS[command]
    run_flags = [
        "--model",
        str(tiny_checkpoint),
        "--data",
        str(sudokus),
        *more,
        "--max_steps",
        "3",
        "--per_device_train_batch_size",
        "4",
        "--learning_rate",
        "1e-3",
        "--use_cpu",
        "--num_threads",
        "1",
        "--save_strategy",
        "no",
    ]
    module.main([*run_flags, "--output_dir", str(tmp_path / "kept")])
    assert not recomputed
    module.main(
        [*run_flags, "--output_dir", str(tmp_path / "recomputed"), "--gradient_checkpointing"]
    )
    # whose frozen backbone runs without a graph
    assert bool(recomputed) == (command != "remask_sft")
    files = sorted(path.name for path in (tmp_path / "kept").glob("*.safetensors"))
    assert files
    for name in files:
        kept, recomputed = (
            load_file(tmp_path / folder / name) for folder in ("kept", "recomputed")
        )
        assert kept.keys() == recomputed.keys()
        assert all(torch.equal(kept[weight], recomputed[weight]) for weight in kept)
