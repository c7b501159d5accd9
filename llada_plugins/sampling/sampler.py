"""Decode a masked-diffusion language model: the one loop in which masks become tokens.

Every published decoder here is a set of options of `SamplerConfig`, not another loop:
what to trust, how many tokens to keep, which may be revised. The sampler sees a Denoiser
and token rows; it knows nothing of models, guidance, caches, tokenizers or harnesses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from llada_plugins.diffusion.denoiser import PADDING, Canvas, Denoiser, Prediction, masked_first
from llada_plugins.diffusion.memory import Memory
from llada_plugins.models.special_tokens import SpecialTokens

from .active import to_judge
from .branches import Branching
from .config import SamplerConfig
from .decision import Before, Decide, Decision, Reasons, ends_in
from .propose import ActiveBlock, draws_of_confidence
from .several_blocks import BlocksInWork
from .speculation import Speculating
from .unmask_schedule import Plan, plan_block


class Step(NamedTuple):
    """What one step did, for observers: B rows, the W positions of the block.

    rows: which of the prompts; under a Review a prompt may come several times, once for
    each candidate, which `places` tells apart. proposal: where nothing was proposed, the
    token that stands there.
    """

    block: int  # number of the block, from 0
    step: int  # number of the step in the block, from 0
    rows: Tensor  # (B,)
    # (B,) position in the answer of the block's first column; negative where the prompt's
    # end lies in the block
    start: Tensor
    places: Tensor  # (B,) rows of the canvas, the same in all steps that fill it
    proposal: Tensor  # (B, W) tokens
    score: Tensor  # (B, W) fp32; inf where a token is pinned
    policy: Tensor | None  # (B, W) score h of a policy stream, if the model has one
    masked: Tensor  # (B, W) bool: masked before this step
    kept: Tensor  # (B, W) bool: unmasked by this step
    remasked: Tensor  # (B, W) bool: masked again by this step
    replaced: Tensor  # (B, W) bool: visible, and replaced by the proposal

    def keep_rows(self, places: Tensor) -> Step:
        """The rows at these places alone."""
        of_rows: dict[str, Any] = {
            name: value[places] for name, value in self._asdict().items() if torch.is_tensor(value)
        }
        return self._replace(**of_rows)


class Unmasked(NamedTuple):
    """What became of B rows whose window was to be filled."""

    forwards: Tensor  # (B,) that each needed
    branches: Tensor  # (B,) further rows that each had in them
    left: Tensor  # (B,) bool: did an end token end the row, whatever is masked after it?


class RowsInWork(NamedTuple):
    """The N rows of a canvas whose window is not done, and what belongs to each."""

    canvas: Canvas
    window: slice
    numbers: Tensor  # (N,) of these rows among those at the start
    keys: Tensor  # (N,) random streams
    offsets: Tensor  # (N, 1) of the window's first column in the row's random streams
    post_steps: Tensor  # (N,) forwards that are left to a row without masks
    steps: Tensor  # (S,) numbers from 0: values of the device, for there they are put to use
    plan: Plan | None  # what is known of its steps
    blocks: BlocksInWork | None  # where the window spans several of them
    # (N, W) bool: what the last step kept, where rows branch; then numbers repeat
    kept: Tensor | None

    @property
    def block(self) -> Tensor:
        """The window's tokens (N, W), a view: what is written here, the canvas holds."""
        return self.canvas.tokens[:, self.window]

    def keep_rows(self, places: Tensor) -> RowsInWork:
        """The rows at these places alone."""
        return RowsInWork(
            self.canvas.keep_rows(places),
            self.window,
            self.numbers[places],
            self.keys[places],
            self.offsets[places],
            self.post_steps[places],
            self.steps,
            None if self.plan is None else self.plan.keep_rows(places),
            None if self.blocks is None else self.blocks.keep_rows(places),
            None if self.kept is None else self.kept[places],
        )

    def before_step(self, mask: int) -> RowsInWork:
        """The same before the next step. mask: the token's id."""
        if self.blocks is None:
            return self
        return self._replace(blocks=self.blocks.before_step(self.block == mask))

    def number_of(self, step: int) -> Tensor:
        """The schedule's number of the step, (N, 1).

        Where a window spans several blocks, of each column (N, W) that of its block.
        """
        if self.blocks is not None:
            return self.blocks.columns(self.blocks.age, self.block.shape[1])
        if self.plan is None or self.plan.numbers is None:
            return self.steps[step].expand(len(self.numbers), 1)
        return self.plan.numbers[:, step, None]

    def standing_after(self, step: int) -> Tensor | None:
        """Tokens that stand after the step, (N,), if a plan says so."""
        if self.plan is None:
            return None
        return self.plan.standing[:, min(step, self.plan.standing.shape[1] - 1)]

    @property
    def fixed(self) -> Tensor:
        """Which of the block's columns hold no token of the answer, (N, W): they stay."""
        column = torch.arange(self.window.start, self.window.stop, device=self.keys.device)
        fixed = (column < self.canvas.answer_start[:, None]) | (self.block == PADDING)
        given = self.canvas.given
        return fixed if given is None else fixed | given[:, self.window]

    def rows_of_each(self, num_rows: int) -> Tensor:
        """How many of these rows have each number below num_rows, (num_rows,)."""
        nothing = torch.zeros(num_rows, dtype=torch.long, device=self.numbers.device)
        return nothing.index_add_(0, self.numbers, torch.ones_like(self.numbers))

    def before(self, number: int, config: SamplerConfig) -> Before:
        """The block before the step of this number."""
        return Before(
            ActiveBlock(self.block, self.keys, self.offsets, self.number_of(number)),
            self.standing_after(number),
            self.fixed if config.revises or config.fills_after_end else None,
            self.blocks,
        )

    def as_step(self, number: int, policy: Tensor | None, reasons: Reasons, mask: int) -> Step:
        """What an observer sees of the step of this number, after it. mask: the token's id."""
        masked, is_masked = reasons.masked, self.block == mask
        return Step(
            block=0,
            step=number,
            rows=self.numbers,
            start=self.window.start - self.canvas.answer_start,
            places=self.numbers,
            proposal=reasons.proposal,
            score=reasons.score,
            policy=policy,
            masked=masked,
            kept=masked & ~is_masked,
            remasked=~masked & is_masked,
            replaced=reasons.replaced,
        )

    def unfinished(self, left: Tensor, mask: int) -> Tensor:
        """Which rows need further steps, (N,) bool. left: (B,) of all rows, see Unmasked."""
        masked = self.block == mask
        return (masked.any(-1) | (self.post_steps > 0)) & ~left[self.numbers]

    def write_back(self, tokens: Tensor, forwards: Tensor, num_steps: int) -> None:
        """Put what so many steps have made of the rows where all (B, L) and (B,) are."""
        tokens[self.numbers, self.window] = self.block.clone()  # both may be one memory
        forwards[self.numbers] = num_steps


class WorkLeft(NamedTuple):
    """What is left to do before a step."""

    num_rows: int  # how many rows are in work
    most: int  # how many columns the row with most of them has judged


def work_left(in_work: Tensor, num_judged: Tensor) -> list[WorkLeft]:
    """What is left before each of S steps, from rows' states before each, (B, S).

    Waits for the device, one time for all steps.
    """
    num_rows, most = in_work.sum(0), num_judged.amax(0)
    return [WorkLeft(*each) for each in torch.stack([num_rows, most], 1).tolist()]


def work_left_now(
    work: RowsInWork, left: Tensor, special: SpecialTokens, config: SamplerConfig
) -> WorkLeft:
    """What is left before the step that comes next. Waits for the device."""
    judged = to_judge(work.block == special.mask, config, work.blocks)
    unfinished = work.unfinished(left, special.mask)
    [found] = work_left(unfinished[:, None], judged.sum(-1, keepdim=True))
    return found


class Foreseen(NamedTuple):
    """How far the steps of a window are known before the first."""

    num_steps: int  # at most
    left: list[WorkLeft] | None  # before each; None: rows must be looked at


def foresee(masked: Tensor, plan: Plan | None, config: SamplerConfig) -> Foreseen:
    """What is known of a window whose tokens are masked (B, W) so far."""
    width = masked.shape[1]
    if plan is None or config.adaptive:
        num_blocks = -(-width // config.block)  # rounded up: the last may be short
        return Foreseen(config.forwards_per_block * num_blocks, None)
    if config.leaves:
        return Foreseen(plan.standing.shape[1], None)
    left_after = width - plan.standing
    num_masked = torch.cat([masked.sum(-1, keepdim=True), left_after], 1)
    num_judged = torch.full_like(num_masked, width) if config.revises else num_masked
    return Foreseen(left_after.shape[1], work_left(num_masked > 0, num_judged))


def unmask(
    denoise: Denoiser,
    canvas: Canvas,
    window: slice,
    keys: Tensor,
    config: SamplerConfig,
    special: SpecialTokens,
    *,
    offset: int | Tensor = 0,
    steps: int | None = None,
    on_step: Callable[[Step], None] | None = None,
) -> Unmasked:
    """Denoise canvas.tokens[:, window] in place until none of it is masked.

    keys: (B,) random streams. offset: the window's first position among those that the
    streams count, of all rows or (B,). steps: of a fixed schedule, by default those of one
    block. on_step: sees every step; its rows are numbers of canvas rows, its block is 0.
    """
    tokens = canvas.tokens
    work, foreseen = begin(canvas, window, keys, offset, steps, config, special)
    nothing = torch.zeros_like(work.numbers)
    result = Unmasked(nothing, nothing.clone(), nothing.bool())
    stepper: Deciding | Branching | Speculating
    if config.branches is not None:
        stepper = Branching(config, special, on_step, result.branches)
    elif config.draft_rows is not None:
        stepper = Speculating(config, special, on_step, result.branches)
    else:
        stepper = Deciding(config, special, on_step, result.left)
    num_steps = foreseen.num_steps
    for step in range(num_steps):
        work = work.before_step(special.mask)
        if foreseen.left is None:
            left = work_left_now(work, result.left, special, config)
        else:
            left = foreseen.left[step]
        if left.num_rows == 0:
            num_steps = step
            break
        if left.num_rows < len(work.numbers):  # rows that are done cost no further forwards
            work.write_back(tokens, result.forwards, step)
            unfinished = work.unfinished(result.left, special.mask)
            work = work.keep_rows(masked_first(unfinished)[: left.num_rows])
        prediction = denoise(work.canvas, work.window)
        last = config.adaptive and step == foreseen.num_steps - 1
        work = stepper.take_step(prediction, work, step, left.most, last=last)
    stepper.tell()
    work.write_back(tokens, result.forwards, num_steps)
    return result


def begin(
    canvas: Canvas,
    window: slice,
    keys: Tensor,
    offset: int | Tensor,
    steps: int | None,
    config: SamplerConfig,
    special: SpecialTokens,
) -> tuple[RowsInWork, Foreseen]:
    """All rows of a canvas before the first step of a window, and what is known of its steps."""
    device, num_rows = canvas.tokens.device, len(canvas.tokens)
    masked = canvas.tokens[:, window] == special.mask  # (B, W)
    offsets = torch.as_tensor(offset, device=device).expand(num_rows)[:, None]
    draws = draws_of_confidence(keys, offsets, masked.shape[1])
    given = None if canvas.given is None else canvas.given[:, window].sum(-1)
    plan = plan_block(masked, config, steps, draws, given)
    foreseen = foresee(masked, plan, config)
    numbers = torch.arange(num_rows, device=device)
    work = RowsInWork(
        # a memory for these steps alone: what a cache keeps must not outlive them
        canvas._replace(memory=Memory()),
        window,
        numbers,
        keys,
        offsets,
        numbers.new_full((num_rows,), config.post_steps),
        torch.arange(foreseen.num_steps, device=device),
        plan,
        BlocksInWork.of(masked, config) if config.blocks_at_once > 1 else None,
        None if config.branches is None else torch.zeros_like(masked),
    )
    return work, foreseen


class Deciding:
    """Steps of which one set of tokens goes on; on_step sees each right after it.

    left: (B,) of all rows, see Unmasked; it is kept up to date.
    """

    def __init__(
        self,
        config: SamplerConfig,
        special: SpecialTokens,
        on_step: Callable[[Step], None] | None,
        left: Tensor,
    ) -> None:
        self.config, self.special, self.on_step, self.left = config, special, on_step, left

    def take_step(
        self, prediction: Prediction, work: RowsInWork, number: int, num_columns: int, *, last: bool
    ) -> RowsInWork:
        """What a forward of the rows in work changes in their block, in place.

        number: of the step. num_columns: of the block that are judged, at most. last: no
        forward is left.
        """
        config = self.config
        decide = Decide(
            config,
            self.special,
            config.at_least_in(number),
            last=last,
            opens=config.opens_with_one and number == 0,
            explains=config.leaves or config.edits or self.on_step is not None,
        )
        before = work.before(number, config)
        decision: Decision
        if decide.waits:
            decision = decide(prediction, before, num_columns)
        else:
            decision = prediction.decide(decide, before, num_columns, work.block.shape[1])
        reasons = decision.reasons
        work.block.copy_(decision.tokens)
        if reasons is not None:
            self._follow(work, number, prediction.confidence, reasons)
        return work

    def _follow(
        self, work: RowsInWork, number: int, policy: Tensor | None, reasons: Reasons
    ) -> None:
        """Note and show what a step has done."""
        if self.config.edits:
            left = post_steps_left(work.post_steps, reasons.masked, reasons.replaced)
            work.post_steps.copy_(left)
        if self.config.leaves:
            self.left[work.numbers] = has_left(work, reasons.masked, self.special, self.config)
        if self.on_step is not None:
            self.on_step(work.as_step(number, policy, reasons, self.special.mask))

    def tell(self) -> None:
        """Every step has been shown."""


def post_steps_left(before: Tensor, masked: Tensor, replaced: Tensor) -> Tensor:
    """Forwards (B,) that are left to rows without masks; none after one that replaces nothing.

    before: (B,). masked, replaced: (B, W) by the step.
    """
    after_last_mask = ~masked.any(-1)
    left = (before - 1).masked_fill(~replaced.any(-1), 0)
    return torch.where(after_last_mask, left, before)


def has_left(
    work: RowsInWork, masked: Tensor, special: SpecialTokens, config: SamplerConfig
) -> Tensor:
    """Which rows (N,) a step has ended: an end token stands and nothing before it is masked.

    Under stop_at=new_eos the step must have written one. masked: (N, W) before it.
    """
    is_end = ends_in(work.block, special) & ~work.fixed
    after_mask = (work.block == special.mask).cumsum(-1) > 0
    left = (is_end & ~after_mask).any(-1)
    if config.stops == "new_eos":
        left &= (is_end & masked).any(-1)
    return left
