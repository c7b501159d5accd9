"""How far the answers to a batch of prompts are: their rows, how blocks are filled, what it cost.

When an answer ends, and which rows are decoded next, is in decode.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from llada_plugins.diffusion.blocks import Blocks, Given, LaidOut, lay_out
from llada_plugins.diffusion.denoiser import PADDING, Canvas, Denoiser, num_left_of_row
from llada_plugins.diffusion.memory import Lasting
from llada_plugins.models.special_tokens import SpecialTokens

from .config import SamplerConfig
from .draft import Draft, Filled, Sample
from .sampler import unmask
from .step import Step


class FillBlocks(NamedTuple):
    """`Fill` for the drafts of one batch."""

    denoise: Denoiser
    config: SamplerConfig
    special: SpecialTokens
    start: int  # column at which block 0 of the answer begins
    padded: bool  # has any row PADDING?
    answers: Answers
    lasting: Lasting  # of all blocks of the decode
    on_step: Callable[[Step], None] | None

    def __call__(
        self,
        tokens: Tensor,
        rows: Tensor,
        keys: Tensor,
        blocks: range,
        config: SamplerConfig | None = None,
        steps: int | None = None,
    ) -> Tensor:
        """See `Fill`."""
        cut = self.config.blocks
        end = self.answers.end_of(blocks, cut, self.start)
        window = slice(self.start + blocks.start * cut.width, min(end, tokens.shape[1]))
        left = num_left_of_row(tokens)
        answer_start = left + self.answers.prompt_lengths[rows]
        canvas = Canvas(
            tokens,
            answer_start,
            self.padded,
            blocks=cut.width if cut.causal else None,
            ids=rows,
            lasting=self.lasting,
            given=self.answers.given_on(rows, answer_start, tokens.shape[1]),
        )
        unmasked = unmask(
            self.denoise,
            canvas,
            window,
            keys,
            config or self.config,
            self.special,
            offset=window.start - (left if cut.from_row else canvas.answer_start),
            steps=steps,
            on_step=self._observer(canvas, window, blocks.start),
        )
        self.answers.left[rows] = unmasked.left
        self.answers.branches.index_add_(0, rows, unmasked.branches)
        return unmasked.forwards

    def _observer(self, canvas: Canvas, window: slice, first: int) -> Callable[[Step], None] | None:
        """on_step with prompts in place of rows of the canvas, one block's rows at a time.

        first: number of the window's first block, if all rows have their blocks in one place.
        """
        on_step, rows = self.on_step, canvas.ids
        if on_step is None or rows is None:
            return None
        if not self.config.blocks.from_row:
            return _OfBlock(on_step, rows, first)
        # a block that holds the prompt's end begins before the answer
        numbers = -((canvas.answer_start - window.start) // self.config.block)
        found = numbers.unique().tolist()  # waits for the device, once for all steps
        if len(found) == 1:
            return _OfBlock(on_step, rows, found[0])

        def observe(step: Step) -> None:
            for number in numbers[step.rows].unique().tolist():
                places = (numbers[step.rows] == number).nonzero()[:, 0]
                of_block = step.keep_rows(places)
                on_step(of_block._replace(block=number, rows=rows[of_block.rows]))

        return observe


class _OfBlock:
    """An observer of steps of one block, which is told prompts in place of rows of a canvas."""

    def __init__(self, on_step: Callable[[Step], None], rows: Tensor, number: int) -> None:
        """rows: (B,) prompts. number: of the block."""
        self.on_step, self.rows, self.number = on_step, rows, number
        # of the last step, which the next one has in common with it unless rows have left
        self._seen = self._prompts = rows[:0]

    def __call__(self, step: Step) -> None:
        if step.rows is not self._seen:
            self._seen, self._prompts = step.rows, self.rows[step.rows]
        self.on_step(step._replace(block=self.number, rows=self._prompts))


class Answers:
    """How far the answer to each of P prompts is, and what it has cost."""

    def __init__(
        self,
        prompts: Sequence[Sequence[int]],
        keys: Sequence[int],
        device: torch.device,
        given: Sequence[Given] | None = None,
        mask_id: int = 0,
    ) -> None:
        self.prompts = prompts
        self.given = given
        self.is_given = None if given is None else _is_given(given, mask_id, device)
        self.keys = torch.tensor(keys, device=device, dtype=torch.long)  # (P,) random streams
        # (P,)
        self.prompt_lengths = torch.tensor([len(each) for each in prompts], device=device)
        self.tokens: list[list[int]] = [[] for _ in keys]  # of the blocks that are filled
        self.num_filled = [0] * len(keys)  # blocks
        # (P,) did an end token stop it inside a block?
        self.left = torch.zeros_like(self.keys, dtype=torch.bool)
        self.forwards = torch.zeros_like(self.keys)
        self.num_scored = torch.zeros_like(self.keys)
        self.branches = torch.zeros_like(self.keys)

    def lay_out(self, batch: Sequence[int], blocks: Blocks, mask_id: int) -> LaidOut:
        """The canvas on which these rows fill their next blocks."""
        return lay_out(
            blocks,
            [self.prompts[row] for row in batch],
            [self.tokens[row] for row in batch],
            [self.num_filled[row] for row in batch],
            mask_id,
            self.keys.device,
            None if self.given is None else [self.given[row] for row in batch],
        )

    def given_on(self, rows: Tensor, answer_start: Tensor, length: int) -> Tensor | None:
        """Which columns of a canvas hold tokens that were given, (B, L) bool; None: of no row any.

        answer_start: (B,) columns of the rows' first answer tokens.
        """
        if self.is_given is None:
            return None
        known = self.is_given[rows]  # (B, G)
        place = torch.arange(length, device=rows.device) - answer_start[:, None]  # (B, L)
        inside = (place >= 0) & (place < known.shape[1])
        return inside & known.gather(1, place.clamp(0, known.shape[1] - 1))

    def end_of(self, numbers: range, blocks: Blocks, start: int) -> int:
        """The column after the last of these blocks, in answers that begin in column `start`."""
        end = start + numbers.stop * blocks.width
        if self.given is None or blocks.grows:  # the canvas ends with the block
            return end
        # an answer's last block may be short, and something given follow it
        return min(end, start + blocks.length)

    def draft(
        self,
        batch: Sequence[int],
        number: int,
        tokens: Tensor,
        fill: FillBlocks,
        ended: Callable[[list[int]], bool],
    ) -> Draft:
        """These rows on their canvas, before block `number` and those beside it are filled."""
        rows = torch.tensor(batch, device=self.keys.device)
        blocks, lengths = fill.config.blocks, [len(self.prompts[row]) for row in batch]
        ends = [blocks.end(each, number) - blocks.before(each, 0) for each in lengths]
        return Draft(
            number,
            tokens,
            rows,
            self.keys[rows],
            self.forwards[rows],
            self.num_scored[rows],
            fill.start,
            [range(blocks.tail(each), end) for each, end in zip(lengths, ends)],
            [blocks.number(each) for each in lengths],
            range(number, number + fill.config.blocks_at_once),
            fill,
            ended,
        )

    def add(
        self, draft: Draft, cost: Filled, batch: Sequence[int], starts: Sequence[int], end: int
    ) -> None:
        """Take over what the draft holds of the batch's answers, its blocks included.

        starts: columns of their first tokens. end: column where its blocks end.
        """
        self.forwards[draft.rows] += cost.forwards
        self.num_scored[draft.rows] += cost.num_scored
        first = min(starts)
        for row, start, tokens in zip(batch, starts, draft.tokens[:, first:end].tolist()):
            answer = tokens[start - first :]
            self.tokens[row] = answer[: answer.index(PADDING)] if PADDING in answer else answer
            self.num_filled[row] += len(draft.blocks)

    def samples(
        self, rows: Sequence[int], blocks: Blocks, ends: Sequence[int]
    ) -> list[tuple[int, Sample]]:
        """The finished answers of these rows, cut as `blocks` says, or after what ended them."""
        if not rows:
            return []
        numbers = torch.tensor(rows, device=self.keys.device)
        of_rows = (self.forwards, self.num_scored, self.branches, self.left)
        costs = zip(*(each[numbers].tolist() for each in of_rows))
        found = []
        for row, (num_forwards, num_scored, num_branches, left) in zip(rows, costs):
            answer = self.tokens[row]
            cut = blocks.answer(len(self.prompts[row]))
            if left:  # what stands after that, perhaps behind masks, was not finished
                cut = min(place for place, token in enumerate(answer) if token in ends) + 1
            found.append((row, Sample(answer[:cut], num_forwards, num_scored, num_branches)))
        return found


def _is_given(given: Sequence[Given], mask_id: int, device: torch.device) -> Tensor:
    """Which tokens from each row's answer on are given, (P, G) bool; False where it has ended."""
    flags = [
        [*(token != mask_id for token in each.answer), *(True for _ in each.after)]
        for each in given
    ]
    longest = max(map(len, flags), default=1)
    filled = [each + [False] * (longest - len(each)) for each in flags]
    return torch.tensor(filled, dtype=torch.bool, device=device)
