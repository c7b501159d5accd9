"""A plain training loop that makes the trainer's updates on a copy of the model."""

from __future__ import annotations

import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import TrainerCallback

from llada_plugins.diffusion.forward_process import mask_tokens
from llada_plugins.models.folder import known_special_tokens
from llada_plugins.models.llada import LLaDA
from training.loop.objectives import Loss, Objective

LEARNING_RATE = 1e-4


class Bare(TrainerCallback):
    """The plain loop on its own model: an update after each of the trainer's.

    It has the batch and the masks that the trainer's had.
    """

    def __init__(self, model: LLaDA, dtype: str) -> None:
        self.model, self.mask_id = model, known_special_tokens(model).mask
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True
        )
        self.autocast = torch.autocast(
            model.device.type, torch.bfloat16, enabled=dtype == "bfloat16"
        )
        self.given: tuple[Tensor, Tensor] | None = None
        self.losses: list[tuple[float, float]] = []  # the trainer's, ours
        self.seconds: dict[str, list[float]] = {"trainer": [], "bare": []}
        self.mark = 0.0

    def watched(self, objective: Objective) -> Objective:
        """The same objective; what it is given and finds is kept."""

        def watched_objective(
            model: nn.Module, batch: dict[str, Tensor], generator: torch.Generator
        ) -> Loss:
            self.given = batch["input_ids"], generator.get_state()
            loss = objective(model, batch, generator)
            self.theirs = loss.sum.detach() / loss.count
            return loss

        return watched_objective

    def update(self) -> Tensor:
        """Mask, forward, loss, backward, clip, step."""
        assert self.given is not None  # watched before
        tokens, state = self.given
        generator = torch.Generator()
        generator.set_state(state)
        noisy = mask_tokens(
            tokens, torch.ones_like(tokens, dtype=torch.bool), self.mask_id, generator
        )
        with self.autocast:
            logits = self.model(noisy.tokens, at=noisy.masked).float()
            cross_entropy = F.cross_entropy(logits, tokens[noisy.masked], reduction="none")
            loss = (
                cross_entropy / noisy.p_mask.expand_as(tokens)[noisy.masked]
            ).sum() / tokens.numel()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    def clock(self) -> float:
        if self.model.device.type != "cuda":
            return time.process_time()
        torch.cuda.synchronize(self.model.device)
        return time.perf_counter()

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.mark = self.clock()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        began = self.clock()
        loss = self.update()
        ended = self.clock()
        self.seconds["trainer"].append(began - self.mark)
        self.seconds["bare"].append(ended - began)
        self.losses.append((float(self.theirs), float(loss)))
        self.mark = self.clock()
