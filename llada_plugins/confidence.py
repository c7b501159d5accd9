"""Which proposals to trust: one function a confidence source, each from the candidates of a step to a score, higher = keep.

A new source is a function and a row of CONFIDENCE; the decode loop does not change.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Candidates(NamedTuple):
    """The positions that a step decides on: M of each row."""

    logits: Tensor                    # (B, M, V) fp32: bf16 ties make ranks arbitrary
    tokens: Tensor                    # (B, M) the proposal where masked, else the token that stands there
    masked: Tensor                    # (B, M) bool
    policy: Tensor | None             # (B, M) raw score of the unmasking-policy stream, if the model has one
    uniform: Callable[[], Tensor]     # draws (B, M) U(0, 1)


def token_probability(candidates: Candidates) -> Tensor:
    """Softmax probability of the token: LLaDA's low_confidence remasking, RemeDi's TPS probability."""
    logits = candidates.logits
    return (logits.gather(-1, candidates.tokens[..., None])[..., 0] - logits.logsumexp(-1)).exp()


def margin(candidates: Candidates) -> Tensor:
    """Probability of the best token less that of the second best (Kim et al., arXiv 2502.06768)."""
    best, second = candidates.logits.softmax(-1).topk(2, dim=-1).values.unbind(-1)
    return best - second


def negative_entropy(candidates: Candidates) -> Tensor:
    """Minus the entropy (nats) of the predicted distribution (Dream, arXiv 2508.15487)."""
    return -torch.special.entr(candidates.logits.softmax(-1)).sum(-1)


def uniform(candidates: Candidates) -> Tensor:
    """U(0, 1), drawn anew at every step: LLaDA's random remasking."""
    return candidates.uniform().float()


CONFIDENCE: dict[str, Callable[[Candidates], Tensor]] = {
    "tps_prob": token_probability,
    "random": uniform,
    "entropy": negative_entropy,
    "margin": margin,
}
PROBABILITIES = ("tps_prob", "margin")                  # scores on the scale that a threshold is stated in
PUBLISHED_NAMES = {"low_confidence": "tps_prob"}        # LLaDA's names for `remasking`, where they differ
