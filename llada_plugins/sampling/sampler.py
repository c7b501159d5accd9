"""Decode a masked-diffusion language model: one loop, three small choices (what to
trust, how many to keep, what may be revised).

Every published decoder here is a set of options of `SamplerConfig`, not another loop.
The sampler sees a Denoiser and token rows; it knows nothing of models, guidance,
caches, tokenizers or harnesses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from llada_plugins.diffusion.denoiser import Canvas, Denoiser, align
from llada_plugins.diffusion.memory import Memory
from llada_plugins.diffusion.random_streams import request_key
from llada_plugins.models.special_tokens import SpecialTokens

from .batching import Queue
from .config import SamplerConfig
from .propose import judge
from .unmask_schedule import keep, planned


class Step(NamedTuple):
    """What one step did, for observers: B rows, the W positions of the block."""

    block: int  # number of the block, from 0
    step: int  # number of the step in the block, from 0
    # (B,) which of the prompts; under a Review a prompt may come several times, once
    # for each candidate
    rows: Tensor
    # (B, W) proposed tokens; where nothing was proposed, the token that stands there
    proposal: Tensor
    score: Tensor  # (B, W) fp32; inf where a token is pinned
    kept: Tensor  # (B, W) bool: unmasked by this step
    remasked: Tensor  # (B, W) bool: masked again by this step


class Sample(NamedTuple):
    """A decoded answer."""

    answer: list[int]  # token ids without the prompt; gen_length of them unless stopped early
    # forward passes that worked on this row, candidates included; a guided pass counts
    # one
    num_forwards: int
    num_scored: int = 0  # answers in work that a Review had scored


class Draft(NamedTuple):
    """Rows in work whose block `number` is masked: blocks before it are filled, later
    ones masked, as far as they exist.
    """

    number: int
    tokens: Tensor  # (B, L); a Review writes here what it accepts
    rows: Tensor  # (B,) which of the prompts
    keys: Tensor  # (B,) random streams
    forwards: Tensor  # (B,) spent on earlier blocks
    num_scored: Tensor  # (B,) by a Review on earlier blocks
    start: int  # column of the first answer token
    # (tokens (N, L), rows (N,), keys (N,), blocks (a range), config, steps): `unmask`
    fill: Callable[..., Tensor]
    ended: Callable[[list[int]], bool]  # is an answer complete that fills its blocks so far?


class Filled(NamedTuple):
    """What filling a block has cost, by row."""

    forwards: Tensor  # (B,)
    num_scored: Tensor  # (B,)


class Review(Protocol):
    """Fill block `draft.number` of draft.tokens in place; may fill it several times,
    compare, and mask earlier blocks again.

    Later blocks stay masked. Deterministic, and a row's result does not depend on other
    rows: random numbers from draft.keys only.
    """

    def __call__(self, draft: Draft) -> Filled: ...


def once(draft: Draft) -> Filled:
    """The review that looks at nothing: plain decoding."""
    forwards = draft.fill(
        draft.tokens, draft.rows, draft.keys, range(draft.number, draft.number + 1)
    )
    return Filled(forwards, torch.zeros_like(forwards))


def unmask(
    denoise: Denoiser,
    canvas: Canvas,
    window: slice,
    keys: Tensor,
    config: SamplerConfig,
    special: SpecialTokens,
    *,
    offset: int = 0,
    steps: int | None = None,
    on_step: Callable[[int, Tensor, Tensor, Tensor, Tensor, Tensor], None] | None = None,
) -> Tensor:
    """Denoise canvas.tokens[:, window] in place until none of it is masked. Returns the
    forwards that each row needed, (B,).

    keys: (B,) random streams. offset: the window's first position in the answer. steps:
    of a fixed schedule, by default those of one block. on_step: called with the step's
    number, the rows in work, their proposal and score, and their block before and
    after.
    """
    # of these steps alone: what a cache keeps cannot outlive them
    whole, canvas = canvas.tokens, canvas._replace(memory=Memory())
    block = whole[:, window]  # (B, W), a view: writes go through
    masked = block == special.mask
    plan = planned(masked, config, steps)
    width, rows = block.shape[1], torch.arange(len(block), device=block.device)
    forwards = torch.zeros_like(rows)
    limit = config.forwards_per_block * (width // config.block) if plan is None else plan.shape[1]
    ahead = (
        [] if plan is None else _in_work(torch.cat([masked.sum(-1, keepdim=True), width - plan], 1))
    )
    for step in range(limit):
        masked = block == special.mask
        num_rows, num_masked = ahead[step] if ahead else _in_work(masked.sum(-1, keepdim=True))[0]
        if num_rows == 0:
            break
        if num_rows < len(rows):  # who is done rides no further
            whole[rows, window] = block.clone()  # both may be one memory
            going = masked.any(-1).logical_not().byte().argsort(stable=True)[:num_rows]
            canvas, rows, keys, masked = (
                canvas.keep_rows(going),
                rows[going],
                keys[going],
                masked[going],
            )
            block, plan = canvas.tokens[:, window], plan if plan is None else plan[going]
        forwards[rows] += 1
        # masked columns first, in order; a row with fewer of them fills up with pinned ones
        # (B, M)
        at = (
            masked.logical_not()
            .byte()
            .argsort(dim=-1, stable=True)[:, : width if config.revises else num_masked]
        )
        proposal, score = judge(
            denoise(canvas, window), at, block, keys, (offset, step), config, special
        )
        standing = keep(
            score, masked, None if plan is None else plan[:, step], step == limit - 1, config
        )
        before = block.clone() if on_step else block
        block.copy_(torch.where(standing, proposal, special.mask))
        if on_step:
            on_step(step, rows, proposal, score, before, block.clone())
    whole[rows, window] = block.clone()
    return forwards


def _in_work(left: Tensor) -> list[list[int]]:
    """How many rows have masks, and how many the fullest has, for every step, from the
    masks before each, (B, S). Waits for the device.
    """
    return torch.stack([(left > 0).sum(0), left.amax(0)], 1).tolist()


def decode(
    denoise: Denoiser,
    prompts: Sequence[Sequence[int]],
    config: SamplerConfig,
    special: SpecialTokens,
    **options: Any,
) -> list[Sample]:
    """Answers to token prompts of any lengths, in their order; options are those of
    `decode_each`.
    """
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
    review: Review = once,
    at_once: Callable[[int], int] | None = None,
) -> Iterator[tuple[int, Sample]]:
    """Decode block by block; yields the (number, sample) of each prompt as answers end.
    No answer depends on the others.

    keys: random streams, by default from config.seed and the prompt. stop: asked at the
    end of every block with the row's answer so far; True ends the row. review: how a
    block is filled. at_once: how many rows of so many tokens, prompt and answer, make a
    batch (default: all). A row that has ended leaves, and a waiting one takes its place
    (batching.py).
    """
    for number, prompt in enumerate(prompts):
        if not len(prompt):
            raise ValueError(f"prompt {number} is empty: give at least one token")
    device = torch.device(device)
    streams = torch.tensor(
        keys or [request_key(config.seed, prompt) for prompt in prompts],
        device=device,
        dtype=torch.long,
    )
    forwards, num_scored = torch.zeros(2, len(prompts), dtype=torch.long, device=device)
    answers: list[list[int]] = [[] for _ in prompts]

    def ended(answer: list[int]) -> bool:
        return len(answer) >= config.gen_length or _ended(answer, config, special, stop)

    lengths = [len(prompt) + config.decoded_length for prompt in prompts]
    queue = Queue(lengths, config.num_blocks, at_once)
    while queue:
        number, batch = queue.take()
        tokens, padded = align([[*prompts[row], *answers[row]] for row in batch], device)
        start, ahead = (
            tokens.shape[1] - number * config.block,
            1 if config.grows else config.num_blocks - number,
        )
        # (B, L)
        tokens = torch.cat(
            [tokens, tokens.new_full((len(batch), ahead * config.block), special.mask)], 1
        )
        rows = torch.tensor(batch, device=device)

        def fill(
            tokens: Tensor,
            rows: Tensor,
            keys: Tensor,
            blocks: range,
            config: SamplerConfig = config,
            steps: int | None = None,
        ) -> Tensor:
            canvas = Canvas(tokens, rows.new_full((len(rows),), start), padded)
            window = slice(start + blocks.start * config.block, start + blocks.stop * config.block)
            return unmask(
                denoise,
                canvas,
                window,
                keys,
                config,
                special,
                offset=blocks.start * config.block,
                steps=steps,
                on_step=_observer(on_step, blocks.start, rows, special.mask),
            )

        cost = review(
            Draft(
                number,
                tokens,
                rows,
                streams[rows],
                forwards[rows],
                num_scored[rows],
                start,
                fill,
                ended,
            )
        )
        forwards[rows] += cost.forwards
        num_scored[rows] += cost.num_scored
        done, more = [], []
        for row, answer in zip(
            batch, tokens[:, start : start + (number + 1) * config.block].tolist()
        ):
            answers[row] = answer
            (done if ended(answer) else more).append(row)
        if more:
            queue.put(number + 1, more)
        if done:
            at = torch.tensor(done, device=device)
            for row, *counts in zip(done, forwards[at].tolist(), num_scored[at].tolist()):
                yield row, Sample(answers[row][: config.gen_length], *counts)


def _ended(
    answer: list[int],
    config: SamplerConfig,
    special: SpecialTokens,
    stop: Callable[[list[int]], bool] | None,
) -> bool:
    # of any block: a review may write them
    if (config.early_stop or config.grows) and any(token in special.ends for token in answer):
        return True
    return stop is not None and stop(answer)


def _observer(
    on_step: Callable[[Step], None] | None, number: int, rows: Tensor, mask_id: int
) -> Callable[..., None] | None:
    if on_step is None:
        return None

    def observe(
        step: int, at: Tensor, proposal: Tensor, score: Tensor, before: Tensor, after: Tensor
    ) -> None:
        was, is_masked = before == mask_id, after == mask_id
        on_step(Step(number, step, rows[at], proposal, score, was & ~is_masked, ~was & is_masked))

    return observe
