"""The seam between models and samplers: a Denoiser predicts the clean tokens of a window.

Guidance, suppressed tokens, routers and caches, in other files, are Denoisers made from
Denoisers. The sampler never learns which. Logits are computed on demand: a step asks for
the positions that it has to decide on, and no others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from llada_plugins.models.columns import at_columns
from llada_plugins.models.families import FAMILIES
from llada_plugins.models.llada import LLaDA
from llada_plugins.models.past import Past
from llada_plugins.models.records import leaves
from llada_plugins.models.replayed_call import Size
from llada_plugins.models.slots import Slots
from llada_plugins.models.visible import block_causal

from .memory import Lasting, Memory, Rows
from .noisy_clean import Layout

# A place without a token. No vocabulary id will do, since published checkpoints pad
# with their EOS.
PADDING = -1

Decided = TypeVar("Decided", bound=NamedTuple)  # a record of tensors


def embeddable(tokens: Tensor) -> Tensor:
    """Ids that an embedding can look up: PADDING becomes token 0, which nothing attends to."""
    return tokens.clamp(min=0)


class States(Protocol):
    """What is known of all columns, of which a forward computes some."""

    def update(
        self, tokens: Tensor, columns: slice | Tensor, hidden: Tensor, own: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Take over what was computed of columns; returns the states of all, (B, L, D), (B, L)."""
        ...


class Canvas(NamedTuple):
    """A batch of token rows, aligned so that one slice is the active window of every row.

    padded: False promises that no PADDING occurs, which spares a device synchronisation.
    embeds: read in place of the tokens' own embeddings; set by wrappers such as routed().
    memory: for the steps in which only the window's tokens change; None = just one step.
    columns: what to compute, the window included; keys and values of the rest are in
    past. Both are set by cached(). As a tensor, (B, W) columns of each row: then known
    has what there is of the others.
    blocks: None, and every token sees all; else the width of blocks, whose edges are the
    columns that it divides: a token sees its own block and those before it, and its
    position counts from its row's first token.
    ids: of the requests that rows answer, for caches that outlive a block; candidates of
    one request share it, a guided branch has its complement.
    layout: where columns stand and what they see, of rows with noisy copies of a text beside
    its clean tokens; answer_start then counts from the text's first token.
    lasting: for what outlives a block, by ids; None = nothing does.
    given: where spans of a text are filled in, what stands of it beside the prompt.
    own_positions: does a token's position count from its row's first one? Else it is its
    column; for keys that are moved to other columns. Set by cached().
    """

    tokens: Tensor  # (B, L) ids; PADDING left or right of a shorter row
    answer_start: Tensor  # (B,) column of the row's first answer token
    padded: bool = True
    embeds: Tensor | None = None  # (B, L, D)
    memory: Memory | None = None
    columns: slice | Tensor = slice(None)
    past: Past | None = None
    known: States | None = None
    blocks: int | None = None
    ids: Tensor | None = None  # (B,)
    layout: Layout | None = None
    lasting: Lasting | None = None
    own_positions: bool = False
    given: Tensor | None = None  # (B, L) bool

    @property
    def prompt(self) -> Tensor:
        """Which tokens are their row's prompt, or were given beside it, (B, L)."""
        place = torch.arange(self.tokens.shape[1], device=self.tokens.device)
        if self.layout is not None:
            place = self.layout.position_ids
        asked = place < self.answer_start[:, None]
        if self.given is not None:
            asked = asked | self.given
        return asked & (self.tokens != PADDING)

    def keep_rows(self, numbers: Tensor) -> Canvas:
        """A canvas of some rows, (N,) numbers. The memory forgets all others, in place."""
        if self.memory is not None:
            self.memory.keep_rows(Rows(numbers, len(self.tokens)))
        return self.of_rows(numbers)

    def of_rows(self, numbers: Tensor | slice) -> Canvas:
        """A canvas of some rows, whose memory is that of all."""
        return self._replace(
            tokens=self.tokens[numbers],
            answer_start=self.answer_start[numbers],
            ids=None if self.ids is None else self.ids[numbers],
            given=None if self.given is None else self.given[numbers],
        )


class LogitsAt(Protocol):
    """Logits at window columns (B, M) as (B, M, V).

    Given rows (P,), at columns (P,) of those rows as (P, V).
    """

    def __call__(self, at: Tensor, rows: Tensor | None = None) -> Tensor: ...


class Prediction(NamedTuple):
    """What a Denoiser says of a window of W columns."""

    logits_at: LogitsAt
    confidence: Tensor | None = None  # (B, W) score h of a policy stream, higher = keep
    ranks_masked: bool = False  # was that stream trained to rank masked positions as well?
    # do logits come from the column to the left? A cache then computes that one too.
    shifted: bool = False
    # whose head the logits come from, if they do: it may replay what is decided of them
    model: LLaDA | None = None

    @classmethod
    def from_logits(cls, logits: Tensor, confidence: Tensor | None = None) -> Prediction:
        """A prediction whose logits (B, W, V) exist already."""
        return cls(LogitsOf(logits), confidence)

    def decide(
        self,
        function: Callable[[Prediction, Any, int], Decided],
        before: Any,
        num_columns: int,
        width: int,
    ) -> Decided:
        """What function(prediction, before, num_columns) returns: as a graph, where a model may.

        function: hashable; equal ones do the same. It may be called with more columns, up to
        width. before: tensors of the same rows, none of which depends on another.
        """
        if self.model is not None:
            size = Size(len(next(leaves(before))), num_columns, width)
            given = self._replace(model=None), before
            found = self.model.replays.call(self.model.head_module, function, given, size)
            if found is not None:
                return found
        return function(self, before, num_columns)

    def of_rows(self, rows: Tensor) -> Prediction:
        """The same of these rows (N,) alone, in their order."""
        confidence = None if self.confidence is None else self.confidence[rows]
        return self._replace(logits_at=logits_of_rows(self.logits_at, rows), confidence=confidence)


class Denoiser(Protocol):
    """Predict the clean tokens of canvas.tokens[:, window]; everything else is context."""

    def __call__(self, canvas: Canvas, window: slice) -> Prediction: ...


def gather(values: Tensor, at: Tensor, rows: Tensor | None = None) -> Tensor:
    """Values (B, W, D) at columns (B, M) of every row, as (B, M, D).

    Given rows (P,), at columns (P,) of those rows, as (P, D).
    """
    return at_columns(values, at) if rows is None else values[rows, at]


class LogitsOf(NamedTuple):
    """A LogitsAt of logits that exist already."""

    logits: Tensor  # (B, W, V)

    def __call__(self, at: Tensor, rows: Tensor | None = None) -> Tensor:
        return gather(self.logits, at, rows)


class HeadOf(NamedTuple):
    """A LogitsAt that computes what a model's head makes of hidden states, as far as asked for."""

    head: Callable[[Tensor], Tensor]
    states: Tensor  # (B, W, D)

    def __call__(self, at: Tensor, rows: Tensor | None = None) -> Tensor:
        return self.head(gather(self.states, at, rows))


def logits_of_rows(logits_at: LogitsAt, numbers: Tensor) -> LogitsAt:
    """A LogitsAt of the rows of these numbers (N,) alone, in their order."""
    if isinstance(logits_at, HeadOf):
        return logits_at._replace(states=logits_at.states[numbers])

    def of_rows(at: Tensor, rows: Tensor | None = None) -> Tensor:
        if rows is not None:
            return logits_at(at, numbers[rows])
        flat = numbers[:, None].expand_as(at).flatten()
        logits: Tensor = logits_at(at.flatten(), flat).unflatten(0, at.shape)
        return logits

    return of_rows


def masked_first(masked: Tensor) -> Tensor:
    """The places of the last axis in the order: masked ones, then the others.

    masked: (..., N) bool. Returns (..., N) places; each kind keeps its order. Where rows
    have different numbers of masks, the first M places hold all masks of every row: M is
    known without one wait for each row, and rows with fewer masks fill up with others.
    """
    return masked.logical_not().byte().argsort(dim=-1, stable=True)


def model_denoiser(
    model: LLaDA,
    head: Callable[[Tensor], Tensor] | None = None,
    *,
    shift: bool | None = None,
) -> Denoiser:
    """The plain denoiser: one forward of the whole canvas.

    The vocabulary's head works only where logits are asked for. head: hidden states
    (B, W, D) -> confidence (B, W), a policy stream in place of the model's own, if it
    has one. shift: do the model's logits predict the token to their right, as those of
    models that were made from autoregressive ones? (default: as the model's family)
    """
    shifted = FAMILIES[model.config.family].shift if shift is None else shift

    def denoise(canvas: Canvas, window: slice) -> Prediction:
        visible, positions = sight(canvas)
        # (B, L, D), and (B, L) or None; L of canvas.columns
        streams, own = model.streams(
            embeddable(canvas.tokens),
            visible,
            inputs_embeds=canvas.embeds,
            columns=canvas.columns,
            past=canvas.past,
            position_ids=positions,
        )
        first = 0
        if canvas.known is not None:
            streams, own = canvas.known.update(canvas.tokens, canvas.columns, streams, own)
        elif isinstance(canvas.columns, slice):
            first = canvas.columns.start or 0
        shown = slice(window.start - first, window.stop - first)
        hidden = streams[:, shown]  # (B, W, D)
        predicting = hidden
        if shifted and canvas.layout is not None:
            predicting = gather(streams, canvas.layout.before[:, shown])
        elif shifted:
            predicting = left_of(streams, shown)  # (B, W, D)

        logits_at = HeadOf(model.head, predicting)
        if head is not None:
            return Prediction(logits_at, head(hidden), shifted=shifted, model=model)
        score = None if own is None else own[:, shown]
        return Prediction(logits_at, score, own is not None, shifted, model)

    return denoise


class Sight(NamedTuple):
    """What the tokens of a canvas attend to, and where they stand."""

    visible: Tensor | None  # (B, L) bool, or (B, L, L) from each token to each; None: all
    positions: Tensor | None  # (B, L); None: their columns


def sight(canvas: Canvas) -> Sight:
    """What each token of a canvas sees; nobody but PADDING sees PADDING.

    PADDING itself must see something, or there would be nothing to divide its weights by.
    """
    if canvas.layout is not None:
        return Sight(canvas.layout.visible, canvas.layout.position_ids)
    if isinstance(canvas.past, Slots):  # which know it
        return Sight(None, None)
    real = canvas.tokens != PADDING if canvas.padded else None
    if canvas.blocks is None and (real is None or not canvas.own_positions):
        return Sight(real, None)
    num_rows, length = canvas.tokens.shape
    column = torch.arange(length, device=canvas.tokens.device)
    if canvas.blocks is None:
        return Sight(real, (column - num_left_of_row(canvas.tokens)[:, None]).clamp(min=0))
    earlier = block_causal(column[None], canvas.blocks)  # (1, L, L)
    if real is None:
        return Sight(earlier.expand(num_rows, -1, -1), None)
    visible = earlier & (real[:, None] | ~real[:, :, None])
    positions = column - num_left_of_row(canvas.tokens)[:, None]
    return Sight(visible, positions.masked_fill(~real, 0))


def num_left_of_row(tokens: Tensor) -> Tensor:
    """How many PADDING each row (B, L) has before its first token, (B,)."""
    return (tokens != PADDING).byte().argmax(-1)


def left_of(states: Tensor, window: slice) -> Tensor:
    """States (B, L, D) of the columns one to the left of a window, (B, W, D).

    Column 0 has nothing on its left and keeps its own, as in Dream's code.
    """
    if window.start > 0:
        return states[:, window.start - 1 : window.stop - 1]
    return torch.cat([states[:, :1], states[:, : window.stop - 1]], 1)


def log_total(logits: Tensor) -> Tensor:
    """Log of the summed exponentials of logits (..., V).

    On a CPU eight positions at a time: a temporary of all of 64 has to be cleared anew
    by the system every time, which takes longer than the sum (19.6 ms against 7.6 for
    126,464 tokens).
    """
    if logits.device.type != "cpu":
        return logits.logsumexp(-1)
    parts = logits.flatten(0, -2).split(8)
    return torch.cat([part.logsumexp(-1) for part in parts]).view(logits.shape[:-1])


def capacity(batch_size: int, batch_tokens: int | None = None) -> Callable[[int], int]:
    """A function from the tokens of a row to how many such rows make a batch.

    They are batch_size, or as many as fit into batch_tokens, padding included, and at
    least one.
    """

    def rows_at_once(longest: int) -> int:
        if batch_tokens is None:
            return batch_size
        return max(1, batch_tokens // longest)

    return rows_at_once
