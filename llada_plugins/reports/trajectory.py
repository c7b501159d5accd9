"""How answers come about: every state of a decoded batch, and what was taken back in it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from llada_plugins.engine.engine import Engine
from llada_plugins.models import text
from llada_plugins.sampling.config import SamplerConfig
from llada_plugins.sampling.draft import Sample
from llada_plugins.sampling.frames import UNKNOWN, frames
from llada_plugins.sampling.generate import generate
from llada_plugins.sampling.trace import Event, Trace
from llada_plugins.sampling.unmask_schedule import planned

MASKED = UNKNOWN  # in a history of answers


class Decoded(NamedTuple):
    """A decoded batch."""

    samples: list[Sample]
    # (S + 1, B, G), before the first step and after each, MASKED where masked; G = decoded_length
    history: Tensor
    seconds: float


class Change(NamedTuple):
    """A token that stood, was masked again and ended as another."""

    step: int  # after which it was masked again, from 1
    position: int  # in the answer
    first: int
    final: int


def record(engine: Engine, prompts: Sequence[Sequence[int]], config: SamplerConfig) -> Decoded:
    """Decode one batch of token prompts and keep the answers after every step."""
    trace = Trace(config)
    began = time.perf_counter()
    samples = generate(
        engine.model,
        prompts,
        config,
        special=engine.special,
        denoise=engine.denoise,
        on_step=trace.on_step,
        review=trace.review(),
    )
    seconds = time.perf_counter() - began
    return Decoded(samples, history([trace.events[row] for row in range(len(prompts))]), seconds)


def history(events: Sequence[Sequence[Event]]) -> Tensor:
    """Each row's answer before its first step and after each, (S + 1, B, G).

    A row with fewer steps than another stays as its last one left it.
    """
    rows = [[frame.tokens for frame in frames(own)] for own in events]
    length = max(map(len, rows))
    padded = [np.stack([*own, *own[-1:] * (length - len(own))]) for own in rows]
    return torch.from_numpy(np.stack(padded, 1)).long()


def expected_masks(config: SamplerConfig) -> list[int]:
    """Masked tokens after each step of a fixed schedule, where K_n stand of the active block."""
    plan = planned(torch.ones(1, config.block, dtype=torch.bool), config)
    assert plan is not None  # the schedule is fixed
    standing = [
        block * config.block + int(stand) for block in range(config.num_blocks) for stand in plan[0]
    ]
    return [config.decoded_length - stand for stand in [0, *standing]]


def removed(history: Tensor) -> Tensor:
    """Which tokens each step masked again, (S, B, G) bool, of a history (S + 1, B, G)."""
    return (history[:-1] != MASKED) & (history[1:] == MASKED)


def corrections(history: Tensor) -> list[list[Change]]:
    """For each row, the tokens that were masked again and ended as others."""
    found: list[list[Change]] = [[] for _ in range(history.shape[1])]
    changed = removed(history) & (history[:-1] != history[-1])
    for step, row, position in changed.nonzero().tolist():
        first, final = history[step, row, position], history[-1, row, position]
        found[row].append(Change(step + 1, position, int(first), int(final)))
    return found


def trajectory(engine: Engine, prompt: str, history: Tensor, changes: Sequence[Change]) -> str:
    """One row's answers step by step as text, '_' where masked, and what was taken back.

    history: (S + 1, G).
    """

    def word(token: int) -> str:
        return "_" if token == MASKED else text.decode(engine.tokenizer, [token], ())

    lines = [prompt]
    for step, answer in enumerate(history.tolist()):
        taken = [
            f"{word(change.first)!r} at {change.position}, finally {word(change.final)!r}"
            for change in changes
            if change.step == step
        ]
        again = f"    masked again: {'; '.join(taken)}" if taken else ""
        lines.append(f"  after step {step:>3}  {''.join(map(word, answer))}{again}")
    return "\n".join(lines)
