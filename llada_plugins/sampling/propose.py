"""One step's proposals and their scores: which token, and how much it is trusted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from llada_plugins.diffusion.denoiser import Prediction
from llada_plugins.diffusion.guidance import without
from llada_plugins.diffusion.random_streams import uniform
from llada_plugins.models.special_tokens import SpecialTokens

from .confidence import CONFIDENCE, Candidates
from .config import SamplerConfig
from .dependence import at_places, dependent_pairs

INF = float("inf")
LEAST = torch.finfo(torch.float32).min
AS_THEY_ARE = SamplerConfig(temperature=1.0)  # samples from logits that are filtered already
# What a random number of a position and a step is for.
FOR_CONFIDENCE, FOR_TOKEN, FOR_ORDER = 0, 1, 2


class ActiveBlock(NamedTuple):
    """The block that a step works on."""

    tokens: Tensor  # (B, W)
    keys: Tensor  # (B,) random streams
    offset: int | Tensor  # of its first column in the random streams; (B, 1) where rows differ
    step: int | Tensor  # (B, 1) where rows differ, (B, W) where columns do

    def draw(self, columns: Tensor, use: int) -> Tensor:
        """U(0, 1) float64 for these columns (B, M) of the block."""
        step = self.step
        if torch.is_tensor(step):
            step = step.expand_as(self.tokens).gather(1, columns)
        return uniform(self.keys[:, None], step, columns + self.offset, use)

    def of_rows(self, rows: Tensor) -> ActiveBlock:
        """These rows (N,) alone."""
        offset = self.offset[rows] if torch.is_tensor(self.offset) else self.offset
        step = self.step[rows] if torch.is_tensor(self.step) else self.step
        return ActiveBlock(self.tokens[rows], self.keys[rows], offset, step)


def draws_of_confidence(
    keys: Tensor, offset: int | Tensor, width: int
) -> Callable[[Tensor], Tensor]:
    """What confidence_source=random draws at every position of a block, (S, B, W).

    The function takes step numbers (S, 1, 1). offset: as of an ActiveBlock.
    """

    def draws(steps: Tensor) -> Tensor:
        positions = torch.arange(width, device=keys.device) + offset
        return uniform(keys[:, None], steps, positions, FOR_CONFIDENCE)

    return draws


class Proposals(NamedTuple):
    """What a step would write into a block, and how much each token is trusted."""

    tokens: Tensor  # (B, W); where nothing is proposed, the token that stands there
    score: Tensor  # (B, W) fp32; inf where a token is pinned
    # (B, W, W) bool: which two should not be kept in one step; under max_dependence alone
    dependent: Tensor | None = None


def positions_at_once(device: torch.device) -> int:
    """How many positions' logits exist together.

    64 on a CPU: matrix products are no faster with more, and 32 MB (of 126,464 tokens)
    are the largest blocks that glibc's allocator reuses rather than have the system clear
    anew, which took as long as the arithmetic.
    """
    return 64 if device.type == "cpu" else 1024


def propose(logits: Tensor, config: SamplerConfig, draw: Callable[[], Tensor]) -> Tensor:
    """Token ids (B, M) from logits (B, M, V): the best, or a sample at config.temperature.

    draw: U(0, 1) float64, (B, M).
    """
    if config.temperature == 0:
        return logits.argmax(-1)
    # float64 and a sort's indices take several times the room
    num = max(1, positions_at_once(logits.device) // 8)
    parts = zip(logits.flatten(0, -2).split(num), draw().flatten().split(num))
    tokens = [sample(of_part, drawn, config) for of_part, drawn in parts]
    return torch.cat(tokens).view(logits.shape[:-1])


def sample(logits: Tensor, drawn: Tensor, config: SamplerConfig) -> Tensor:
    """Token ids (N,) from logits (N, V) by the inverse distribution function at drawn (N,).

    In float64: LLaDA draws exp(l) / (-log u)^T for every token, which has the same
    distribution and in float32 truncates the tail (arXiv 2409.02908); one number of 52
    random bits a position reaches every token more probable than 1e-15.
    """
    # The best token's logit comes off first: divided by a temperature near 0 it would
    # overflow, while 0 stays 0 and all others become -inf.
    best = logits.amax(-1, keepdim=True)
    logits = logits.to(torch.float64, copy=True).sub_(best).div_(config.temperature)
    if config.top_k is not None and config.top_k < logits.shape[-1]:
        least = logits.topk(config.top_k, dim=-1).values[..., -1:]
        logits.masked_fill_(logits < least, -INF)
    if config.top_p is not None:
        ordered, order = logits.sort(dim=-1, descending=True, stable=True)
        probability = ordered.softmax(-1)
        above = probability.cumsum(-1) - probability  # of all better tokens: 0 for the best
        left_out = (above >= config.top_p).gather(-1, order.argsort(-1))
        logits.masked_fill_(left_out, -INF)
    upto = logits.exp_().cumsum_(-1)  # (N, V)
    # the first token whose sum reaches a point above 0, which one of weight 0 never is
    return torch.searchsorted(upto, drawn[:, None] * upto[:, -1:])[:, 0]


def filtered(logits: Tensor, config: SamplerConfig) -> Tensor:
    """Logits (..., V) at the temperature, -inf where top_p, then top_k leave a token out.

    So does Dream. Unlike `sample`, top_p keeps a token while all better ones sum to at
    most top_p, and top_k chooses among those that it leaves.
    """
    if config.temperature > 0:
        # as in `sample`: a temperature near 0 must not overflow
        logits = (logits - logits.amax(-1, keepdim=True)) / config.temperature
    if config.top_p is not None and config.top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True, stable=True)
        upto = ordered.softmax(-1).cumsum(-1)
        left_out = torch.zeros_like(order, dtype=torch.bool)
        left_out[..., 1:] = upto[..., :-1] > config.top_p
        logits = logits.masked_fill(left_out.scatter(-1, order, left_out), -INF)
    if config.top_k is not None and config.top_k < logits.shape[-1]:
        least = logits.topk(config.top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < least, -INF)
    return logits


def propose_filtered(
    raw: Tensor, judged: Tensor, mask: int, config: SamplerConfig, draw: Callable[[], Tensor]
) -> Tensor:
    """Token ids (B, M) from `filtered` logits judged (B, M, V): the best, or a sample.

    raw: the unfiltered ones, without the mask token. Where the filter leaves the mask
    token alone, the best of them.
    """
    best = raw.argmax(-1)  # what a filter never leaves out
    if config.temperature == 0:
        return best
    choices = judged.clone()
    choices[..., mask] = -INF
    choices.scatter_(-1, best[..., None], choices.gather(-1, best[..., None]).clamp_min(LEAST))
    tokens = sample(choices.flatten(0, -2), draw().flatten(), AS_THEY_ARE)
    return tokens.view(best.shape)


def logits_to_judge(logits: Tensor, config: SamplerConfig) -> Tensor:
    """What the confidence is read from, (B, M, V); these logits themselves where it is raw."""
    if config.confidence_of == "filtered":
        return filtered(logits, config)
    if config.confidence_of == "tempered" and config.temperature not in (0, 1):
        return logits / config.temperature
    return logits


def candidates_at(
    prediction: Prediction,
    columns: Tensor,
    block: ActiveBlock,
    config: SamplerConfig,
    special: SpecialTokens,
) -> Candidates:
    """Propose a token at each masked one of these columns (B, M) of the block.

    Under editing at every one.
    """
    logits = prediction.logits_at(columns).float()  # (B, M, V)
    standing = block.tokens.gather(1, columns)
    masked = standing == special.mask
    draw = partial(block.draw, columns)
    judged = logits_to_judge(logits, config)
    # never proposed, but part of a probability; put back, since a copy of all is dear
    of_mask = logits[..., special.mask].clone()
    logits[..., special.mask] = -INF
    if config.confidence_of == "filtered":
        proposal = propose_filtered(logits, judged, special.mask, config, partial(draw, FOR_TOKEN))
    else:
        proposal = propose(logits, config, partial(draw, FOR_TOKEN))
    logits[..., special.mask] = of_mask
    if config.confidence_eos_eot_inf:
        # upstream's two writes hit the noisy and the raw logits, the same tensor only
        # at temperature 0; see docs/reproduce.md
        judged = without(judged, special.ends)
    policy = prediction.confidence
    if policy is not None:
        policy = policy.gather(1, columns)
    return Candidates(
        judged,
        proposal if config.edits else torch.where(masked, proposal, standing),
        masked,
        policy,
        prediction.ranks_masked,
        partial(draw, FOR_CONFIDENCE),
        columns,
    )


def scores(
    candidates: Candidates, columns: Tensor, block: ActiveBlock, config: SamplerConfig
) -> Tensor:
    """How much each candidate at these columns is trusted, (B, M), by the confidence source.

    Masked ones by that of the rule, if it has its own.
    Under alg_temp a Gumbel number is added, so that the best n are n draws without
    replacement from softmax(confidence / alg_temp) (Kool et al., arXiv 1903.06059).
    """
    score = CONFIDENCE[config.source](candidates).float()
    if config.source_of_masked != config.source:
        of_masked = CONFIDENCE[config.source_of_masked](candidates).float()
        score = torch.where(candidates.masked, of_masked, score)
    if config.alg_temp:
        gumbel = -(-block.draw(columns, FOR_ORDER).log()).log()  # float64
        score = (score + config.alg_temp * gumbel).float()
    return score


def ends_last(score: Tensor, candidates: Candidates, ends: tuple[int, ...]) -> Tensor:
    """The score (B, M) with proposals of these ids last of all, whatever their source."""
    least = torch.finfo(score.dtype).min
    for token in ends:
        score = score.masked_fill(candidates.masked & (candidates.tokens == token), least)
    return score


def proposals_at(
    prediction: Prediction,
    columns: Tensor,
    block: ActiveBlock,
    config: SamplerConfig,
    special: SpecialTokens,
) -> Proposals:
    """Proposals of the whole block, by the model at these columns (B, M) of it.

    Elsewhere the block's tokens are pinned; so are all visible ones, unless a later step
    may mask them again.
    """
    at_once = positions_at_once(columns.device)
    if config.max_dependence is None:
        parts = columns.split(max(1, at_once // len(columns)), 1)
        return _proposals(prediction, parts, block, config, special)
    # all positions of a row together, for each is compared with the others
    numbers = torch.arange(len(columns), device=columns.device)
    found = [
        _proposals(prediction.of_rows(rows), [columns[rows]], block.of_rows(rows), config, special)
        for rows in numbers.split(max(1, at_once // columns.shape[1]))
    ]
    return Proposals(*(torch.cat(each) for each in zip(*found)))


def _proposals(
    prediction: Prediction,
    parts: Sequence[Tensor],
    block: ActiveBlock,
    config: SamplerConfig,
    special: SpecialTokens,
) -> Proposals:
    """See `proposals_at`; each part has other columns (B, M) of the block."""
    proposal = block.tokens.clone()
    score = torch.full(proposal.shape, INF, device=proposal.device)
    dependent = None
    for part in parts:
        candidates = candidates_at(prediction, part, block, config, special)
        of_part = scores(candidates, part, block, config)
        if config.confidence_eos_eot_inf:
            of_part = ends_last(of_part, candidates, special.ends)
        proposal.scatter_(1, part, candidates.tokens)
        score.scatter_(1, part, of_part)
        if config.max_dependence is not None:
            pairs = dependent_pairs(candidates, special.mask, config)
            dependent = at_places(pairs, part, proposal.shape[1])
    if not config.revises:
        score = score.masked_fill(block.tokens != special.mask, INF)
    return Proposals(proposal, score, dependent)
