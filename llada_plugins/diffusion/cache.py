"""Caches of keys and values as a Denoiser: most steps compute a few columns only.

Faster, and an approximation. Fast-dLLM (arXiv 2505.22618): the first step of a block is a
forward of the whole canvas, whose keys and values stand until the block is done. Nothing
outlives the block, because what is kept lives in the canvas's memory, which the sampler
makes anew for each; but for prompts, if so asked (kept_prompt.py).
"""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

from torch import Tensor

from llada_plugins.models.past import Past

from .denoiser import Canvas, Denoiser, Prediction
from .finished_prefix import DelayedPrefix, FinishedParts
from .kept_prompt import BlockPrompts, KeptPrompts, PromptRefresh
from .known_states import KnownStates, places_of
from .memory import Memory, Rows


class KeysAndValues:
    """Those of a block's last forward of the whole canvas, and the steps taken since."""

    def __init__(self) -> None:
        self.num_steps = 0  # of this block
        self.num_left = 0  # columns left of the window that its logits need
        self.past = Past()
        self.prompts: BlockPrompts | None = None  # that outlive the block

    def keep_rows(self, rows: Rows) -> None:
        """Forget all other rows."""
        self.past.keep_rows(rows.of)

    def take_over(self, prediction: Prediction, canvas: Canvas, left_neighbour: bool) -> None:
        """Note what a step has shown, and keep the prompts that it computed."""
        self.num_left = int(prediction.shifted and left_neighbour)
        if self.prompts is not None and self.prompts.due:
            self.prompts.kept.num_left = self.num_left
            self.prompts.keep(canvas.tokens, self.past)

    def refreshed(self) -> slice:
        """The columns of a refresh: all, or all but prompts that stand."""
        if self.prompts is None or self.prompts.due:
            return slice(None)
        return slice(self.prompts.first_column, None)


class StepRule(Protocol):
    """What a step of a block computes, and what it keeps."""

    @property
    def reads_known(self) -> bool:
        """Do rows compute different columns, so that states of the others must be known?"""
        ...

    def empty_past(self, canvas: Canvas) -> Past:
        """What a block's first step fills."""
        ...

    def columns(
        self, frozen: KeysAndValues, step: int, memory: Memory, canvas: Canvas, window: slice
    ) -> slice | Tensor:
        """The columns of a block's step of this number, from 0."""
        ...


def cached_by(
    denoise: Denoiser,
    rule: StepRule,
    *,
    left_neighbour: bool = True,
    prompts: PromptRefresh | None = None,
) -> Denoiser:
    """The denoiser, whose steps compute what the rule says; left_neighbour, prompts: see `cached`.

    Rows, guided branches and a bi-tower's streams each have keys and values of their own;
    routed embeddings are read as they are at every step.
    """

    def denoise_cached(canvas: Canvas, window: slice) -> Prediction:
        memory = canvas.memory
        if memory is None:
            return denoise(canvas, window)
        frozen = memory.of(KeysAndValues)
        step = frozen.num_steps
        frozen.num_steps += 1
        if step == 0:
            frozen.past = rule.empty_past(canvas)
        if prompts is not None and canvas.lasting is not None:
            canvas = canvas._replace(own_positions=True)
            if step == 0:
                _begin(frozen, canvas, window, prompts)
        if rule.reads_known:
            canvas = canvas._replace(known=memory.of(KnownStates))
        columns = rule.columns(frozen, step, memory, canvas, window)
        prediction = denoise(canvas._replace(columns=columns, past=frozen.past), window)
        frozen.take_over(prediction, canvas, left_neighbour)
        return prediction

    return denoise_cached


def cached(
    denoise: Denoiser,
    mode: Literal["prefix", "dual"],
    refresh: int | None = None,
    *,
    left_neighbour: bool = True,
    vicinity: int = 0,
    prompts: PromptRefresh | None = None,
    delayed: int | None = None,
    finished: DelayedPrefix | None = None,
) -> Denoiser:
    """The denoiser with frozen keys and values: before the window, or on both sides of it.

    mode: prefix freezes those before the window, dual those before and after it. refresh:
    every so many steps of a block, a forward of the whole canvas (default: at its first
    step alone; 1 is the plain denoiser). left_neighbour: where logits are shifted, compute
    the column left of the window at every step too; without it the window's first token
    must be known after the first one (Fast-dLLM's Dream). vicinity: so many columns on
    either side of the window are computed at every step too (dInfer). prompts: when a first
    step computes prompts; refreshes leave them out (default: all compute them). delayed: a
    mask id: of the columns that a step would compute, those are left out whose token is no
    mask and stood before the last step (dKV). finished: where the window spans several
    blocks, when those that are full are frozen (d3LLM).
    """
    rule = FrozenColumns(mode, refresh, vicinity, delayed, finished)
    return cached_by(denoise, rule, left_neighbour=left_neighbour, prompts=prompts)


class FrozenColumns(NamedTuple):
    """A StepRule: which columns a step computes, the same in every layer; see `cached`."""

    mode: Literal["prefix", "dual"]
    refresh: int | None
    vicinity: int
    delayed: int | None  # mask id
    finished: DelayedPrefix | None

    @property
    def reads_known(self) -> bool:
        """See StepRule."""
        return self.delayed is not None or self.finished is not None

    def empty_past(self, canvas: Canvas) -> Past:
        """See StepRule."""
        return Past()

    def columns(
        self, frozen: KeysAndValues, step: int, memory: Memory, canvas: Canvas, window: slice
    ) -> slice | Tensor:
        """Those of a block's step of this number, from 0."""
        work = None
        if self.finished is not None:  # whatever the step computes, blocks grow older
            parts = memory.of(FinishedParts)
            work = parts.work(canvas, window, self.finished, frozen.num_left)
        if step == 0 or (self.refresh is not None and step % self.refresh == 0):
            return frozen.refreshed()
        if work is not None:
            return places_of(work)
        end = window.stop + self.vicinity if self.mode == "dual" else None
        near = slice(max(0, window.start - max(frozen.num_left, self.vicinity)), end)
        if self.delayed is None:
            return near
        beside, shifted = self.vicinity > 0, frozen.num_left > 0
        states = memory.of(KnownStates)
        return states.in_work(canvas, near, window, self.delayed, beside=beside, shifted=shifted)


def _begin(frozen: KeysAndValues, canvas: Canvas, window: slice, rule: PromptRefresh) -> None:
    """Find what outlives the block, before its first step."""
    assert canvas.lasting is not None
    frozen.prompts = BlockPrompts(canvas.lasting.of(KeptPrompts), canvas, window, rule)
    if not frozen.prompts.due:
        frozen.prompts.load(frozen.past, canvas.tokens.shape[1])
        frozen.num_left = frozen.prompts.kept.num_left
