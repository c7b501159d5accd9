"""The rows that the loop works on, and what is known of the steps that are left."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from llada_plugins.diffusion.denoiser import PADDING, Canvas
from llada_plugins.models.special_tokens import SpecialTokens

from .active import to_judge
from .config import SamplerConfig
from .decision import Before, Reasons
from .propose import ActiveBlock
from .several_blocks import BlocksInWork
from .step import Step
from .unmask_schedule import Plan


class RowsInWork(NamedTuple):
    """The N rows of a canvas whose window is not done, and what belongs to each."""

    canvas: Canvas
    window: slice
    numbers: Tensor  # (N,) of these rows among those at the start
    keys: Tensor  # (N,) random streams
    offsets: Tensor  # (N, 1) of the window's first column in the row's random streams
    starts: Tensor  # (N,) position in the answer of the window's first column
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
            self.starts[places],
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

    def as_step(
        self, number: int, policy: Tensor | None, reasons: Reasons, tokens: Tensor, mask: int
    ) -> Step:
        """What an observer sees of the step of this number.

        tokens: (N, W) that it left, in memory of their own. mask: the token's id.
        """
        return Step(
            block=0,
            step=number,
            rows=self.numbers,
            start=self.starts,
            places=self.numbers,
            proposal=reasons.proposal,
            score=reasons.score,
            policy=policy,
            masked=reasons.masked,
            replaced=reasons.replaced,
            tokens=tokens,
            mask=mask,
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
