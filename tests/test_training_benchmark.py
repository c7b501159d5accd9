"""The training benchmark's two sides make the same updates, and its estimate of memory
counts what torch keeps. No times are asserted.
"""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import training
from benchmarks.training import Options, activation_bytes, training_model
from training.data.corpus import collate_rows
from training.loop import objectives

SMALL = ["--shape", "tiny", "--batch_size", "4", "--seq_len", "16", "--updates", "3"]


def test_the_command_reports_both_sides_and_their_losses_agree(tmp_path, capsys):
    assert training.main([*SMALL, "--json", str(tmp_path / "out.json")]) == 0
    result = json.loads((tmp_path / "out.json").read_text())
    assert len(result["throughput"]["losses"]) == 3 + training.NOT_MEASURED
    assert result["throughput"]["same_losses"]
    # it learns, on both sides
    assert result["throughput"]["losses"][-1] != result["throughput"]["losses"][0]
    assert {"trainer", "bare"} == result["throughput"]["tokens_per_second"].keys()
    assert "trainer / bare loop: " in capsys.readouterr().out


def test_bfloat16_is_the_same_on_both_sides():
    assert training.throughput(
        Options(shape="tiny", batch_size=4, seq_len=16, updates=3, dtype="bfloat16")
    )["same_losses"]


@pytest.mark.slow
def test_a_compiled_model_makes_the_same_updates():
    assert training.throughput(
        Options(shape="tiny", batch_size=4, seq_len=16, updates=3, torch_compile=True)
    )["same_losses"]


def test_losses_that_differ_fail_the_command(monkeypatch):
    monkeypatch.setattr(training, "LEARNING_RATE", 1e-2)
    update = training.Bare.update

    def lazy(self):  # a bare loop that never moves
        before = [weight.detach().clone() for weight in self.model.parameters()]
        loss = update(self)
        with torch.no_grad():
            for weight, old in zip(self.model.parameters(), before):
                weight.copy_(old)
        return loss

    monkeypatch.setattr(training.Bare, "update", lazy)
    assert training.main([*SMALL, "--measure", "throughput"]) == 1


def test_a_recomputing_trainer_makes_the_same_updates():
    assert training.throughput(
        Options(shape="tiny", batch_size=4, seq_len=16, updates=3, activation_checkpointing=True)
    )["same_losses"]


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("batch_size, seq_len", [(2, 16), (3, 64)])
def test_the_estimate_of_activations_is_what_torch_keeps(batch_size, seq_len, recompute):
    model = training_model(Options(shape="small", batch_size=batch_size, seq_len=seq_len))
    if recompute:
        model.activation_checkpointing_enable()
    batch = collate_rows(0, False)(torch.randint(0, 100, (batch_size, seq_len)).tolist())
    parameters = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    everything = objectives.pretrain(model.config.mask_token_id, random_lengths=0.0)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = everything(model, batch, torch.Generator().manual_seed(0))
    num_masked, rest = divmod(max(kept.values()), 4 * model.config.num_embeddings)
    assert rest == 0  # nothing is larger than the head's softmax
    # of the head's three arrays of V numbers a masked token only the softmax is kept by
    # then; the estimate has every token masked. Beyond it are masks and the rotary
    # tables of 256 places
    estimate = activation_bytes(model, batch_size, seq_len, recompute=recompute)
    if recompute:  # no layer has been computed again by then
        head = 4 * 3 * (model.config.num_embeddings + model.config.d_model) * batch_size * seq_len
        estimate -= (activation_bytes(model, batch_size, seq_len) - head) / model.config.n_layers
    estimate -= 4 * model.config.num_embeddings * (3 * batch_size * seq_len - num_masked)
    estimate += 2 * 4 * 256 * model.config.head_dim
    assert loss.sum.requires_grad and sum(kept.values()) == pytest.approx(estimate, rel=0.1)
