"""One step's proposals and their scores: which token, and how much it is trusted."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from llada_plugins.diffusion.denoiser import Prediction
from llada_plugins.diffusion.guidance import without
from llada_plugins.diffusion.random_streams import uniform
from llada_plugins.models.special_tokens import SpecialTokens

from .confidence import CONFIDENCE, Candidates
from .config import SamplerConfig

INF = float("inf")


def positions_at_once(device: torch.device) -> int:
    """How many positions' logits exist together. 64 on a CPU: matrix products are no
    faster with more, and 32 MB (of 126,464 tokens) are the largest blocks that glibc's
    allocator reuses rather than have the system clear anew, which took as long as the
    arithmetic.
    """
    return 64 if device.type == "cpu" else 1024


def propose(logits: Tensor, config: SamplerConfig, draw: Callable[[], Tensor]) -> Tensor:
    """Token ids (B, M) from logits (B, M, V): the argmax, or a sample at
    config.temperature. draw: U(0, 1) float64, (B, M).
    """
    if config.temperature == 0:
        return logits.argmax(-1)
    # float64 and a sort's indices take several times the room
    num = max(1, positions_at_once(logits.device) // 8)
    parts = zip(logits.flatten(0, -2).split(num), draw().flatten().split(num))
    return torch.cat([sample(*part, config) for part in parts]).view(logits.shape[:-1])


def sample(logits: Tensor, drawn: Tensor, config: SamplerConfig) -> Tensor:
    """Token ids (N,) from logits (N, V) by the inverse distribution function at drawn (N,).

    In float64: LLaDA draws exp(l) / (-log u)^T for every token, which has the same
    distribution and in float32 truncates the tail (arXiv 2409.02908); one number of 52
    random bits a position reaches every token more probable than 1e-15.
    """
    # the best token's logit comes off first: divided by a temperature near 0 it would
    # overflow, while 0 stays 0 and all others become -inf
    logits = (
        logits.to(torch.float64, copy=True)
        .sub_(logits.amax(-1, keepdim=True))
        .div_(config.temperature)
    )
    if config.top_k is not None and config.top_k < logits.shape[-1]:
        logits.masked_fill_(logits < logits.topk(config.top_k, dim=-1).values[..., -1:], -INF)
    if config.top_p is not None:
        ordered, order = logits.sort(dim=-1, descending=True, stable=True)
        probability = ordered.softmax(-1)
        # probability of all better tokens: 0 for the best
        above = probability.cumsum(-1) - probability
        logits.masked_fill_((above >= config.top_p).gather(-1, order.argsort(-1)), -INF)
    upto = logits.exp_().cumsum_(-1)  # (N, V)
    # the first token whose sum reaches a point above 0, which one of weight 0 never is
    return torch.searchsorted(upto, drawn[:, None] * upto[:, -1:])[:, 0]


def candidates_at(
    prediction: Prediction,
    at: Tensor,
    block: Tensor,
    keys: Tensor,
    place: tuple[int, int],
    config: SamplerConfig,
    special: SpecialTokens,
) -> Candidates:
    """Propose a token at each masked one of the columns `at` (B, M) of the block (B,
    W); place: (first column in the answer, step).
    """
    offset, step = place
    logits = prediction.logits_at(at).float()  # (B, M, V)
    standing = block.gather(1, at)
    masked, position = standing == special.mask, at + offset
    # never proposed, but part of a probability; put back, since a copy of all is dear
    of_mask = logits[..., special.mask].clone()
    logits[..., special.mask] = -INF
    proposal = propose(logits, config, lambda: uniform(keys[:, None], step, position, 1))
    logits[..., special.mask] = of_mask
    if config.confidence_eos_eot_inf:
        # upstream's two writes hit the noisy and the raw logits, the same tensor only
        # at temperature 0; see docs/reproduce.md
        logits = without(logits, special.ends)
    policy = None if prediction.confidence is None else prediction.confidence.gather(1, at)
    return Candidates(
        logits,
        torch.where(masked, proposal, standing),
        masked,
        policy,
        prediction.ranks_masked,
        lambda: uniform(keys[:, None], step, position, 0),
    )


def scored(
    candidates: Candidates, config: SamplerConfig, ends: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """The candidates' tokens and their scores by the confidence source, both (B, M)."""
    score = CONFIDENCE[config.source](candidates).float()
    # last among all candidates, under every confidence source
    for token in ends if config.confidence_eos_eot_inf else ():
        score = score.masked_fill(
            candidates.masked & (candidates.tokens == token), torch.finfo(score.dtype).min
        )
    return candidates.tokens, score


def judge(
    prediction: Prediction,
    at: Tensor,
    block: Tensor,
    keys: Tensor,
    place: tuple[int, int],
    config: SamplerConfig,
    special: SpecialTokens,
) -> tuple[Tensor, Tensor]:
    """Proposals and scores (B, W) of the block, at the columns `at` by the model;
    elsewhere the block's tokens, pinned by inf.
    """
    proposal = block.clone()
    score = torch.full(block.shape, INF, device=block.device)
    for part in at.split(max(1, positions_at_once(at.device) // len(at)), 1):
        token, value = scored(
            candidates_at(prediction, part, block, keys, place, config, special),
            config,
            special.ends,
        )
        proposal.scatter_(1, part, token)
        score.scatter_(1, part, value)
    return proposal, score if config.revises else score.masked_fill(block != special.mask, INF)
