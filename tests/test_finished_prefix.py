"""The cache of multi-block decoding, against its definition computed slowly, row by row."""

from __future__ import annotations

import pytest
import torch

from llada_plugins.diffusion.denoiser import Canvas, Denoiser, Prediction
from llada_plugins.diffusion.memory import Rows
from llada_plugins.models.block import Block
from llada_plugins.models.llada import LLaDA
from llada_plugins.sampling.config import SamplerConfig
from llada_plugins.sampling.decode import decode
from llada_plugins.sampling.generate import with_options
from tests.test_cache import MASK, PROMPTS, SPECIAL, hooked, run, subject, with_head

__all__ = ["subject"]  # a fixture
pytestmark = pytest.mark.floats

WIDTH = 4
SEVERAL = dict(
    gen_length=12,
    block_length=WIDTH,
    threshold_entropy=3.0,
    block_add_threshold=0.25,
    cache="prefix",
)


class History:
    """Of each row, the answers that its forwards found, and of each layer what it read."""

    def __init__(self) -> None:
        self.found: list[list[list[int]]] = []
        self.by_block: dict[Block, torch.Tensor] = {}

    def keep_rows(self, rows: Rows) -> None:
        places = rows.of(torch.arange(len(self.found))).tolist()
        self.found = [self.found[place] for place in places]
        self.by_block = {block: rows.of(values) for block, values in self.by_block.items()}


def first_column(found: list[list[int]], delay: int, start: int) -> int:
    """From where a row's forward computes, by all that its forwards found (the last: now).

    Forwards have numbers from 1. A part that forward n was the first to find full is frozen
    as of forward n + delay, the prompt (n = 0) as of its first or forward `delay`; parts on
    its left come first. While the next full part waits, everything is computed.
    """
    now, ends = len(found), [start, *range(start + WIDTH, start + len(found[0]) + 1, WIDTH)]
    first_full: list[int | None] = [0]
    for first in range(0, len(found[0]), WIDTH):
        full = [
            number
            for number, answer in enumerate(found, start=1)
            if MASK not in answer[first : first + WIDTH]
        ]
        first_full.append(full[0] if full else None)
    frozen_at: list[int] = []
    for number in first_full:
        if number is None:
            break
        frozen_at.append(max([number + delay, 1, *frozen_at]))
    done = [number for number in frozen_at if number < now]
    waits = len(frozen_at) > len(done) and frozen_at[len(done)] > now
    return 0 if waits or not done else ends[len(done) - 1]


def slow(denoise: Denoiser, model: LLaDA, config: SamplerConfig, num_left: int) -> Denoiser:
    """Whole forwards in which each layer reads its former inputs, but at the columns in work."""

    def denoise_slowly(canvas: Canvas, window: slice) -> Prediction:
        history = canvas.memory.of(History)
        answers = canvas.tokens[:, window].tolist()
        history.found = history.found or [[] for _ in answers]
        for found, answer in zip(history.found, answers):
            found.append(answer)
        step = len(history.found[0]) - 1
        starts = [
            first_column(each, config.cache_delay_iter, window.start) for each in history.found
        ]
        if step % (config.cache_refresh or 1000) == 0:
            starts = [0 for _ in starts]
        column = torch.arange(canvas.tokens.shape[1])
        columns = column >= torch.tensor(starts)[:, None] - num_left

        def hook(block: Block, arguments: tuple) -> tuple:
            x, *others = arguments
            merged = torch.where(columns[..., None], x, history.by_block.get(block, x))
            history.by_block[block] = merged
            return merged, *others

        with hooked(model, hook):
            return denoise(canvas, window)

    return denoise_slowly


def same_at_masks(first: Denoiser, second: Denoiser, bound: float, steps: list[int]) -> Denoiser:
    """The first, after checking that the second says the same where masks are."""

    def denoise_both(canvas: Canvas, window: slice) -> Prediction:
        one, other = first(canvas, window), second(canvas, window)
        at = torch.arange(window.stop - window.start).expand(len(canvas.tokens), -1)
        masked = canvas.tokens[:, window] == MASK
        logits, others = one.logits_at(at)[masked], other.logits_at(at)[masked]
        torch.testing.assert_close(logits, others, atol=bound, rtol=0)
        torch.testing.assert_close(
            one.confidence[masked], other.confidence[masked], atol=bound, rtol=0
        )
        steps.append(len(masked))
        return one

    return denoise_both


@pytest.mark.parametrize(
    "delay, refresh",
    [
        (1, None),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in ((0, None), (2, None), (1, 3))),
    ],
)
def test_every_step_predicts_what_the_definition_says(subject, delay, refresh):
    model, denoise, prompts, error, num_left = subject
    config = SamplerConfig(**SEVERAL, cache_delay_iter=delay, cache_refresh=refresh)
    steps: list[int] = []
    decode(
        same_at_masks(
            with_options(denoise, config, SPECIAL),
            slow(denoise, model, config, num_left),
            error,
            steps,
        ),
        prompts,
        config,
        SPECIAL,
    )
    assert len(steps) > 4


def test_fewer_columns_are_computed_the_sooner_blocks_are_frozen(make_model):
    model, numbers = make_model(), {}
    for delay in (None, 0, 1):
        count: list[int] = []
        with hooked(model, lambda block, given, count=count: count.append(given[0].shape[1])):
            run(with_head(model), PROMPTS[:1], {**SEVERAL, "cache_delay_iter": delay})
        numbers[delay] = sum(count)
    assert numbers[0] < numbers[None]
    assert numbers[0] < numbers[1]  # while a block waits, everything is computed


@pytest.mark.parametrize(
    "more",
    [
        dict(cfg_scale=1.0, temperature=1.0),
        pytest.param({}, marks=pytest.mark.slow),
        pytest.param(dict(revise_below=0.3, confidence_source="ups"), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_an_answer_does_not_depend_on_the_batch_around_it(make_model, more):
    denoise, options = with_head(make_model()), {**SEVERAL, "cache_delay_iter": 1, **more}
    together = run(denoise, PROMPTS, options)
    assert run(denoise, PROMPTS[::-1], options)[::-1] == together
    assert [run(denoise, [prompt], options)[0] for prompt in PROMPTS] == together


def test_a_refresh_at_every_step_is_no_cache(make_model):
    denoise, options = with_head(make_model()), {**SEVERAL, "cache_delay_iter": 1}
    plain = {**SEVERAL, "cache": "none"}
    assert run(denoise, PROMPTS, {**options, "cache_refresh": 1}) == run(denoise, PROMPTS, plain)
