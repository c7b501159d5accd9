"""How well a policy tells incorrect tokens from clean ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from llada_plugins.diffusion.denoiser import (
    PADDING,
    Canvas,
    Denoiser,
    embeddable,
    masked_first,
)
from llada_plugins.diffusion.forward_process import Replace, another_of, remask_noise
from llada_plugins.diffusion.token_rows import align
from llada_plugins.engine.engine import Engine
from llada_plugins.sampling.confidence import Candidates, token_probability

from .metrics import auc, confusion, expected_calibration_error
from .ups_problems import ReportOptions, TokenProblem, batches

BINS = 15


class Noise(NamedTuple):
    """A kind of incorrect token."""

    replace: Replace
    rate: float  # r of `remask_noise`


class Visible(NamedTuple):
    """The visible answer tokens of all noisy rows, N of them; confidences on the CPU."""

    clean: Tensor  # (N,) bool
    policy: Tensor  # (N,) sigmoid(h)
    tps_prob: Tensor  # (N,) probability of the token where it stands


def detect(
    engine: Engine, problems: Sequence[TokenProblem], noise: Noise, options: ReportOptions
) -> Visible:
    """Scores of the visible answer tokens of noise_draws noisy copies of every problem."""
    generator = torch.Generator().manual_seed(options.seed)
    copies = list(problems) * options.noise_draws
    parts = [
        _scored(engine, batch, noise, generator) for batch in batches(copies, options.batch_size)
    ]
    found = Visible(*map(torch.cat, zip(*parts)))
    if found.clean.all() or not found.clean.any():
        raise ValueError(
            "the noise left only clean or only incorrect tokens, too few to measure with: "
            "give more problems, noise_draws or r_samples"
        )
    return found


@torch.inference_mode()
def _scored(
    engine: Engine, batch: Sequence[TokenProblem], noise: Noise, generator: torch.Generator
) -> Visible:
    """Scores of the visible answer tokens of a noisy copy of each problem."""
    rows = [problem.prompt_ids + problem.answer_ids for problem in batch]
    tokens, padded = align(rows, engine.model.device)  # (B, L), answers end together
    device, width = tokens.device, tokens.shape[1]
    lengths = torch.tensor([len(problem.answer_ids) for problem in batch], device=device)  # (B,)
    answer = torch.arange(width, 0, -1, device=device) <= lengths[:, None]  # (B, L)
    noisy = remask_noise(
        tokens, answer, engine.special.mask, generator, r=noise.rate, replace=noise.replace
    )
    window = slice(width - int(lengths.max()), width)
    prediction = engine.denoise(Canvas(noisy.tokens, width - lengths, padded), window)
    assert prediction.confidence is not None  # the command refuses a model without a policy
    visible = (answer & ~noisy.masked)[:, window]  # (B, W)
    token = embeddable(noisy.tokens[:, window])
    every = torch.arange(visible.shape[1], device=device).expand_as(visible)
    logits = prediction.logits_at(every).float()
    own = token_probability(Candidates(logits, token, ~visible, None, False, lambda: token))
    return Visible(
        clean=~noisy.incorrect[:, window][visible].cpu(),
        policy=prediction.confidence.float().sigmoid()[visible].cpu(),
        tps_prob=own[visible].cpu(),
    )


def noises(
    engine: Engine, problems: Sequence[TokenProblem], options: ReportOptions
) -> dict[str, Noise]:
    """The kinds of incorrect token: the answers' alphabet, the vocabulary, the model's own."""
    special = set(engine.tokenizer.all_special_ids) | {engine.special.mask, *engine.special.ends}
    words = sorted(set(range(min(len(engine.tokenizer), engine.model.config.vocab_size))) - special)
    alphabet = sorted({token for problem in problems for token in problem.answer_ids} - special)
    if len(alphabet) < 2:
        raise ValueError(
            "the completions are all written with one token: incorrect ones cannot be made of it"
        )
    return {
        "answer_alphabet": Noise(another_of(torch.tensor(alphabet)), options.r_incorrect),
        "vocabulary": Noise(another_of(torch.tensor(words)), options.r_incorrect),
        "model_samples": Noise(
            model_samples(engine.denoise, engine.special.mask), options.r_samples
        ),
    }


def model_samples(denoise: Denoiser, mask_id: int) -> Replace:
    """Replacements drawn from the model's own softmax (PRISM's noise, arXiv 2510.01384).

    It sees the chosen positions masked.

    A draw that equals the clean token is a clean token. Where a problem has several
    answers, so may one that does not.
    """

    def replace(
        noisy: Tensor, chosen: Tensor, tokens: Tensor, generator: torch.Generator
    ) -> Tensor:
        start = torch.zeros(len(tokens), dtype=torch.long, device=tokens.device)
        padded = bool((tokens == PADDING).any())
        canvas = Canvas(noisy.masked_fill(chosen, mask_id), start, padded)
        prediction = denoise(canvas, slice(0, tokens.shape[1]))
        most = max(1, int(chosen.sum(-1).max()))
        columns = masked_first(chosen)[:, :most]  # (B, M), the chosen ones among them
        logits = prediction.logits_at(columns).float()  # (B, M, V)
        logits[..., mask_id] = -torch.inf
        probability = logits[chosen.gather(1, columns)].softmax(-1).to(generator.device)  # (N, V)
        if not len(probability):
            return tokens[chosen]
        return torch.multinomial(probability, 1, generator=generator)[:, 0].to(tokens.device)

    return replace


def detection_report(visible: Visible) -> dict[str, Any]:
    """Three ways to judge the policy's and the token's own confidence.

    AUC of both, calibration of each as the probability of being clean, and the policy's
    confusion matrix at 0.5.
    """
    return {
        "num_visible": len(visible.clean),
        "num_incorrect": int((~visible.clean).sum()),
        "auc": {
            "policy": auc(visible.policy, visible.clean),
            "tps_prob": auc(visible.tps_prob, visible.clean),
        },
        "calibration_error": {
            "policy": expected_calibration_error(visible.policy, visible.clean, BINS),
            "tps_prob": expected_calibration_error(visible.tps_prob, visible.clean, BINS),
        },
        "confusion": confusion(visible.policy, visible.clean),
        "reliability": reliability(visible.policy, visible.clean),
    }


def reliability(probability: Tensor, label: Tensor) -> list[dict[str, float]]:
    """Mean probability and share of clean tokens in each bin of the calibration error.

    Empty bins are left out.
    """
    number = (probability.double() * BINS).long().clamp(0, BINS - 1)
    rows = []
    for each in number.unique().tolist():
        inside = number == each
        rows.append(
            {
                "low": each / BINS,
                "high": (each + 1) / BINS,
                "count": int(inside.sum()),
                "mean_probability": float(probability[inside].double().mean()),
                "share_clean": float(label[inside].double().mean()),
            }
        )
    return rows
