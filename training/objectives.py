"""Objectives: what a batch costs, as functions that the trainer calls. A batch states what each token is worth in its `weight`.

Every objective returns a sum and the total weight that the sum is to be divided by; the trainer divides once, by the weight of the
whole update (all micro-batches of all processes), so accumulation and data parallelism do not change the loss.
"""
from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llada_plugins.diffusion import mask_tokens


class Loss(NamedTuple):
    """sum / count is the loss; count depends on the batch alone, never on the noise, so that the estimate stays unbiased."""

    sum: Tensor          # scalar, fp32, with gradient
    count: Tensor        # scalar: the batch's total weight


class Objective(Protocol):
    """The loss of a collated batch; all randomness comes from the generator."""

    def __call__(self, model: nn.Module, batch: dict[str, Tensor], generator: torch.Generator) -> Loss: ...


def sft(mask_id: int) -> Objective:
    """LLaDA's supervised fine-tuning (arXiv 2502.09992, Algorithm 2; its GUIDELINES.md): the prompt is never masked.

    Cross-entropy at masked answer tokens over p, each sample divided by its answer length (the batch's weight), mean over samples.
    The answer includes its EOS padding.
    """
    def sft_objective(model: nn.Module, batch: dict[str, Tensor], generator: torch.Generator) -> Loss:
        tokens, weight = batch["input_ids"], batch["weight"]                            # (B, L)
        noisy = mask_tokens(tokens, weight > 0, mask_id, generator)
        logits = model(noisy.tokens)[noisy.masked].float()                              # (masked tokens, V)
        cross_entropy = F.cross_entropy(logits, tokens[noisy.masked], reduction="none")
        share = (weight / noisy.p_mask)[noisy.masked]
        return Loss((cross_entropy * share).sum(), weight.sum())
    return sft_objective
