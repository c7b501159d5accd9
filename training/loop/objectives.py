"""Objectives: what a batch costs, as functions that the trainer calls.

A batch states what each token is worth in its `weight`. Every objective returns a sum and
the total weight that the sum is to be divided by. The trainer divides once, by the weight
of the whole update (all micro-batches of all processes), so accumulation and data
parallelism do not change the loss.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llada_plugins.diffusion.forward_process import Noisy, Replace, mask_tokens, remask_noise
from llada_plugins.diffusion.random_streams import request_key, uniform

from .reading import PLAIN, Reading

IGNORED = -100  # transformers pads labels of batches of other lengths with it


class Loss(NamedTuple):
    """sum / count is the loss.

    count depends on the batch alone, never on the noise, so that the estimate stays
    unbiased.
    """

    sum: Tensor  # scalar, fp32, with gradient
    # scalar: the batch's total weight
    count: Tensor  # type: ignore[assignment]  # hides tuple.count, which nobody calls
    # (B, L, K) what the evaluation's metrics are made of, where an objective has any
    predictions: Tensor | None = None
    # (B, L) what they are held against; IGNORED where there is nothing to compare
    labels: Tensor | None = None


class Objective(Protocol):
    """The loss of a collated batch; all randomness comes from the generator."""

    def __call__(
        self, model: nn.Module, batch: dict[str, Tensor], generator: torch.Generator
    ) -> Loss: ...


def sft(mask_id: int, reading: Reading = PLAIN) -> Objective:
    """LLaDA's supervised fine-tuning (arXiv 2502.09992, Algorithm 2; its GUIDELINES.md).

    The prompt is never masked.

    Cross-entropy at masked answer tokens over p, each sample divided by its answer
    length (the batch's weight), mean over samples. The answer includes its EOS padding.
    reading: of the model. Each block of a block-causal one has noise of its own, and is
    predicted given the clean ones before it (BD3LM, arXiv 2503.09573, eq. 8): the mean over
    noise is the bound that likelihoods estimate.
    """

    def sft_objective(
        model: nn.Module, batch: dict[str, Tensor], generator: torch.Generator
    ) -> Loss:
        return _answer_loss(model, batch, generator, mask_id, reading)

    return sft_objective


def _answer_loss(
    predict: Callable[..., Tensor],
    batch: dict[str, Tensor],
    generator: torch.Generator,
    mask_id: int,
    reading: Reading,
) -> Loss:
    """The loss of `sft`. predict: as `LLaDA.forward`."""
    tokens, weight = batch["input_ids"], batch["weight"]  # (B, L)
    maskable = weight > 0
    noisy = mask_tokens(tokens, maskable, mask_id, generator, block=reading.blocks(tokens))
    given = reading.given(noisy.tokens, tokens, maskable)
    at = given.predicting(noisy.masked)
    logits = predict(given.tokens, **given.options, at=at).float()  # (masked tokens, V)
    cross_entropy = F.cross_entropy(logits, tokens[noisy.masked], reduction="none")
    share = (weight / noisy.p_mask)[noisy.masked]
    return Loss((cross_entropy * share).sum(), weight.sum())


def complementary(mask_id: int, reading: Reading = PLAIN) -> Objective:
    """Fast-dLLM v2's fine-tuning (arXiv 2509.26328): two views of a row, with opposite masks.

    What one view masks of an answer, the other shows. So every answer token is predicted
    once, and all weigh alike: the loss is their mean cross-entropy over the update. That is
    no bound of the likelihood, as `sft`'s is. reading: as for `sft`.
    """

    def complementary_objective(
        model: nn.Module, batch: dict[str, Tensor], generator: torch.Generator
    ) -> Loss:
        tokens, weight = batch["input_ids"], batch["weight"]  # (B, L)
        maskable = weight > 0
        noisy = mask_tokens(tokens, maskable, mask_id, generator, block=reading.blocks(tokens))
        masked = torch.cat([noisy.masked, maskable & ~noisy.masked])  # (2 B, L)
        clean = tokens.repeat(2, 1)
        views = clean.masked_fill(masked, mask_id)
        given = reading.given(views, clean, maskable.repeat(2, 1))
        at = given.predicting(masked)
        logits = model(given.tokens, **given.options, at=at).float()  # (answer tokens, V)
        cross_entropy = F.cross_entropy(logits, clean[masked], reduction="sum")
        return Loss(cross_entropy, maskable.sum().to(weight.dtype))

    return complementary_objective


def pretrain(mask_id: int, random_lengths: float = 0.01, reading: Reading = PLAIN) -> Objective:
    """LLaDA's pre-training (arXiv 2502.09992, Algorithm 1): any token may be masked.

    Cross-entropy at masked ones over p, mean over tokens.

    The batch's weight is 1 at real tokens, 0 at padding. random_lengths: share of
    training batches cut to a length drawn from 1 to theirs; such a batch's mean over
    what is left weighs as much as the whole batch would. Evaluations have
    `counted_noise`. reading: as for `sft`; documents that are kept apart have blocks of
    their own.
    """

    def pretrain_objective(
        model: nn.Module, batch: dict[str, Tensor], generator: torch.Generator
    ) -> Loss:
        tokens, weight = batch["input_ids"], batch["weight"]  # (B, L)
        attention_mask = batch.get("attention_mask")
        may_cut = model.training and random_lengths > 0
        if may_cut and float(torch.rand((), generator=generator)) < random_lengths:
            cut = int(torch.randint(1, tokens.shape[1] + 1, (), generator=generator))
            tokens, weight = tokens[:, :cut], weight[:, :cut]  # (B, cut)
            if attention_mask is not None:  # (B, L), or (B, L, L) where documents are apart
                attention_mask = attention_mask[:, :cut][..., :cut]
        maskable, block = weight > 0, reading.blocks(tokens, attention_mask)
        if model.training:
            noisy = mask_tokens(tokens, maskable, mask_id, generator, block=block)
        else:
            noisy = counted_noise(tokens, maskable, mask_id, block)
        given = reading.given(noisy.tokens, tokens, maskable, attention_mask)
        at = given.predicting(noisy.masked)
        logits = model(given.tokens, **given.options, at=at).float()  # (masked tokens, V)
        cross_entropy = F.cross_entropy(logits, tokens[noisy.masked], reduction="none")
        share = (weight / noisy.p_mask)[noisy.masked]
        count = batch["weight"].sum()
        return Loss((cross_entropy * share).sum() * (count / weight.sum()), count)

    return pretrain_objective


def counted_noise(
    tokens: Tensor, maskable: Tensor, mask_id: int, block: Tensor | None = None
) -> Noisy:
    """The noise of `mask_tokens` with less variance (LLaDA, eq. 14).

    Of each row's n maskable tokens k ~ U{1..n} are masked, and p = k / n: the same
    bound. block: as for `mask_tokens`; the same of each block.

    All is drawn from a hash of the row's maskable tokens: the same in any batch, on any
    number of processes.
    """
    rows = [row[real].tolist() for row, real in zip(tokens, maskable)]
    key = torch.tensor([request_key(0, row) for row in rows])[:, None]  # (B, 1)
    may, columns = maskable.cpu(), torch.arange(tokens.shape[1])
    of = torch.zeros_like(tokens, device="cpu") if block is None else block.cpu()  # (B, L)
    # (B, L) of each block, by its number, which is below L
    length = torch.zeros_like(of).scatter_add_(1, of, may.long())
    count = (uniform(key, 0, columns) * length).long() + 1
    draw = uniform(key, 1, columns)  # (B, L)
    # blocks one after the other, and what is not maskable after all of them
    draw = (draw + of).masked_fill(~may, tokens.shape[1])
    order = draw.argsort(-1).argsort(-1)  # (B, L) rank of each position
    rank = order - (length.cumsum(-1) - length).gather(1, of)
    masked = (rank < count.gather(1, of)) & may
    p_mask = count / length
    p_mask = p_mask[:, :1] if block is None else p_mask.gather(1, of)  # (B, 1 or L)
    masked = masked.to(tokens.device)
    return Noisy(tokens.masked_fill(masked, mask_id), masked, p_mask.to(tokens.device))


def routed_sft(mask_id: int, reading: Reading = PLAIN) -> Objective:
    """The loss of `sft` through an ALA router: the same noise and normalisation.

    The model is a `routing.RoutedLLaDA`.
    """

    def routed_objective(
        model: nn.Module, batch: dict[str, Tensor], generator: torch.Generator
    ) -> Loss:
        prompt_lengths = (batch["weight"] > 0).int().argmax(-1)  # (B,)
        predict = partial(model, prompt_lengths=prompt_lengths)
        return _answer_loss(predict, batch, generator, mask_id, reading)

    return routed_objective


def remask_sft(
    mask_id: int,
    *,
    r_incorrect: float,
    lambda_ups: float,
    label_smoothing: float,
    train_backbone: bool,
    incorrect: Callable[[nn.Module], Replace],
    reading: Reading = PLAIN,
) -> Objective:
    """RemeDi's Remask SFT (arXiv 2509.23653, section 4.1): L_TPS + lambda_ups * L_UPS.

    Answers have masks and incorrect tokens.

    L_TPS is LLaDA's SFT loss, at masked tokens only (not at incorrect ones), and is
    left out where the backbone is frozen. L_UPS is the binary cross-entropy of the
    score h at every answer token, against 1 where clean, 0 where incorrect, and the
    detached p(x0 | xt) where masked. Both are divided by each sample's answer length,
    then averaged over samples, as in `sft`. label_smoothing: s takes a label y to s +
    (1 - 2 s) y; RemeDi's code has 0.05 (.95, .05, .05 + .9 p). incorrect: where
    incorrect tokens come from, given the model. reading: as for `sft`; a score is of its
    own column. The model is a `policy_model.PolicyModel`.
    """

    def remask_objective(
        model: nn.Module, batch: dict[str, Tensor], generator: torch.Generator
    ) -> Loss:
        tokens, weight = batch["input_ids"], batch["weight"]  # (B, L)
        answer = weight > 0
        noisy = remask_noise(
            tokens,
            answer,
            mask_id,
            generator,
            r=r_incorrect,
            replace=incorrect(model),
            block=reading.blocks(tokens),
        )
        at = noisy.masked if model.training else answer  # N positions; only metrics ask for more
        given = reading.given(noisy.tokens, tokens, answer)
        logits, score = model(given.tokens, given.predicting(at), **given.options)
        logits, score = logits.float(), given.of_noisy(score)  # (N, V), (B, L)
        cross_entropy = F.cross_entropy(logits, tokens[at], reduction="none")  # (N,)
        probability = torch.zeros_like(score).masked_scatter(at, (-cross_entropy.detach()).exp())
        label = torch.where(noisy.masked, probability, (~noisy.incorrect).float())
        label = label_smoothing + (1 - 2 * label_smoothing) * label
        score_loss = F.binary_cross_entropy_with_logits(score, label, reduction="none")  # (B, L)
        total = lambda_ups * (score_loss * weight).sum()
        if train_backbone:
            total = total + (cross_entropy * (weight / noisy.p_mask * noisy.masked)[at]).sum()
        if model.training:
            return Loss(total, weight.sum())
        standing = (logits.gather(-1, noisy.tokens[at][:, None])[:, 0] - logits.logsumexp(-1)).exp()
        standing = torch.zeros_like(score).masked_scatter(at, standing)  # (B, L)
        predictions = torch.stack([score, standing], -1)  # (B, L, 2)
        labels = (~noisy.incorrect).long().masked_fill(~answer | noisy.masked, IGNORED)
        return Loss(total, weight.sum(), predictions, labels)

    return remask_objective
