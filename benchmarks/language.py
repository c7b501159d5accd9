"""A synthetic language and a brief fit to it.

Weights of a real shape then have log-probabilities that vary by token, as a trained
model's do.

Two thousand ids are its words. A word's rate falls with its rank (Zipf); beyond the
most frequent ones a word belongs to one topic, and a text has one; three of ten tokens
are one of two words that like to follow the token before. Some minutes of fitting learn
how frequent words are and next to nothing of topics and successors, so the result is no
language model. It serves to measure estimators, whose variance depends on how
log-probabilities vary over tokens and masks (likelihood.py).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from llada_plugins.models.folder import known_special_tokens
from llada_plugins.models.llada import LLaDA
from training.loop.objectives import pretrain

NUM_WORDS, NUM_COMMON, NUM_TOPICS = 2048, 64, 16
FOLLOWS = 0.3  # of tokens follow from the one before
BATCH = 16  # texts of an update
LEARNING_RATE = 1e-3  # of AdamW, after ten updates of warm-up; linear to 0 over the second half


class Language(NamedTuple):
    """Which words there are and what follows what."""

    words: Tensor  # (W,) ids, most frequent first
    topics: Tensor  # (T, W) how often a text of a topic has each word
    successors: Tensor  # (W, 2) words that like to follow it


def language(vocab_size: int, seed: int) -> Language:
    """A language of at most NUM_WORDS of the ids below vocab_size."""
    generator = torch.Generator().manual_seed(seed)
    words = torch.randperm(vocab_size, generator=generator)[:NUM_WORDS]
    rate = 1 / (torch.arange(len(words)) + 2.0)  # (W,)
    topic = torch.randint(NUM_TOPICS, (len(words),), generator=generator)
    fits = NUM_TOPICS * (topic == torch.arange(NUM_TOPICS)[:, None])  # (T, W)
    topics = rate * torch.where(torch.arange(len(words)) < NUM_COMMON, 1, fits)
    return Language(
        words, topics, torch.multinomial(rate.expand(len(words), -1), 2, generator=generator)
    )


def texts(spoken: Language, num: int, length: int, generator: torch.Generator) -> Tensor:
    """Random texts (num, length) as ids."""
    topic = torch.randint(NUM_TOPICS, (num,), generator=generator)
    likely = spoken.topics[topic]  # (num, words): how likely each word is
    word = torch.multinomial(likely, length, replacement=True, generator=generator)
    follows = torch.rand(num, length, generator=generator) < FOLLOWS
    which = torch.randint(2, (num, length), generator=generator)
    for place in range(1, length):
        successor = spoken.successors[word[:, place - 1], which[:, place]]
        word[:, place] = torch.where(follows[:, place], successor, word[:, place])
    return spoken.words[word]


def fit(
    model: LLaDA, spoken: Language, *, steps: int, length: int, generator: torch.Generator
) -> tuple[float, float]:
    """Fit all weights in place with LLaDA's pre-training objective under bfloat16 autocast.

    Returns nats a token of other texts, before and after.
    """
    objective = pretrain(known_special_tokens(model).mask, random_lengths=0.0)
    other = texts(spoken, 2 * BATCH, length, generator)

    def loss(tokens: Tensor) -> Tensor:
        batch = {
            "input_ids": tokens.to(model.device),
            "weight": torch.ones(tokens.shape, device=model.device),
        }
        with torch.autocast(model.device.type, torch.bfloat16):
            total = objective(model, batch, generator)
        return total.sum / total.count

    with torch.no_grad():
        before = float(loss(other))
    model.requires_grad_(True).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 10, 2 * (1 - step / steps))
    )
    for _ in range(steps):
        loss(texts(spoken, BATCH, length, generator)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    model.eval().requires_grad_(False)
    with torch.no_grad():
        return before, float(loss(other))
