"""The training section of benchmarks.gpu: tokens a second of LoRA and of Remask SFT.

Bare updates: masks, forward, backward, clipping, fused AdamW; what the trainer adds on top
is measured by benchmarks.training. The FLOPs of a token are those that the update must
spend: weights that do not train need no gradient, and a frozen backbone no backward pass
at all. What activation checkpointing computes again does not count.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from llada_plugins.diffusion.forward_process import another_of
from llada_plugins.models.folder import known_special_tokens
from llada_plugins.models.llada import LLaDA
from training.data.examples import Example, collate_answers
from training.loop.objectives import Objective, remask_sft, sft
from training.loop.throughput import training_flops
from training.runs.lora_adapters import PROJECTIONS, LoRA, add_lora
from training.runs.policy_model import policy_model

from .bare_loop import LEARNING_RATE
from .random_models import random_tokens

NUM_ROWS, MOST_COLUMNS = 8, 768  # of an update


class Work(NamedTuple):
    """What is trained."""

    model: nn.Module
    objective: Objective
    flops: float  # of a token


def shared_copy(model: LLaDA) -> LLaDA:
    """The model to be changed, with the same weights in memory."""
    return copy.deepcopy(model, {id(weight): weight for weight in model.parameters()})


def lora_work(model: LLaDA, columns: int, checkpointing: bool = False) -> Work:
    """Adapters of all projections; checkpointing: layers are computed again in the backward."""
    mask_id = _mask_id(model)
    # of a matrix that does not train: 2 FLOPs forward and 2 backward, not 6 in all
    flops = training_flops(model, columns) - training_flops(model, 0) / 3
    adapted = shared_copy(model).train()
    add_lora(adapted, LoRA(16, 32.0, 0.0, PROJECTIONS), torch.Generator().manual_seed(0))
    adapted.to(model.device)
    if checkpointing:
        adapted.activation_checkpointing_enable()
    return Work(adapted, sft(mask_id), flops)


def remask_work(model: LLaDA, columns: int) -> Work:
    """A light policy head on a frozen backbone, which runs forward alone."""
    mask_id = _mask_id(model)
    trained = policy_model(shared_copy(model), 256, torch.Generator().manual_seed(0))
    objective = remask_sft(
        mask_id,
        r_incorrect=0.1,
        lambda_ups=1.0,
        label_smoothing=0.0,
        train_backbone=False,
        incorrect=lambda _: another_of(torch.arange(mask_id)),
    )
    return Work(trained.to(model.device).train(), objective, training_flops(model, columns) / 3)


WORKS: dict[str, Callable[[LLaDA, int], Work]] = {
    "Remask SFT": remask_work,
    "LoRA": lora_work,
    "LoRA, activation checkpointing": partial(lora_work, checkpointing=True),
}


def updates(work: Work, batch: dict[str, Tensor], dtype: torch.dtype) -> Callable[[], Tensor]:
    """One update a call; returns its loss."""
    trained = [weight for weight in work.model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, fused=True)
    device = batch["input_ids"].device
    noise = torch.Generator().manual_seed(0)

    def update() -> Tensor:
        # outputs of an adapter in float32 join those of weights in another precision
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            found = work.objective(work.model, batch, noise)
            loss = found.sum / found.count
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return update


def batch_of(model: LLaDA, columns: int, seed: int) -> dict[str, Tensor]:
    """NUM_ROWS random rows of as many columns, the second half of each an answer."""
    rows = [random_tokens(model, columns, seed + row)[0].tolist() for row in range(NUM_ROWS)]
    batch = collate_answers(0)([Example(row, columns // 2) for row in rows])
    return {name: tensor.to(model.device) for name, tensor in batch.items()}


def rates(seconds: float, columns: int, flops: float, ceiling: float) -> dict[str, float]:
    """Tokens a second of an update, and the share of the device's FLOP/s."""
    rate = NUM_ROWS * columns / seconds
    return {"tokens_per_second": rate, "flop_utilisation": rate * flops / ceiling}


def _mask_id(model: LLaDA) -> int:
    assert model.special_tokens is not None  # of a random model
    return known_special_tokens(model).mask
