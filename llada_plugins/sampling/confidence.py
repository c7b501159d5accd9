"""Which proposals to trust: one function a confidence source.

Each makes a score, higher = keep, of the candidates of a step. A new source is a function
and a row of CONFIDENCE; the decode loop does not change. If its scores lie between 0 and 1
and mean the probability that a token is right, its name belongs to PROBABILITIES as well:
only these may go with the adaptive rules (threshold, factor, error_budget), which compare
scores with a number that the user gives; threshold_entropy judges masked positions by
their entropy, and compares these scores at visible ones alone. A source that needs a model with an
unmasking-policy stream also belongs to POLICY_SOURCES, so that a model without one is
refused at the start.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from llada_plugins.diffusion.denoiser import embeddable, log_total


class Candidates(NamedTuple):
    """The positions that a step decides on: M of each row."""

    logits: Tensor  # (B, M, V) fp32: bf16 ties make ranks arbitrary
    tokens: Tensor  # (B, M) the proposal where masked, else the token that stands there
    masked: Tensor  # (B, M) bool
    policy: Tensor | None  # (B, M) raw score h of the policy stream, if the model has one
    policy_ranks_masked: bool  # was it trained to rank masked positions too (RemeDi's bi-tower)?
    uniform: Callable[[], Tensor]  # draws (B, M) U(0, 1)
    columns: Tensor | None = None  # (B, M) their places in the block


def token_logit(candidates: Candidates) -> Tensor:
    """The token's raw logit: what RemeDi's released script ranks by.

    RemeDi's paper ranks by the policy stream.
    """
    tokens = embeddable(candidates.tokens)
    return candidates.logits.gather(-1, tokens[..., None])[..., 0]


def token_probability(candidates: Candidates) -> Tensor:
    """Softmax probability of the token: LLaDA's low_confidence, RemeDi's TPS probability."""
    return (token_logit(candidates) - log_total(candidates.logits)).exp()


def margin(candidates: Candidates) -> Tensor:
    """Probability of the best token less the second best's (Kim et al., arXiv 2502.06768)."""
    best, second = candidates.logits.softmax(-1).topk(2, dim=-1).values.unbind(-1)
    return best - second


def negative_entropy(candidates: Candidates) -> Tensor:
    """Minus the entropy (nats) of the predicted distribution (Dream, arXiv 2508.15487)."""
    entropy: Tensor = torch.special.entr(candidates.logits.softmax(-1)).sum(-1)
    return -entropy


def uniform(candidates: Candidates) -> Tensor:
    """U(0, 1), drawn anew at every step: LLaDA's random remasking."""
    return candidates.uniform().float()


def leftmost(candidates: Candidates) -> Tensor:
    """The further left, the higher: from left to right (SDAR's sequential)."""
    assert candidates.columns is not None
    return -candidates.columns.float()


def policy(candidates: Candidates) -> Tensor:
    """sigmoid(h) of the policy stream at every position (RemeDi, arXiv 2509.23653, 3.2)."""
    if candidates.policy is None:
        raise ValueError(
            "confidence_source='ups' needs a model with an unmasking-policy stream: use --model "
            "llada_ups with ups=FOLDER, or a RemeDi checkpoint"
        )
    return candidates.policy.float().sigmoid()


def policy_of_visible(candidates: Candidates) -> Tensor:
    """sigmoid(h) where a token stands; where one is only proposed, its probability.

    A stream that was trained to rank proposals as well scores both. A light head never
    saw the proposal, so at masked positions it can only guess p(x0 | xt), which the
    softmax knows: on a backbone that is not converged nearly all of the gain is lost with
    h everywhere (sudoku4 after 1000 updates, 8 steps: .774 against .834).
    """
    score = policy(candidates)
    if candidates.policy_ranks_masked:
        return score
    return torch.where(candidates.masked, token_probability(candidates), score)


CONFIDENCE: dict[str, Callable[[Candidates], Tensor]] = {
    "tps_prob": token_probability,
    "random": uniform,
    "entropy": negative_entropy,
    "margin": margin,
    "leftmost": leftmost,
    "ups": policy_of_visible,
    "ups_all": policy,
    "tps_logit": token_logit,
}
POLICY_SOURCES = ("ups", "ups_all")  # need an unmasking-policy stream
PROBABILITIES = ("tps_prob", "margin", "ups", "ups_all")  # may go with adaptive rules
OF_VISIBLE = ("tps_prob", "margin", "ups")  # may judge visible tokens under threshold_entropy
PUBLISHED_NAMES = {"low_confidence": "tps_prob"}  # LLaDA's names for `remasking`, where they differ
