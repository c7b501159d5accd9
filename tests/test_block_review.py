"""Candidates and back-masking where an answer's first block holds the end of its prompt."""

from __future__ import annotations

import random

import pytest
import torch

from llada_plugins.diffusion.batch_limit import BatchLimit
from llada_plugins.diffusion.denoiser import PADDING, model_denoiser
from llada_plugins.models.llada import LLaDA
from llada_plugins.models.special_tokens import SpecialTokens
from llada_plugins.rewards.block_review import BlockReview
from llada_plugins.rewards.review_config import ReviewConfig
from llada_plugins.rewards.steps import block_ends
from llada_plugins.sampling.config import SamplerConfig
from llada_plugins.sampling.decode import decode
from llada_plugins.sampling.generate import generate

MASK, EOS, WIDTH = 39, 38, 4
SPECIAL = SpecialTokens(MASK, EOS)
REVIEWS = [
    dict(method="vanilla", num_candidates_per_block=3),
    dict(method="backmask", num_candidates_per_block=2, backmasking_threshold=0.6),
    dict(method="window", backmasking_frequency=2, num_refinement_samples=3),
    dict(method="backmask", backmasking_rule="legacy", num_candidates_per_block=2),
]
PROMPTS = [[5, 6, 7], [8] * 4, [9, 10, 11, 12, 13, 14], [15]]


@pytest.fixture(scope="module")
def model(make_model) -> LLaDA:
    return make_model(attention="block_causal", block_length=WIDTH)


class Judge:
    """A scorer that knows of each prompt how many of its tokens are in the answer's first block."""

    def __init__(self, prompts: list[list[int]]) -> None:
        self.tails, self.asked = [len(prompt) % WIDTH for prompt in prompts], []

    def __call__(self, rows, answers) -> list[list[float]]:
        self.asked += zip(rows, answers)
        return [self.of(row, answer) for row, answer in zip(rows, answers)]

    def of(self, row: int, answer: list[int]) -> list[float]:
        edges = [0, *range(WIDTH - self.tails[row], len(answer), WIDTH), len(answer)]
        blocks = [answer[start:stop] for start, stop in zip(edges, edges[1:])]
        return [(sum(block) * 31 % 17) / 17 for block in blocks]


def reviewed(model: LLaDA, options: dict, prompts=PROMPTS, judge=None, **given):
    config = SamplerConfig(
        gen_length=10,
        block_length=WIDTH,
        block_steps=2,
        temperature=0.7,
        sampling_method="block_causal",
        last_block=given.pop("last_block", "whole"),
    )
    judge = judge or Judge(prompts)
    review = BlockReview(ReviewConfig(**options), config, judge, MASK)
    return decode(
        given.pop("denoise", None) or model_denoiser(model),
        prompts,
        config,
        SPECIAL,
        review=review,
        **given,
    )


@pytest.mark.parametrize("last_block", ["whole", "rest"])
@pytest.mark.parametrize("options", REVIEWS, ids=str)
def test_only_tokens_of_answers_are_judged_and_masked_again(model, options, last_block):
    denoise, judge = model_denoiser(model), Judge(PROMPTS)

    def watched(canvas, window):
        for row, start, number in zip(canvas.tokens, canvas.answer_start, canvas.ids.tolist()):
            prompt = row[:start][row[:start] != PADDING]
            assert prompt.tolist() == PROMPTS[number]
        return denoise(canvas, window)

    found = reviewed(model, options, judge=judge, denoise=watched, last_block=last_block)
    for number, sample in enumerate(found):
        asked = [answer for row, answer in judge.asked if row == number]
        assert asked and all(MASK not in answer and PADDING not in answer for answer in asked)
        # as far as the blocks reach that the answer has by then
        ends = {len(answer) + len(PROMPTS[number]) % WIDTH for answer in asked}
        assert all(end % WIDTH == 0 or end == len(PROMPTS[number]) % WIDTH + 10 for end in ends)
        assert sample.answer in asked and len(sample.answer) <= 10


@pytest.mark.parametrize("options", REVIEWS, ids=str)
def test_no_answer_under_review_depends_on_its_neighbours_or_their_order(model, options):
    together = reviewed(model, options)
    order = list(range(len(PROMPTS)))
    random.Random(1).shuffle(order)
    shuffled = reviewed(
        model,
        options,
        [PROMPTS[row] for row in order],
        at_once=BatchLimit(lambda longest: 2),
    )
    assert [shuffled[order.index(row)] for row in range(len(PROMPTS))] == together
    for row, prompt in enumerate(PROMPTS):
        assert reviewed(model, options, [prompt]) == [together[row]]


def test_the_first_block_of_a_text_is_as_short_as_the_prompt_leaves_it():
    text, edges = block_ends(list(range(9)), 4, (), lambda ids: "".join(map(str, ids)), tail=3)
    assert (text, edges) == ("012345678", [1, 5, 9])


@pytest.mark.parametrize(
    "options",
    [dict(stop_at="eos"), dict(stop_at="new_eos"), dict(answer_end="block")],
    ids=str,
)
def test_samplers_that_leave_blocks_unfinished_refuse_a_review_by_name(model, options):
    config = SamplerConfig(gen_length=8, threshold=0.5, **options)
    [(name, value)] = options.items()
    review = BlockReview(ReviewConfig(), config, Judge([[1]]), MASK)
    with pytest.raises(ValueError, match=f"{name}={value} goes without a process reward model"):
        generate(model, [[1]], config, special=SPECIAL, review=review)


def test_a_policy_head_and_revision_stay_inside_a_block(model):
    """`revise` masks again what it unmasked of the block, never what is finished."""
    head = torch.nn.Linear(32, 1)
    torch.nn.init.normal_(head.weight, generator=torch.Generator().manual_seed(0))
    denoise = model_denoiser(model, lambda hidden: head(hidden)[..., 0])
    config = SamplerConfig(
        gen_length=12, block_steps=4, block_length=8, revise=True, confidence_source="ups"
    )
    steps = []
    given = dict(special=SPECIAL, denoise=denoise)
    together = generate(model, PROMPTS, config, on_step=steps.append, **given)
    assert sum(int(step.remasked.sum()) for step in steps) > 3
    assert together == [generate(model, [prompt], config, **given)[0] for prompt in PROMPTS]
