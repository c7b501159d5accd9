"""The loss that balances experts: against transformers' own, and through a model."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from llada_plugins.models.block import Block
from llada_plugins.models.layer import Layer
from llada_plugins.models.llada import LLaDA
from llada_plugins.models.loading import load_model
from tests.family_checkpoints import with_tokenizer, write_checkpoint
from tests.small_training import short_run
from tests.tolerance import rounding
from training import sft
from training.loop import objectives
from training.loop.router_balance import balanced, load_balance

pytestmark = pytest.mark.floats

EXPERTS, TOGETHER = 6, 2


def test_the_loss_is_that_of_transformers_mixtures():
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    logits = 2 * torch.randn(3, 50, EXPERTS, generator=torch.Generator().manual_seed(0))
    expected = load_balancing_loss_func(tuple(logits), EXPERTS, TOGETHER)
    probability = logits.flatten(0, 1).softmax(-1)
    found = load_balance(probability, probability.topk(TOGETHER).indices)
    # sums over rows and experts on both sides
    atol = rounding(2 * (150 + EXPERTS), expected)
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


def test_an_even_load_costs_the_number_of_experts_a_token_takes():
    chosen = torch.arange(24).view(12, 2) % EXPERTS
    even = torch.full((12, EXPERTS), 1 / EXPERTS)
    assert float(load_balance(even, chosen)) == pytest.approx(TOGETHER, abs=rounding(30, 2.0))
    one = torch.zeros(12, EXPERTS)
    one[:, 0] = 1
    assert float(load_balance(one, torch.zeros(12, 1, dtype=torch.long))) == EXPERTS


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> LLaDA:
    folder = write_checkpoint("llada_moe", tmp_path_factory.mktemp("moe") / "checkpoint")
    return load_model(folder, device="cpu", dtype="float32").requires_grad_(True)


def batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 290, (4, 16), generator=generator)
    weight = torch.ones(4, 16)
    weight[:, :5] = 0
    return {"input_ids": ids, "weight": weight / 11}


def loss_of(model: LLaDA, coefficient: float) -> objectives.Loss:
    objective = objectives.sft(300)
    if coefficient:
        objective = balanced(objective, coefficient)
    return objective(model, batch(), torch.Generator().manual_seed(2))


def naive_balance(model: LLaDA) -> Tensor:
    """Layer by layer and token by token, from what the layers' norms give."""
    normed: list[Tensor] = []
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    handles = [
        block.ff_norm.register_forward_hook(lambda _, __, found: normed.append(found))
        for block in blocks
    ]
    loss_of(model, 0)
    for handle in handles:
        handle.remove()
    count, mass, rows = torch.zeros(EXPERTS), torch.zeros(EXPERTS), 0
    for block, found in zip(blocks, normed):
        for token in found.flatten(0, 1):
            share = (block.mixture.router.weight @ token).softmax(-1)
            mass += share
            count[share.topk(TOGETHER).indices] += 1
            rows += 1
    return EXPERTS * (count / rows * mass / rows).sum()


def test_the_objective_adds_it_for_all_tokens_of_all_layers(model):
    model.train()
    plain, added = loss_of(model, 0), loss_of(model, 0.5)
    found = (added.sum - plain.sum) / plain.count
    with torch.no_grad():
        expected = 0.5 * naive_balance(model)
    # sums over rows and experts, and what the subtraction leaves of the loss
    atol = rounding(2 * 3 * 64 + 2, expected) + rounding(4, plain.sum / plain.count)
    torch.testing.assert_close(found.detach(), expected, rtol=0, atol=atol)
    assert added.count == plain.count
    model.eval()
    assert torch.equal(loss_of(model, 0.5).sum, loss_of(model, 0).sum)


def test_recomputed_layers_get_the_same_gradients(model):
    model.train()
    gradients = []
    for recompute in (False, True):
        for module in model.modules():
            if isinstance(module, Layer):
                module.recompute = recompute
        model.zero_grad()
        loss_of(model, 0.5).sum.backward()
        routers = [value.grad for name, value in model.named_parameters() if "router" in name]
        gradients.append([each.clone() for each in routers if each is not None])
    assert len(gradients[0]) == model.config.n_layers
    assert all(map(torch.equal, *gradients))


def test_the_command_balances_and_refuses_where_nothing_can_be(tmp_path, sudokus, tiny_checkpoint):
    folder = with_tokenizer("llada_moe", tmp_path / "model")
    flags = short_run(max_steps=1, logging_steps=1, save_strategy="no")
    losses = []
    for coefficient in ("0", "0.01"):
        out = tmp_path / coefficient
        given = ["--model", str(folder), "--data", str(sudokus), "--output_dir", str(out), *flags]
        sft.main([*given, "--router_aux_loss_coef", coefficient])
        rows = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
        losses.append(next(row["loss"] for row in rows if "loss" in row))
    assert 0.01 * TOGETHER * 0.9 < losses[1] - losses[0] < 0.01 * EXPERTS
    for name, more, message in (
        (str(tiny_checkpoint), (), "this model has no such router: leave it out"),
        (str(folder), ("--lora",), "its routers do not train: leave it out"),
    ):
        given = ["--model", name, "--data", str(sudokus), "--output_dir", str(tmp_path / "no")]
        with pytest.raises(SystemExit, match=message) as refused:
            sft.main([*given, *flags, *more, "--router_aux_loss_coef", "0.01"])
        assert "\n" not in str(refused.value)


def test_routers_that_are_spread_are_refused_before_weights_are_read(
    tmp_path, sudokus, tiny_checkpoint, monkeypatch
):
    monkeypatch.setattr(
        "llada_plugins.models.loading.load_weights", lambda *_, **__: pytest.fail("weights read")
    )
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")  # as accelerate launch says it
    given = ["--model", str(tiny_checkpoint), "--data", str(sudokus), "--output_dir", str(tmp_path)]
    with pytest.raises(SystemExit, match="which FSDP and DeepSpeed spread: leave one of them out"):
        sft.main([*given, *short_run(max_steps=1), "--router_aux_loss_coef", "0.01"])
