"""The seam between models and samplers: a Denoiser predicts the clean tokens of a
window; wrappers have the same signature.

Guidance, suppressed tokens and, in other files, routers and caches are Denoisers made
from Denoisers. The sampler never learns which. Logits are computed on demand: a step
asks for the positions that it has to decide on, and no others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from llada_plugins.models.llada import LLaDA, Past

# a place without a token; no vocabulary id will do, since published checkpoints pad
# with their EOS
PADDING = -1


class Canvas(NamedTuple):
    """A batch of token rows, aligned so that one column slice is the active window of every row."""

    tokens: Tensor  # (B, L) ids; PADDING left or right of a shorter row
    answer_start: Tensor  # (B,) column of the row's first answer token
    # False promises that no PADDING occurs, which spares a device synchronisation
    padded: bool = True
    # (B, L, D) to read in place of the tokens' own embeddings; set by wrappers such as
    # routed()
    embeds: Tensor | None = None
    # wrappers' own, from step to step while only the window's tokens change; None =
    # just one step
    memory: dict[str, Any] | None = None
    # what to compute, the window included; keys and values of the rest are in past; set
    # by cached()
    columns: slice = slice(None)
    past: Past | None = None

    def take(self, rows: Tensor) -> Canvas:
        """Some of the rows, (N,) numbers, and what wrappers remember of them; the
        memory is cut in place.
        """
        return self._replace(
            tokens=self.tokens[rows],
            answer_start=self.answer_start[rows],
            memory=_of_rows(self.memory, rows, len(self.tokens)),
        )


class LogitsAt(Protocol):
    """Logits at window columns (B, M) as (B, M, V); given rows (P,), at columns (P,) of
    those rows as (P, V).
    """

    def __call__(self, at: Tensor, rows: Tensor | None = None) -> Tensor: ...


class Prediction(NamedTuple):
    """What a Denoiser says of a window of W columns."""

    logits_at: LogitsAt
    # (B, W) unmasking-policy score h, higher = keep; None without such a stream
    confidence: Tensor | None = None
    ranks_masked: bool = False  # was that stream trained to rank masked positions as well?

    @classmethod
    def from_logits(cls, logits: Tensor, confidence: Tensor | None = None) -> Prediction:
        """A prediction whose logits (B, W, V) exist already."""
        return cls(lambda at, rows=None: gather(logits, at, rows), confidence)


class Denoiser(Protocol):
    """Predict the clean tokens of canvas.tokens[:, window]; everything outside the
    window is context.
    """

    def __call__(self, canvas: Canvas, window: slice) -> Prediction: ...


def _of_rows(value: Any, rows: Tensor, batch: int) -> Any:
    """Of all tensors in dicts and tuples, these rows; tensors have `batch` rows, or
    several times as many, as under guidance.
    """
    if isinstance(value, Tensor):
        return value.unflatten(0, (-1, batch))[:, rows].flatten(0, 1)
    if isinstance(value, dict):
        for name in value:
            # one by one, so that old and new keys are not all held at once
            value[name] = _of_rows(value[name], rows, batch)
        return value
    return (
        tuple(_of_rows(each, rows, batch) for each in value) if isinstance(value, tuple) else value
    )


def gather(values: Tensor, at: Tensor, rows: Tensor | None = None) -> Tensor:
    """values (B, W, D) at columns (B, M) -> (B, M, D); given rows (P,), at columns (P,)
    of those rows -> (P, D).
    """
    return values[
        torch.arange(len(values), device=at.device)[:, None] if rows is None else rows, at
    ]


def model_denoiser(model: LLaDA, head: Callable[[Tensor], Tensor] | None = None) -> Denoiser:
    """The plain denoiser: one forward of the whole canvas, the vocabulary's head only
    where logits are asked for.

    head: hidden states (B, W, D) -> confidence (B, W), a policy stream in place of the
    model's own, if it has one.
    """

    def denoise(canvas: Canvas, window: slice) -> Prediction:
        real = canvas.tokens != PADDING if canvas.padded else None
        hidden, own = model.streams(
            canvas.tokens.clamp(min=0),
            real,
            inputs_embeds=canvas.embeds,
            # (B, L, D), (B, L) or None
            columns=canvas.columns,
            past=canvas.past,
        )
        first = canvas.columns.start or 0
        shown = slice(window.start - first, window.stop - first)
        hidden = hidden[:, shown]

        def logits_at(at: Tensor, rows: Tensor | None = None) -> Tensor:
            return model.head(gather(hidden, at, rows))

        if head is not None:
            return Prediction(logits_at, head(hidden))
        return Prediction(logits_at, None if own is None else own[:, shown], own is not None)

    return denoise


def align(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, bool]:
    """Token rows as (B, L) with PADDING on the left of shorter ones, and whether any was needed."""
    longest = max(len(row) for row in rows)
    padded = any(len(row) < longest for row in rows)
    return torch.tensor(
        [[PADDING] * (longest - len(row)) + list(row) for row in rows], device=device
    ), padded


def log_total(logits: Tensor) -> Tensor:
    """Log of the summed exponentials of logits (..., V).

    On a CPU eight positions at a time: a temporary of all of 64 has to be cleared anew
    by the system every time, which takes longer than the sum (19.6 ms against 7.6 for
    126,464 tokens).
    """
    if logits.device.type != "cpu":
        return logits.logsumexp(-1)
    return torch.cat([part.logsumexp(-1) for part in logits.flatten(0, -2).split(8)]).view(
        logits.shape[:-1]
    )


def capacity(batch_size: int, batch_tokens: int | None = None) -> Callable[[int], int]:
    """How many rows of so many tokens make a batch: batch_size, or what fits into
    batch_tokens, padding included, and at least one.
    """
    return lambda longest: batch_size if batch_tokens is None else max(1, batch_tokens // longest)


def check_unmasked(prompts: Sequence[Sequence[int]], mask_id: int) -> None:
    """Raise ValueError on a prompt with the mask token: only the answer behind it is filled in."""
    for number, prompt in enumerate(prompts):
        if mask_id in prompt:
            place = list(prompt).index(mask_id)
            raise ValueError(
                f"prompt {number} holds the mask token (id {mask_id}) at position {place}: "
                "it would never be filled in, take it out"
            )
