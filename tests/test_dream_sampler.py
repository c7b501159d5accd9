"""Schedules and confidences that Dream, Fast-dLLM and dllm have and LLaDA has not, each
against a slow loop from its formulas.
"""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
import torch
from scipy import stats

from llada_plugins.diffusion.denoiser import Canvas, Denoiser, Prediction
from llada_plugins.diffusion.random_streams import request_key, uniform
from llada_plugins.sampling.config import SamplerConfig
from llada_plugins.sampling.keep_rules import keep_top
from llada_plugins.sampling.propose import (
    ActiveBlock,
    draws_of_confidence,
    filtered,
    proposals_at,
    propose_filtered,
)
from llada_plugins.sampling.step import Step
from llada_plugins.sampling.unmask_schedule import planned, without_idle
from tests.test_sampler import (
    MASK,
    PROMPTS,
    SPECIAL,
    VOCAB,
    many_draws,
    predicted,
    random_prompts,
    run,
    scored,
    steps_of,
    toy_denoiser,
)

pytestmark = pytest.mark.floats

# ---- schedules of other families


def single(value: float) -> np.float32:
    """A float32 number, so that Python's operators round as the published code does."""
    return np.float32(value)


def naive_dream_shares(num_masked: int, steps: int, eps: float) -> list[int]:
    """Tokens that each step unmasks, by Dream's diffusion_generate in float32."""
    times = torch.linspace(1, eps, steps + 1).numpy()  # its only sequence is torch's
    left, shares = num_masked, []
    for step in range(steps):
        rate = single(1) - times[step + 1] / times[step]
        shares.append(left if step == steps - 1 else int(single(left) * rate))
        left -= shares[-1]
    return shares


def naive_mdlm_shares(num_masked: int, steps: int) -> list[int]:
    """Tokens that each step unmasks, by dllm's scheduler: alpha in float32, half to even."""
    left, shares = num_masked, []
    for step in range(steps, 0, -1):
        before, after = (
            single(1) - (single(1) - single(number / steps)) for number in (step, step - 1)
        )
        shares.append(min(left, round(left * (1 - float(after / before)))))
        left -= shares[-1]
    return shares


@pytest.mark.parametrize("steps", [1, 2, 4, 5, 16, 17, 64])
@pytest.mark.parametrize("eps", [1e-3, 0.05, 0.5])  # at 0.5 float64 has other counts
def test_dreams_schedule_equals_its_recursion_for_any_number_of_masks(steps, eps):
    config = SamplerConfig(gen_length=16, steps=steps, schedule="dream", schedule_eps=eps)
    masked = torch.ones(17, 16).tril(-1).bool()  # 0 to 16 masks
    expected = [list(itertools.accumulate(naive_dream_shares(m, steps, eps))) for m in range(17)]
    found = planned(masked, config) - (~masked).sum(-1, keepdim=True)
    assert found.tolist() == expected


def test_dreams_schedule_at_as_many_steps_as_tokens_idles_first_and_ends_with_two():
    """What Dream's users see at 16 steps for 16 tokens: 0, 14 ones and a 2."""
    assert naive_dream_shares(16, 16, 1e-3) == [0, *[1] * 14, 2]
    taken, samples = steps_of(dict(gen_length=16, schedule="dream"))
    assert [step.kept.sum(-1).tolist() for step in taken] == [
        [count] * len(PROMPTS) for count in [*[1] * 14, 2]
    ]
    assert {sample.num_forwards for sample in samples} == {15}


@pytest.mark.parametrize("steps", [1, 3, 7, 9, 24])
def test_the_mdlm_schedule_equals_its_recursion_for_any_number_of_masks(steps):
    config = SamplerConfig(gen_length=12, steps=steps, schedule="mdlm")
    masked = torch.ones(13, 12).tril(-1).bool()
    expected = [list(itertools.accumulate(naive_mdlm_shares(m, steps))) for m in range(13)]
    found = planned(masked, config) - (~masked).sum(-1, keepdim=True)
    assert found.tolist() == expected


@pytest.mark.parametrize("schedule", ["dream", "mdlm"])
def test_steps_that_unmask_nothing_cost_no_forward(schedule):
    options = dict(gen_length=12, block_length=6, steps=40, schedule=schedule)
    shares = naive_dream_shares(6, 20, 1e-3) if schedule == "dream" else naive_mdlm_shares(6, 20)
    active = sum(share > 0 for share in shares)
    assert active < 20
    steps, samples = steps_of(options)
    assert {sample.num_forwards for sample in samples} == {2 * active}
    assert all(step.kept.any(-1).all() for step in steps)


def test_rows_with_other_numbers_of_masks_idle_at_other_steps_and_count_their_own():
    standing = torch.tensor([[0, 1, 1, 3], [2, 2, 2, 3], [3, 3, 3, 3]])
    plan = without_idle(standing, torch.tensor([0, 1, 3]))
    assert plan.standing.tolist() == [[1, 3, 3, 3], [2, 3, 3, 3], [3, 3, 3, 3]]
    assert plan.numbers[:2, :2].tolist() == [[1, 3], [0, 3]]


def test_an_independent_token_is_unmasked_by_each_step_with_dreams_probability():
    num, steps, eps = 20_000, 5, 0.1
    config = SamplerConfig(
        gen_length=4, steps=steps, schedule="independent", schedule_eps=eps, remasking="random"
    )
    keys = torch.arange(num)
    masked = torch.ones(num, 4, dtype=torch.bool)
    standing = planned(masked, config, uniform=draws_of_confidence(keys, 0, 4))
    counts = torch.bincount(standing.diff(dim=1, prepend=torch.zeros(num, 1).long()).flatten())
    times = np.linspace(1, eps, steps + 1)
    # of every step, the number of 4 tokens that it unmasks is binomial
    rates = [*times[:-2] - times[1:-1], times[-2]]
    expected = sum(num * stats.binom.pmf(range(5), 4, rate) for rate in rates)
    assert stats.chisquare(counts.numpy(), expected).pvalue > 1e-3  # fixed draws


def test_independent_steps_keep_exactly_the_tokens_whose_draw_says_so():
    options = dict(gen_length=12, steps=6, schedule="independent", remasking="random")
    config = SamplerConfig(**options)
    steps, samples = steps_of(options)
    times = torch.linspace(1, 1e-3, 7)
    for row, prompt in enumerate(PROMPTS):
        key = torch.tensor([request_key(config.seed, prompt)])
        left, expected = set(range(12)), []
        for number in range(6):
            rate = 1 if number == 5 else float(1 - times[number + 1] / times[number])
            drawn = uniform(key, number, torch.arange(12), 0).tolist()
            now = {place for place in left if drawn[place] > 1 - rate}
            left -= now
            expected += [now] * bool(now)
        kept = [step.kept[step.rows.tolist().index(row)] for step in steps if row in step.rows]
        assert [set(each.nonzero()[:, 0].tolist()) for each in kept] == expected
        assert samples[row].num_forwards == len(expected)


def naive_paced(
    denoise: Denoiser, prompt: list[int], gen_length: int, steps: int, threshold: float
) -> tuple[list[int], int]:
    """Fast-dLLM's Dream without a cache: a step may keep its share and what was rejected."""
    row, share, rejected, num_forwards = prompt + [MASK] * gen_length, gen_length // steps, 0, 0
    while MASK in row:
        budget = min(share + rejected, row.count(MASK))
        places = [
            place for place, token in enumerate(row) if token == MASK and place >= len(prompt)
        ]
        prediction = predicted(denoise, row, len(prompt))
        found = [(scored(prediction, row, place, "tps_prob"), place) for place in places]
        best = sorted(found, key=lambda each: -each[0][1])[:budget]
        accepted = [each for each in best if each is best[0] or each[0][1] >= threshold]
        for (token, _), place in accepted:
            row[place] = token
        rejected, num_forwards = budget - len(accepted), num_forwards + 1
    return row[len(prompt) :], num_forwards


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("threshold", [0.2, 0.35, 0.9])
def test_a_paced_threshold_equals_the_naive_loop_that_carries_rejections(seed, threshold):
    steps = (2, 3, 4, 6, 12)[seed % 5]
    denoise = toy_denoiser(seed, {MASK: -50.0, 7: 1.5})
    prompts = [prompt for prompt in PROMPTS if MASK not in prompt]
    options = dict(gen_length=12, steps=steps, threshold=threshold, paced=True)
    samples = run(options, prompts, denoise)
    expected = [naive_paced(denoise, prompt, 12, steps, threshold) for prompt in prompts]
    assert [(sample.answer, sample.num_forwards) for sample in samples] == expected


def test_pace_holds_an_easy_threshold_to_the_fixed_schedule():
    options = dict(gen_length=12, steps=6, threshold=1e-6)
    assert {sample.num_forwards for sample in run(options)} == {1}
    assert {sample.num_forwards for sample in run({**options, "paced": True})} == {6}


@pytest.mark.parametrize(
    "more", [{}, dict(threshold=0.4), dict(remask_ratio=0.5, steps=12)], ids=str
)
def test_a_last_block_of_the_rest_sees_and_costs_no_more_than_its_tokens(more):
    seen: list[tuple[Canvas, slice]] = []
    options = dict(gen_length=10, block_length=4, last_block="rest", **more)
    steps: list[Step] = []
    samples = run(options, seen=seen, on_step=steps.append)
    assert {len(sample.answer) for sample in samples} == {10}
    for canvas, window in seen:
        assert canvas.tokens.shape[1] - int(canvas.answer_start[0]) == 10
        assert window.stop <= canvas.tokens.shape[1]
    assert {step.proposal.shape[1] for step in steps if step.block == 2} == {2}


# ---- trust in the filtered distribution


def naive_dream(
    denoise: Denoiser,
    prompt: list[int],
    *,
    gen_length: int,
    steps: int,
    schedule_eps: float,
    confidence_source: str,
    top_p: float | None,
    top_k: int | None,
) -> list[int]:
    """Dream's diffusion_generate at temperature 0, one position at a time in plain Python."""
    row = prompt + [MASK] * gen_length
    for share in naive_dream_shares(gen_length, steps, schedule_eps):
        canvas = Canvas(torch.tensor([row]), torch.tensor([len(prompt)]))
        logits = denoise(canvas, slice(0, len(row))).logits_at(torch.arange(len(row))[None])[0]
        found = []
        for place in range(len(prompt), len(row)):
            if row[place] == MASK:
                token, trust = trusted(logits[place].tolist(), confidence_source, top_p, top_k)
                found.append((-trust, place, token))
        for _, place, token in sorted(found)[:share]:
            row[place] = token
    return row[len(prompt) :]


def trusted(
    logits: list[float], source: str, top_p: float | None, top_k: int | None
) -> tuple[int, float]:
    """The best token, and the confidence that what top_p and then top_k leave gives it."""
    weights = {token: math.exp(value) for token, value in enumerate(logits)}
    ranked = sorted(weights, key=lambda token: -weights[token])
    if top_p is not None:
        total, before, left = sum(weights.values()), 0.0, []
        for token in ranked:
            if before <= top_p:
                left.append(token)
            before += weights[token] / total
        ranked = left
    ranked = ranked[:top_k]
    total = sum(weights[token] for token in ranked)
    probability = [weights[token] / total for token in ranked]
    second = probability[1] if len(probability) > 1 else 0.0
    return ranked[0], {
        "tps_prob": probability[0],
        "margin": probability[0] - second,
        "entropy": sum(each * math.log(each) for each in probability),
    }[source]


@pytest.mark.parametrize("source", ["tps_prob", "margin", "entropy"])
@pytest.mark.parametrize("seed", range(10))
def test_answers_equal_a_naive_reimplementation_of_dreams_sampler(source, seed):
    choose = random.Random(seed)
    options = dict(
        gen_length=choose.choice([8, 12, 13]),
        steps=choose.choice([1, 4, 8, 12, 30]),
        schedule_eps=choose.choice([1e-3, 0.05]),
        confidence_source=source,
        top_p=choose.choice([None, 0.5, 0.7, 0.9]),
        top_k=choose.choice([None, 2, 5]),
    )
    prompts = random_prompts(choose)
    denoise = toy_denoiser(seed, favoured={MASK: -50.0})
    samples = run(dict(schedule="dream", confidence_of="filtered", **options), prompts, denoise)
    assert [sample.answer for sample in samples] == [
        naive_dream(denoise, prompt, **options) for prompt in prompts
    ]


def test_filtered_sampling_draws_from_the_tempered_tokens_that_the_filters_leave():
    num, temperature = 20_000, 0.7
    logits = torch.linspace(-1.5, 1.5, VOCAB)
    config = SamplerConfig(confidence_of="filtered", temperature=temperature, top_p=0.9, top_k=8)
    judged = filtered(logits.expand(num, VOCAB), config)
    raw = logits.expand(num, VOCAB).clone()
    raw[:, MASK] = -float("inf")
    drawn = propose_filtered(raw[None], judged[None], MASK, config, lambda: many_draws(num)[None])[
        0
    ]
    left = {token for token in range(VOCAB) if judged[0, token] > -float("inf")}
    assert len(left) == 8 and max(left) == VOCAB - 1
    expected = (logits.double() / temperature).exp()
    expected[[token for token in range(VOCAB) if token not in left or token == MASK]] = 0
    expected = num * expected / expected.sum()
    counts = torch.bincount(drawn, minlength=VOCAB)
    assert not counts[expected == 0].any()
    kept = expected > 0
    assert stats.chisquare(counts[kept].numpy(), expected[kept].numpy()).pvalue > 1e-3


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_where_a_filter_leaves_the_mask_token_alone_the_best_other_one_is_proposed(temperature):
    options = dict(gen_length=12, top_k=1, confidence_of="filtered", temperature=temperature)
    steps, samples = steps_of(options, toy_denoiser(favoured={MASK: 50.0}))
    plain = run(dict(gen_length=12, steps=12), denoise=toy_denoiser(favoured={MASK: 50.0}))
    assert all(MASK not in sample.answer for sample in samples)
    # nothing is trusted there, so the order is that of the places
    assert [step.kept.int().argmax(-1).tolist() for step in steps] == [
        [place] * len(PROMPTS) for place in range(12)
    ]
    assert len(plain) == len(samples)


def test_alg_temp_draws_without_replacement_from_the_softmax_of_the_confidences():
    """Plackett-Luce: the first of two kept tokens as the softmax says, the second as that of
    the rest.
    """
    num, alg_temp = 20_000, 0.5
    trust = torch.tensor([0.9, 0.2, 0.5, 0.7])
    logits = torch.zeros(1, 4, VOCAB)
    for place, value in enumerate(trust.tolist()):
        logits[0, place, 5] = math.log(value / (1 - value) * (VOCAB - 1))  # probability `value`
    config = SamplerConfig(gen_length=4, steps=2, alg_temp=alg_temp)
    block = ActiveBlock(torch.full((num, 4), MASK), torch.arange(num), 0, 0)
    prediction = Prediction.from_logits(logits.expand(num, 4, VOCAB))
    columns = torch.arange(4).expand(num, 4)
    score = proposals_at(prediction, columns, block, config, SPECIAL).score
    kept = keep_top(score, torch.full((num,), 2))
    weight = (trust.double() / alg_temp).exp()
    chance = weight / weight.sum()
    expected, found = [], []
    for one, other in itertools.combinations(range(4), 2):
        pair = [chance[a] * chance[b] / (1 - chance[a]) for a, b in ((one, other), (other, one))]
        expected.append(num * float(sum(pair)))
        found.append(int((kept[:, one] & kept[:, other]).sum()))
    assert stats.chisquare(found, expected).pvalue > 1e-3  # fixed draws


@pytest.mark.parametrize("more", [dict(threshold=1e-6), dict(schedule="dream", steps=8)], ids=str)
def test_the_published_shift_cache_opens_each_block_with_its_first_token_alone(more):
    options = dict(gen_length=8, block_length=4, cache="dual", shift_cache="published", **more)
    steps, _ = steps_of(options)
    for step in steps:
        if step.step == 0:
            assert step.kept.int().tolist() == [[1, 0, 0, 0]] * len(PROMPTS)
        else:
            assert not step.kept[:, 0].any()
