"""Steps that are done for their memory alone: the most that decoding or scoring takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from llada_plugins.diffusion.denoiser import PADDING, Canvas, Denoiser, log_total
from llada_plugins.diffusion.memory import Lasting, Memory
from llada_plugins.likelihood.requests import requests
from llada_plugins.likelihood.rows import RowRunner
from llada_plugins.methods.prepared import Prepared
from llada_plugins.models.special_tokens import SpecialTokens
from llada_plugins.sampling.config import SamplerConfig
from llada_plugins.sampling.generate import with_options
from llada_plugins.sampling.propose import ActiveBlock, proposals_at

from .batches import Probe
from .request import Group

TOKEN = 0  # any id but the mask's


def decoding_probe(
    prepared: Prepared, group: Group, special: SpecialTokens, device: torch.device
) -> Probe:
    """A step of the group's longest requests, of all versions at once that it or a review tries."""
    versions = group.sampler.rows_of_each
    if prepared.judge is not None:
        review = prepared.judge.review
        # the first candidate is finished when the others are tried
        versions = max(1, review.candidates - 1, review.refills)
    step = decoding_step(
        prepared.denoise, group.sampler, special, group.longest, device, versions=versions
    )
    return Probe(step, group.longest)


def scoring_probe(runner: RowRunner, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Probe:
    """A forward of rows as long as the longest pair, with the longest answer masked."""
    columns = max(len(context) + len(answer) for context, answer in pairs)
    answer = max(len(answer) for _, answer in pairs)
    return Probe(scoring_step(runner, columns - answer, answer), runner.columns(columns))


def decoding_step(
    denoise: Denoiser,
    sampler: SamplerConfig,
    special: SpecialTokens,
    columns: int,
    device: torch.device,
    versions: int = 1,
) -> Callable[[int], None]:
    """The first step of a block, for so many requests of `columns` tokens.

    It computes every column and proposes a token for every position of the block. denoise:
    gets the sampler's options, so that a cache keeps what it keeps and guidance doubles the
    rows; anew for each step, so that nothing is kept from one to the next. versions: rows
    of one request, which are compared; a cache may keep once what they share.
    """
    blocks = sampler.blocks
    if blocks.causal:  # the canvas is whole blocks, and ends with the one in work
        columns = -(-columns // blocks.width) * blocks.width
        start = columns - blocks.width
    else:
        start = columns - sampler.decoded_length
    window = slice(start, start + sampler.block)
    denoise = with_options(denoise, sampler, special)

    def step(num_requests: int) -> None:
        ids = torch.arange(num_requests, device=device).repeat_interleave(versions)  # (B,)
        tokens = torch.full((len(ids), columns), special.mask, device=device)  # (B, L)
        tokens[:, :start] = TOKEN
        tokens[:versions, 0] = PADDING  # prompts of a batch seldom have one length
        answer_start = torch.full_like(ids, start)
        causal = blocks.width if blocks.causal else None
        canvas = Canvas(
            tokens, answer_start, memory=Memory(), blocks=causal, ids=ids, lasting=Lasting()
        )
        prediction = denoise(canvas, window)
        block = ActiveBlock(tokens[:, window], torch.zeros_like(answer_start), 0, 0)
        every = torch.arange(sampler.block, device=device).expand(len(ids), -1)  # (B, W)
        proposals_at(prediction, every, block, sampler, special)

    return step


def scoring_step(runner: RowRunner, prompt: int, answer: int) -> Callable[[int], None]:
    """A forward that scores wholly masked answers; prompt, answer: their tokens.

    Of a block-causal model with as many masked copies as share a row.
    """
    (request,) = requests([([TOKEN] * prompt, [TOKEN] * answer)], 0, runner.block_length)
    sheet = [
        runner.masked_row(request, part, [True] * len(part.answer), list(range(len(part.answer))))
        for part in request.parts
    ]
    if runner.block_length is not None:
        sheet *= max(1, request.length // sum(len(row.tokens) for row in sheet))

    def step(num_rows: int) -> None:
        log_total(runner.logits([sheet] * num_rows).logits)

    return step
