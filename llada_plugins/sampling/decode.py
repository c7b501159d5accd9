"""Prompts to answers, block by block: what a batch decodes next, and when an answer ends.

Nothing here makes tokens of masks: sampler.py does, or a Review that calls it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import repeat
from typing import Any

import torch

from llada_plugins.diffusion.batch_limit import BatchLimit, OutOfMemory, release_memory
from llada_plugins.diffusion.blocks import NOTHING, Blocks, Given
from llada_plugins.diffusion.denoiser import Denoiser
from llada_plugins.diffusion.memory import Lasting
from llada_plugins.diffusion.random_streams import request_key
from llada_plugins.models.special_tokens import SpecialTokens

from .answers import Answers, FillBlocks
from .batching import Queue, Refill, Waiting
from .config import SamplerConfig
from .draft import Draft, Filled, Review, Sample, unreviewed
from .step import Step


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
    in_step: bool | None = None,
    at_once: BatchLimit | None = None,
    given: Sequence[Given] | None = None,
) -> Iterator[tuple[int, Sample]]:
    """Decode block by block; yields the (number, sample) of each prompt as answers end.

    No answer depends on the others. keys: random streams, by default from config.seed and
    the prompt. stop: asked at the end of every block with the row's answer so far; True
    ends the row. review: how a block is filled. in_step: does it need all rows of a batch at
    the same block (default: every review but `unreviewed`)? Else blocks that are counted
    from rows' first tokens may differ.
    at_once: how many rows of so many tokens, prompt and answer, make a batch (default: all).
    A row that has ended leaves, and a waiting one takes its place (batching.py). A batch
    that memory is too small for waits again, and from then on batches are smaller: on_step
    may see some of its steps twice. given: of each row, what of its answer and after it
    stands and stays; infilling.py says which options that needs.
    """
    if given is None:  # else a row may begin with a span
        _check_prompts(prompts)
    device = torch.device(device)
    keys = keys or [request_key(config.seed, prompt) for prompt in prompts]
    answers = Answers(prompts, keys, device, given, special.mask)
    blocks, lasting = config.blocks, Lasting()

    def ended(answer: list[int]) -> bool:
        return len(answer) >= config.gen_length or is_stopped(answer, config, special, stop)

    def is_done(row: int) -> bool:
        filled = answers.num_filled[row] == blocks.number(len(prompts[row]))
        return filled or is_stopped(answers.tokens[row], config, special, stop)

    needs_step = review is not unreviewed if in_step is None else in_step
    queue, limit = _queue(prompts, blocks, needs_step, at_once, given)
    while queue:
        number, batch = queue.take()
        canvas = answers.lay_out(batch, blocks, special.mask)
        start = canvas.first - number * blocks.width
        fill = FillBlocks(denoise, config, special, start, canvas.padded, answers, lasting, on_step)
        draft = answers.draft(batch, number, canvas.tokens, fill, ended)
        longest = max(queue.lengths[row] for row in batch)
        cost = _reviewed(review, draft, limit, longest, lasting)
        done = []
        if cost is not None:
            end = answers.end_of(draft.blocks, blocks, start)
            answers.add(draft, cost, batch, canvas.answer_starts, end)
            done = [row for row in batch if is_done(row)]
        _put_back(queue, [row for row in batch if row not in done], answers)
        lasting.forget(done)
        yield from answers.samples(done, blocks, special.ends)


def _queue(
    prompts: Sequence[Sequence[int]],
    blocks: Blocks,
    in_step: bool,
    at_once: BatchLimit | None,
    given: Sequence[Given] | None,
) -> tuple[Waiting, BatchLimit]:
    """All rows, before their first blocks, and how many of them make a batch."""
    lengths = [
        blocks.row(len(prompt)) + blocks.columns_after(len(known.after))
        for prompt, known in zip(prompts, given or repeat(NOTHING))
    ]
    limit = at_once or BatchLimit(lambda longest: len(prompts))
    if blocks.from_row and not in_step:
        return Refill(lengths, limit), limit
    longest = max((blocks.number(len(prompt)) for prompt in prompts), default=1)
    return Queue(lengths, longest, limit), limit


def _put_back(queue: Waiting, rows: Sequence[int], answers: Answers) -> None:
    """These rows of a batch wait for their next blocks."""
    for row in reversed(rows):  # so that the first stays the first
        queue.put(answers.num_filled[row], [row])


def _check_prompts(prompts: Sequence[Sequence[int]]) -> None:
    for number, prompt in enumerate(prompts):
        if not len(prompt):
            raise ValueError(f"prompt {number} is empty: give at least one token")


def _reviewed(
    review: Review, draft: Draft, limit: BatchLimit, longest: int, lasting: Lasting
) -> Filled | None:
    """What filling the draft's block cost; None where memory is too small for its rows.

    longest: tokens of the longest row, prompt and answer. lasting: of the decode, which then
    gives memory back.
    """
    try:
        return review(draft)
    except OutOfMemory:
        limit.halve(len(draft.rows), longest)
    # not within `except`, where the error still holds the step's tensors
    lasting.release()
    release_memory()
    return None


def is_stopped(
    answer: list[int],
    config: SamplerConfig,
    special: SpecialTokens,
    stop: Callable[[list[int]], bool] | None,
) -> bool:
    """Does something end an answer that fills its blocks so far?"""
    # EOS of any block, since a review may write all of them
    if config.stops != "never" and any(token in special.ends for token in answer):
        return True
    return stop is not None and stop(answer)
