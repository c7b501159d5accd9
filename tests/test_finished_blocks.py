"""The exact cache of block-causal models: the answers of forwards of the whole canvas, and
of what it spares the columns that were computed.
"""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llada_plugins.diffusion import finished_blocks
from llada_plugins.diffusion.batch_limit import BatchLimit, OutOfMemory
from llada_plugins.diffusion.denoiser import Canvas, Denoiser, Prediction, model_denoiser
from llada_plugins.diffusion.finished_blocks import keeping_finished_blocks, neighbours
from llada_plugins.diffusion.guidance import guided
from llada_plugins.diffusion.kept_rows import KeptRows
from llada_plugins.methods.policy_head import PolicyHead, policy_denoiser
from llada_plugins.methods.router import Router, RouterConfig
from llada_plugins.methods.routing import routed
from llada_plugins.models.block import Block
from llada_plugins.models.llada import LLaDA
from llada_plugins.models.past import LayerPast
from llada_plugins.models.slots import NO_TOKEN, Slots
from llada_plugins.models.special_tokens import SpecialTokens
from llada_plugins.rewards.block_review import BlockReview
from llada_plugins.rewards.review_config import ReviewConfig
from llada_plugins.sampling.config import SamplerConfig
from llada_plugins.sampling.decode import Sample, decode, unreviewed
from llada_plugins.sampling.generate import generate, with_options
from tests.tolerance import measured

pytestmark = pytest.mark.floats

MASK, EOS = 39, 38  # of make_model's models
SPECIAL = SpecialTokens(MASK, EOS)
RULES: list[dict[str, Any]] = [
    dict(),
    dict(block_steps=2),
    dict(threshold=0.06),
    dict(threshold=0.1, temperature=1.0),
    dict(revise=True, confidence_source="ups"),
    dict(threshold=0.2, revise_below=0.1),
    dict(threshold=0.06, early_stop=True),
]


@pytest.fixture(scope="module")
def model(make_model) -> LLaDA:
    """Its tokens see their own block and earlier ones alone."""
    return make_model(attention="block_causal", block_length=4, n_kv_heads=2)


def prompts_of(draw: random.Random, num: int, longest: int = 13) -> list[list[int]]:
    return [[draw.randrange(38) for _ in range(draw.randint(1, longest))] for _ in range(num)]


def with_head(model: LLaDA, shift: bool | None = None) -> Denoiser:
    torch.manual_seed(5)
    head = PolicyHead(model.config.d_model, 8).eval().requires_grad_(False)
    return policy_denoiser(model, head) if shift is None else model_denoiser(model, head, shift=shift)


def with_router(model: LLaDA, blocks: int = 2) -> Denoiser:
    torch.manual_seed(4)
    config = RouterConfig(
        d_model=model.config.d_model, mode="residual", max_positions=64, blocks=blocks
    )
    router = Router(config).eval().requires_grad_(False)
    nn.init.normal_(router.out.weight)
    return routed(with_head(model), router, model.embedding, MASK, model.blocks)


DENOISERS: dict[str, Callable[[LLaDA], Denoiser]] = {
    "plain": with_head,
    "shifted": functools.partial(with_head, shift=True),
    "routed": with_router,
}


def causal(**options: Any) -> SamplerConfig:
    return SamplerConfig(**{"sampling_method": "block_causal", "block_length": 4, **options})


@contextmanager
def columns_of(model: LLaDA) -> Iterator[list[tuple[int, int]]]:
    """Rows and columns of every forward within it."""
    seen: list[tuple[int, int]] = []
    hook = model.blocks[0].register_forward_pre_hook(
        lambda block, given: seen.append((given[0].shape[0], given[0].shape[1]))
    )
    try:
        yield seen
    finally:
        hook.remove()


# ---- the same answers


def drawn_decode(model: LLaDA, kind: str, seed: int) -> Callable[[str], list[Sample]]:
    """A decode of random prompts, rules, batches; from the option `cache` to its answers."""
    draw = random.Random(seed)
    config = dict(
        gen_length=draw.randint(1, 18),
        block_length=draw.choice([1, 2, 4, 5, 8]),
        blocks_from=draw.choice(["row", "answer"]),
        cfg_scale=draw.choice([0.0, 0.0, 0.7]),
        seed=seed,
        **draw.choice(RULES),
    )
    if config["blocks_from"] == "row" and draw.random() < 0.2:
        config["last_block"] = "rest"
    prompts = prompts_of(draw, draw.choice([1, 3, 8]))
    rows_at_once, modulus = draw.randint(1, len(prompts)), draw.randint(2, 6)
    in_step = draw.random() < 0.3

    def decoded(cache: str) -> list[Sample]:
        sampler = causal(cache=cache, **config)
        return decode(
            with_options(DENOISERS[kind](model), sampler, SPECIAL),
            prompts,
            sampler,
            SPECIAL,
            stop=lambda answer: sum(answer) % modulus == 0,
            at_once=BatchLimit(lambda longest: rows_at_once),
            in_step=in_step,
        )

    return decoded


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("kind", DENOISERS)
def test_answers_and_forwards_are_those_of_no_cache(model, kind, seed):
    decoded = drawn_decode(model, kind, seed)
    assert decoded("auto") == decoded("none")


@pytest.mark.slow
@pytest.mark.parametrize("kind", DENOISERS)
def test_many_random_decodes_have_the_answers_of_no_cache(model, kind):
    for seed in range(100, 300):
        decoded = drawn_decode(model, kind, seed)
        assert decoded("auto") == decoded("none"), seed


def both(first: Denoiser, second: Denoiser, bound: float) -> Denoiser:
    """The first, after checking that the second says the same of every column of the
    window, within the bound.
    """

    def denoise_both(canvas: Canvas, window: slice) -> Prediction:
        one, other = first(canvas, window), second(canvas._replace(memory=None), window)
        at = torch.arange(window.stop - window.start).expand(len(canvas.tokens), -1)
        torch.testing.assert_close(one.logits_at(at), other.logits_at(at), atol=bound, rtol=0)
        rows = torch.arange(len(at)).flip(0)
        torch.testing.assert_close(
            one.logits_at(at[rows, 0], rows), other.logits_at(at[rows, 0], rows), atol=bound, rtol=0
        )
        torch.testing.assert_close(one.confidence, other.confidence, atol=bound, rtol=0)
        return one

    return denoise_both


def of_row(model: LLaDA) -> Tensor:
    """Logits of eight rows, all together and each alone."""
    ids = torch.randint(0, MASK, (8, 30), generator=torch.Generator().manual_seed(4))
    return torch.cat([model(ids), *map(model, ids.split(1))])


@pytest.mark.parametrize("kind", ["plain", "routed"])
def test_every_step_predicts_what_a_forward_of_the_whole_canvas_does(model, kind):
    """Rows join, leave for good and leave for the rest of a block."""
    config = causal(gen_length=14, threshold=0.06)
    plain = DENOISERS[kind](model)
    bound = measured(of_row, model)
    if kind == "routed":  # seeds as large as the embeddings of a token, and the policy's scores
        bound *= 4
    decode(
        both(keeping_finished_blocks(plain, config.blocks), plain, bound),
        prompts_of(random.Random(3), 9),
        config,
        SPECIAL,
        stop=lambda answer: sum(answer) % 4 == 0,
        at_once=BatchLimit(lambda longest: 4),
    )


def reviewed(model: LLaDA, cache: str, **options: Any) -> tuple[list[Sample], int]:
    """Answers under a review with candidates, and how many columns were computed."""
    config = causal(cache=cache, gen_length=12, block_steps=2, temperature=0.7)

    def score(rows: Any, answers: Any) -> list[list[float]]:
        return [
            [(sum(answer[start : start + 4]) % 7) / 7 for start in range(0, len(answer), 4)]
            for answer in answers
        ]

    review = BlockReview(ReviewConfig(**options), config, score, MASK)
    prompts = [[5, 6, 7, 8], [9, 3, 4, 4, 9, 10, 11, 12], [14, 5, 1, 2]]
    with columns_of(model) as seen:
        found = generate(model, prompts, config, special=SPECIAL, review=review)
    return found, sum(rows * columns for rows, columns in seen)


REVIEWS = [
    dict(method="vanilla", candidates=3),
    dict(method="backmask", candidates=2, lookback=2, refills=2),
    dict(method="window", candidates=2, lookback=2, refills=2),
]


# ---- what it spares


def test_a_blocks_first_forward_has_the_block_before_in_it_and_later_ones_the_block(model):
    config = causal(gen_length=12, block_steps=3)
    with columns_of(model) as seen:
        generate(model, [[5] * 8], config, special=SPECIAL)
    assert seen == [(1, 12), (1, 4), (1, 4)] + [(1, 8), (1, 4), (1, 4)] * 2


def test_shifted_logits_need_the_column_before_the_block_too(model):
    config = causal(gen_length=12, block_steps=2)
    with columns_of(model) as seen:
        generate(model, [[5] * 8], config, special=SPECIAL, denoise=model_denoiser(model, shift=True))
    assert seen == [(1, 12), (1, 5)] + [(1, 8), (1, 5)] * 2


def test_without_a_cache_everything_is_computed_at_every_step(model):
    config = causal(gen_length=8, block_steps=2, cache="none")
    with columns_of(model) as seen:
        generate(model, [[5] * 8], config, special=SPECIAL)
    assert seen == [(1, 12)] * 2 + [(1, 16)] * 2


def test_a_row_that_joins_has_its_prompt_computed_alone(model):
    config = causal(gen_length=12, block_steps=1)
    prompts = [[5] * 8, [6] * 8, [7] * 16, [8] * 5]
    with columns_of(model) as seen:
        decode(
            with_options(model_denoiser(model), config, SPECIAL),
            prompts,
            config,
            SPECIAL,
            keys=range(4),
            stop=lambda answer: len(answer) == 4 and answer_of[tuple(answer)] in (0, 2),
            at_once=BatchLimit(lambda longest: 2),
        ) if (answer_of := first_blocks(model, prompts)) else None
    forwards = seen[len(seen) - (len(seen) - seen.index((2, 20), 1)) :]
    assert forwards


