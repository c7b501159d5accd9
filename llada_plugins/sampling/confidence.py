"""Which proposals to trust: one function a confidence source, each from the candidates
of a step to a score, higher = keep.

A new source is a function and a row of CONFIDENCE; the decode loop does not change.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from llada_plugins.diffusion.denoiser import log_total


class Candidates(NamedTuple):
    """The positions that a step decides on: M of each row."""

    logits: Tensor  # (B, M, V) fp32: bf16 ties make ranks arbitrary
    tokens: Tensor  # (B, M) the proposal where masked, else the token that stands there
    masked: Tensor  # (B, M) bool
    policy: Tensor | None  # (B, M) raw score h of the unmasking-policy stream, if the model has one
    # was the stream trained to rank masked positions too (RemeDi's bi-tower)?
    policy_ranks_masked: bool
    uniform: Callable[[], Tensor]  # draws (B, M) U(0, 1)


def token_probability(candidates: Candidates) -> Tensor:
    """Softmax probability of the token: LLaDA's low_confidence remasking, RemeDi's TPS
    probability.
    """
    logits = candidates.logits
    return (logits.gather(-1, candidates.tokens[..., None])[..., 0] - log_total(logits)).exp()


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


def token_logit(candidates: Candidates) -> Tensor:
    """The token's raw logit: what RemeDi's released script ranks by, although its paper
    ranks by the policy stream.
    """
    return candidates.logits.gather(-1, candidates.tokens[..., None])[..., 0]


def policy(candidates: Candidates) -> Tensor:
    """sigmoid(h) of the unmasking-policy stream at every position: RemeDi's rule (arXiv
    2509.23653, section 3.2), the plan's literal one.
    """
    if candidates.policy is None:
        raise ValueError(
            "confidence_source='ups' needs a model with an unmasking-policy stream: use --model "
            "llada_ups with ups=FOLDER, or a RemeDi checkpoint"
        )
    return candidates.policy.float().sigmoid()


def policy_of_visible(candidates: Candidates) -> Tensor:
    """sigmoid(h) where a token stands; where one is only proposed, its probability,
    unless the stream was trained to rank those as well.

    A light head never saw the proposal, so at masked positions it can only guess p(x0 |
    xt), which the softmax knows: with h everywhere nearly all of its gain is lost
    (sudoku4, 8 steps: .778 against .874).
    """
    score = policy(candidates)
    return (
        score
        if candidates.policy_ranks_masked
        else torch.where(candidates.masked, token_probability(candidates), score)
    )


CONFIDENCE: dict[str, Callable[[Candidates], Tensor]] = {
    "tps_prob": token_probability,
    "random": uniform,
    "entropy": negative_entropy,
    "margin": margin,
    "ups": policy_of_visible,
    "ups_all": policy,
    "tps_logit": token_logit,
}
POLICY_SOURCES = ("ups", "ups_all")  # need an unmasking-policy stream
# scores on the scale that a threshold is stated in
PROBABILITIES = ("tps_prob", "margin", "ups", "ups_all")
PUBLISHED_NAMES = {"low_confidence": "tps_prob"}  # LLaDA's names for `remasking`, where they differ
