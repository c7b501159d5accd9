"""Prompts to answers, block by block: what a batch decodes next, and when an answer ends.

Nothing here makes tokens of masks: sampler.py does, or a Review that calls it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from llada_plugins.diffusion.batch_limit import BatchLimit, OutOfMemory, release_memory
from llada_plugins.diffusion.denoiser import Canvas, Denoiser, align
from llada_plugins.diffusion.random_streams import request_key
from llada_plugins.models.special_tokens import SpecialTokens

from .batching import Queue
from .config import SamplerConfig
from .sampler import Step, unmask


class Sample(NamedTuple):
    """A decoded answer.

    num_forwards: forward passes that worked on this row, candidates included; a guided
    pass counts one.
    """

    answer: list[int]  # token ids without the prompt; gen_length of them unless stopped early
    num_forwards: int
    num_scored: int = 0  # unfinished answers that a Review had scored


class Fill(Protocol):
    """Unmask `blocks` of tokens (N, L) in place; returns the forwards of each row, (N,).

    rows: (N,) which of the prompts. keys: (N,) random streams. blocks: neighbours, filled
    together. config: default that of the answer. steps: of a fixed schedule, default
    those of one block.
    """

    def __call__(
        self,
        tokens: Tensor,
        rows: Tensor,
        keys: Tensor,
        blocks: range,
        config: SamplerConfig | None = None,
        steps: int | None = None,
    ) -> Tensor: ...


class Draft(NamedTuple):
    """A batch of unfinished answers whose block `number` is to be filled.

    Blocks before it are filled, later ones masked, as far as they exist.
    """

    number: int
    tokens: Tensor  # (B, L); a Review writes here what it accepts
    rows: Tensor  # (B,) which of the prompts
    keys: Tensor  # (B,) random streams
    forwards: Tensor  # (B,) spent on earlier blocks
    num_scored: Tensor  # (B,) by a Review on earlier blocks
    start: int  # column of the first answer token
    fill: Fill
    ended: Callable[[list[int]], bool]  # is an answer complete that fills its blocks so far?


class Filled(NamedTuple):
    """What filling a block has cost, by row."""

    forwards: Tensor  # (B,)
    num_scored: Tensor  # (B,)
    # (B,) tokens that the review masked again before it filled; None: it masks none
    num_revised: Tensor | None = None


class Review(Protocol):
    """Fill block `draft.number` of draft.tokens in place.

    It may fill it several times, compare, and mask earlier blocks again. Later blocks
    stay masked. Deterministic, and a row's result does not depend on other rows: random
    numbers from draft.keys only.
    """

    def __call__(self, draft: Draft) -> Filled: ...


def unreviewed(draft: Draft) -> Filled:
    """The review that looks at nothing: plain decoding."""
    block = range(draft.number, draft.number + 1)
    forwards = draft.fill(draft.tokens, draft.rows, draft.keys, block)
    return Filled(forwards, torch.zeros_like(forwards))


class FillBlocks(NamedTuple):
    """`Fill` for the drafts of one batch."""

    denoise: Denoiser
    config: SamplerConfig
    special: SpecialTokens
    start: int  # column of the first answer token
    padded: bool  # has any row PADDING?
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
        width = self.config.block
        return unmask(
            self.denoise,
            Canvas(tokens, rows.new_full((len(rows),), self.start), self.padded),
            slice(
                self.start + blocks.start * width,
                min(self.start + blocks.stop * width, tokens.shape[1]),  # a last block may be short
            ),
            keys,
            config or self.config,
            self.special,
            offset=blocks.start * width,
            steps=steps,
            on_step=self._observer(rows),
        )

    def _observer(self, rows: Tensor) -> Callable[[Step], None] | None:
        """on_step with prompts in place of rows of the canvas."""
        on_step = self.on_step
        if on_step is None:
            return None
        return lambda step: on_step(step._replace(rows=rows[step.rows]))


class Answers:
    """How far the answer to each of P prompts is, and what it has cost."""

    def __init__(self, keys: Sequence[int], device: torch.device) -> None:
        self.keys = torch.tensor(keys, device=device, dtype=torch.long)  # (P,) random streams
        self.tokens: list[list[int]] = [[] for _ in keys]  # of the blocks that are filled
        self.forwards = torch.zeros_like(self.keys)
        self.num_scored = torch.zeros_like(self.keys)

    def add(self, draft: Draft, cost: Filled, batch: Sequence[int], width: int) -> None:
        """Take over what the draft holds of the batch's answers, its block included."""
        self.forwards[draft.rows] += cost.forwards
        self.num_scored[draft.rows] += cost.num_scored
        columns = slice(draft.start, draft.start + (draft.number + 1) * width)
        for row, answer in zip(batch, draft.tokens[:, columns].tolist()):
            self.tokens[row] = answer

    def samples(self, rows: Sequence[int], length: int) -> list[tuple[int, Sample]]:
        """The finished answers of these rows, cut to this length."""
        if not rows:
            return []
        numbers = torch.tensor(rows, device=self.keys.device)
        costs = zip(self.forwards[numbers].tolist(), self.num_scored[numbers].tolist())
        return [
            (row, Sample(self.tokens[row][:length], num_forwards, num_scored))
            for row, (num_forwards, num_scored) in zip(rows, costs)
        ]


def decode(
    denoise: Denoiser,
    prompts: Sequence[Sequence[int]],
    config: SamplerConfig,
    special: SpecialTokens,
    **options: Any,
) -> list[Sample]:
    """Answers to token prompts of any lengths, in their order; options as of `decode_each`."""
    found = dict(decode_each(denoise, prompts, config, special, **options))
    return [found[number] for number in range(len(prompts))]


@torch.inference_mode()
def decode_each(
    denoise: Denoiser,
    prompts: Sequence[Sequence[int]],
    config: SamplerConfig,
    special: SpecialTokens,
    *,
    device: torch.device | str = "cpu",
    keys: Sequence[int] | None = None,
    stop: Callable[[list[int]], bool] | None = None,
    on_step: Callable[[Step], None] | None = None,
    review: Review = unreviewed,
    at_once: BatchLimit | None = None,
) -> Iterator[tuple[int, Sample]]:
    """Decode block by block; yields the (number, sample) of each prompt as answers end.

    No answer depends on the others. keys: random streams, by default from config.seed and
    the prompt. stop: asked at the end of every block with the row's answer so far; True
    ends the row. review: how a block is filled. at_once: how many rows of so many tokens,
    prompt and answer, make a batch (default: all). A row that has ended leaves, and a
    waiting one takes its place (batching.py). A batch that memory is too small for waits
    again, and from then on batches are smaller: on_step may see some of its steps twice.
    """
    _check_prompts(prompts)
    device = torch.device(device)
    keys = keys or [request_key(config.seed, prompt) for prompt in prompts]
    answers = Answers(keys, device)

    def ended(answer: list[int]) -> bool:
        return is_ended(answer, config, special, stop)

    lengths = [len(prompt) + config.decoded_length for prompt in prompts]
    limit = at_once or BatchLimit(lambda longest: len(prompts))
    queue = Queue(lengths, config.num_blocks, limit)
    while queue:
        number, batch = queue.take()
        filled, padded = align([[*prompts[row], *answers.tokens[row]] for row in batch], device)
        start = filled.shape[1] - number * config.block
        masks = filled.new_full((len(batch), config.num_masks_at(number)), special.mask)
        rows = torch.tensor(batch, device=device)
        draft = Draft(
            number,
            torch.cat([filled, masks], 1),  # (B, L)
            rows,
            answers.keys[rows],
            answers.forwards[rows],
            answers.num_scored[rows],
            start,
            FillBlocks(denoise, config, special, start, padded, on_step),
            ended,
        )
        cost = _reviewed(review, draft, limit, lengths[batch[0]])
        if cost is None:
            queue.put(number, batch)
            continue
        answers.add(draft, cost, batch, config.block)
        done = [row for row in batch if ended(answers.tokens[row])]
        waiting = [row for row in batch if row not in done]
        if waiting:
            queue.put(number + 1, waiting)
        yield from answers.samples(done, config.gen_length)


def _check_prompts(prompts: Sequence[Sequence[int]]) -> None:
    for number, prompt in enumerate(prompts):
        if not len(prompt):
            raise ValueError(f"prompt {number} is empty: give at least one token")


def _reviewed(review: Review, draft: Draft, limit: BatchLimit, longest: int) -> Filled | None:
    """What filling the draft's block cost; None where memory is too small for its rows.

    longest: tokens of the longest row, prompt and answer.
    """
    try:
        return review(draft)
    except OutOfMemory:
        limit.halve(len(draft.rows), longest)
    release_memory()  # not within `except`, where the error still holds the step's tensors
    return None


def is_ended(
    answer: list[int],
    config: SamplerConfig,
    special: SpecialTokens,
    stop: Callable[[list[int]], bool] | None,
) -> bool:
    """Is an answer complete that fills its blocks so far?"""
    if len(answer) >= config.gen_length:
        return True
    # EOS of any block, since a review may write all of them
    may_end = config.early_stop or config.grows
    if may_end and any(token in special.ends for token in answer):
        return True
    return stop is not None and stop(answer)
