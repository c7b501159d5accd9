"""Log-likelihood bounds of answers under a masked-diffusion model, with their standard errors.

Masks of all requests share batches; the head works at masked positions only; a request's masks depend on the seed and its
own tokens, so its value does not depend on the rest of the batch beyond rounding.
"""
from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .denoiser import Canvas, Denoiser, align, guided, model_denoiser
from .generation import known_special_tokens
from .model import LLaDA, SpecialTokens
from .noise import request_key

ESTIMATORS = ("count",)


class LogLikelihood(NamedTuple):
    """An estimate of a lower bound on log p(answer | prompt)."""

    value: float           # nats
    stderr: float          # standard error, nats; 0 where the bound was enumerated
    num_forwards: int      # model rows evaluated


class Masks(NamedTuple):
    """Which answer positions to mask, and what each row's summed log-probability counts in the estimate."""

    masked: Tensor     # (S, n) bool
    weight: Tensor     # (S,) float64; the estimate is the weighted sum
    exact: bool


class _Row(NamedTuple):
    request: int
    ids: list[int]         # prompt + answer, clean
    masked: Tensor         # (n,) bool
    weight: float


def count_masks(length: int, mc_num: int, seed: int, *sequences: Sequence[int]) -> Masks:
    """Masks of the count-matched bound E_k E_{|M|=k} [length/k log p(masked | rest)], k ~ U{1..length} (LLaDA, eq. 14).

    All 2^length - 1 of them with their exact weights where that takes no more than mc_num rows; else mc_num samples whose counts
    are stratified: floor((u + i) / mc_num · length) + 1, together uniform. The published code rounds a linspace instead,
    which is not uniform; see README "Deviations".
    """
    if length < 30 and 2 ** length - 1 <= mc_num:
        subsets = [subset for k in range(1, length + 1) for subset in combinations(range(length), k)]
        masked = torch.tensor([[position in subset for position in range(length)] for subset in subsets])
        size = masked.sum(-1)
        ways = torch.tensor([math.comb(length, k) for k in size.tolist()])
        return Masks(masked, 1.0 / (size * ways).double(), True)
    generator = torch.Generator().manual_seed(request_key(seed, *sequences))
    offset = torch.rand((), generator=generator, dtype=torch.float64)
    count = ((offset + torch.arange(mc_num)) / mc_num * length).long().clamp(max=length - 1) + 1          # (S,)
    rank = torch.rand(mc_num, length, generator=generator).argsort(-1).argsort(-1)
    return Masks(rank < count[:, None], length / (count.double() * mc_num), False)


@torch.inference_mode()
def log_likelihood(model: LLaDA, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], *, estimator: str = "count", mc_num: int = 128,
                   seed: int = 0, cfg_scale: float = 0.0, batch_size: int = 32, special: SpecialTokens | None = None,
                   denoise: Denoiser | None = None) -> list[LogLikelihood]:
    """A lower bound on log p(answer | prompt), in nats, for each (prompt ids, answer ids).

    mc_num: masks drawn per request; an answer with no more masks than that is enumerated exactly. batch_size: masked rows per
    forward, of any requests. Raises ValueError on an empty answer or one that does not fit the model's context.
    """
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator must be one of {', '.join(ESTIMATORS)}, got {estimator!r}")
    if mc_num < 1 or batch_size < 1:
        raise ValueError(f"mc_num and batch_size must be at least 1, got {mc_num} and {batch_size}")
    special = special or known_special_tokens(model)
    _check_pairs(pairs, model.config.max_sequence_length)
    denoise = denoise or model_denoiser(model)
    if cfg_scale > 0:
        denoise = guided(denoise, cfg_scale, special.mask)
    masks = [count_masks(len(answer), mc_num, seed, prompt, answer) for prompt, answer in pairs]
    terms: list[list[float]] = [[] for _ in pairs]
    for rows in _batches(pairs, masks, batch_size):
        for row, value in zip(rows, _score_rows(denoise, rows, model.device, special.mask)):
            terms[row.request].append(row.weight * value)
    return [_estimate(term, mask.exact) for term, mask in zip(terms, masks)]


def _check_pairs(pairs: Sequence[tuple[Sequence[int], Sequence[int]]], limit: int) -> None:
    for number, (prompt, answer) in enumerate(pairs):
        if not len(answer):
            raise ValueError(f"answer {number} is empty: there is nothing to score")
        if len(prompt) + len(answer) > limit:
            raise ValueError(f"request {number} has {len(prompt)} + {len(answer)} tokens, more than the model's context of {limit}")


def _batches(pairs: Sequence[tuple[Sequence[int], Sequence[int]]], masks: Sequence[Masks], batch_size: int) -> Iterator[list[_Row]]:
    """Masked rows of all requests, longest first, so that rows of a batch need little padding."""
    rows = []
    for number in sorted(range(len(pairs)), key=lambda n: -len(pairs[n][0]) - len(pairs[n][1])):
        ids = [*pairs[number][0], *pairs[number][1]]
        rows += [_Row(number, ids, masked, weight) for masked, weight in zip(masks[number].masked, masks[number].weight.tolist())]
        while len(rows) >= batch_size:
            yield rows[:batch_size]
            rows = rows[batch_size:]
    if rows:
        yield rows


def _score_rows(denoise: Denoiser, rows: Sequence[_Row], device: torch.device, mask_id: int) -> list[float]:
    """Summed log-probability of each row's masked tokens, in nats."""
    clean, padded = align([row.ids for row in rows], device)                                     # (B, L)
    width = max(len(row.masked) for row in rows)
    masked = torch.zeros(len(rows), width, dtype=torch.bool)
    for number, row in enumerate(rows):
        masked[number, width - len(row.masked):] = row.masked
    masked = masked.to(device)                                                                   # (B, W), answers end together
    window = slice(clean.shape[1] - width, clean.shape[1])
    tokens = clean.clone()
    tokens[:, window] = tokens[:, window].masked_fill(masked, mask_id)
    start = torch.tensor([clean.shape[1] - len(row.masked) for row in rows], device=device)
    at = masked.logical_not().byte().argsort(dim=-1, stable=True)[:, :int(masked.sum(-1).max())]  # (B, M), masked columns first
    logits = denoise(Canvas(tokens, start, padded), window).logits_at(at).float()                # (B, M, V)
    target = clean[:, window].gather(1, at).clamp(min=0)
    loss = F.cross_entropy(logits.transpose(1, 2), target, reduction="none")                     # (B, M)
    return (-loss.double() * masked.gather(1, at)).sum(-1).tolist()


def _estimate(terms: list[float], exact: bool) -> LogLikelihood:
    """Sum of the weighted terms; the standard error treats stratified samples as independent, so it errs on the large side."""
    values = torch.tensor(terms, dtype=torch.float64)
    stderr = 0.0 if exact else math.nan if len(terms) < 2 else float((values * len(terms)).std() / math.sqrt(len(terms)))
    return LogLikelihood(float(values.sum()), stderr, len(terms))
