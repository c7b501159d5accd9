"""Likelihood bounds: equal to enumeration where that is possible, unbiased with an honest standard error elsewhere."""
from __future__ import annotations

import itertools
import json
import math

import pytest
import torch
from scipy import stats

from llada_plugins.checkpoint import load_model
from llada_plugins.denoiser import Canvas, Denoiser, Prediction, model_denoiser
from llada_plugins.likelihood import count_masks, log_likelihood
from llada_plugins.model import LLaDA, SpecialTokens

MASK = 39        # of the random model
PAIRS = [([1, 2, 3], [4, 5, 6, 7]), ([8], [9, 10]), ([], [11, 12, 13]), ([1, 2, 3, 4, 5, 6], [7]), ([20, 21], [22, 23, 24, 25, 26])]


@pytest.fixture(scope="module")
def model(make_model) -> LLaDA:
    return make_model()


def brute_force(model: LLaDA, prompt: list[int], answer: list[int], scale: float = 0.0) -> float:
    """E_k E_{|S| = k} (n / k) sum_{i in S} log p(x_i | x with S masked), one forward of one row per subset."""
    n, total = len(answer), 0.0
    for k in range(1, n + 1):
        subsets = list(itertools.combinations(range(n), k))
        for subset in subsets:
            masked = [MASK if place in subset else token for place, token in enumerate(answer)]
            logits = model(torch.tensor([prompt + masked]))[0]
            if scale:
                blank = model(torch.tensor([[MASK] * len(prompt) + masked]))[0]
                logits = blank + (scale + 1) * (logits - blank)
            log_p = logits.log_softmax(-1)
            total += sum(float(log_p[len(prompt) + place, answer[place]]) for place in subset) / k / len(subsets)
    return total


def counting(denoise: Denoiser, rows: list[int]) -> Denoiser:
    """The same denoiser; `rows` collects the batch sizes it is asked for."""
    def denoise_counted(canvas: Canvas, window: slice) -> Prediction:
        rows.append(len(canvas.tokens))
        return denoise(canvas, window)
    return denoise_counted


@pytest.mark.parametrize("cfg_scale", [0.0, 1.5])
def test_short_answers_are_enumerated_exactly(model, cfg_scale):
    values = log_likelihood(model, PAIRS, mc_num=31, cfg_scale=cfg_scale)
    for (prompt, answer), value in zip(PAIRS, values):
        assert value.value == pytest.approx(brute_force(model, prompt, answer, cfg_scale), abs=1e-4)        # fp32 logits
        assert value.stderr == 0 and value.num_forwards == 2 ** len(answer) - 1


def test_an_answer_of_one_token_takes_one_forward_and_is_its_log_probability(model):
    value, = log_likelihood(model, [([1, 2, 3], [4])], mc_num=1)
    expected = model(torch.tensor([[1, 2, 3, MASK]]))[0, -1].log_softmax(-1)[4]
    assert value.value == pytest.approx(float(expected), abs=1e-5) and (value.stderr, value.num_forwards) == (0, 1)


def test_values_equal_the_recorded_enumeration(golden):
    model = load_model(golden / "checkpoint", device="cpu", dtype="float32")
    rows = json.loads((golden / "likelihood.json").read_text())["rows"]
    values = log_likelihood(model, [(row["prompt"], row["answer"]) for row in rows], mc_num=1 << 10)
    for row, value in zip(rows, values):
        assert value.value == pytest.approx(row["exact"], abs=1e-4) and value.stderr == 0


def test_sampled_values_are_unbiased_and_their_standard_error_is_honest(model):
    prompt, answer = [1, 2, 3], [4, 5, 6, 7, 8]
    exact = brute_force(model, prompt, answer)
    estimates = [log_likelihood(model, [(prompt, answer)], mc_num=8, seed=seed)[0] for seed in range(200)]
    values = torch.tensor([estimate.value for estimate in estimates], dtype=torch.float64)
    assert {estimate.num_forwards for estimate in estimates} == {8}
    assert abs(values.mean() - exact) < 4 * values.std() / 200 ** 0.5        # 4 sigma, and the seeds are fixed
    reported = (sum(estimate.stderr ** 2 for estimate in estimates) / 200) ** 0.5
    assert 0.9 * values.std() < reported < 3 * values.std()        # stratified, yet told as if independent: on the large side


def test_more_masks_make_the_standard_error_smaller(model):
    pair = ([1, 2], list(range(3, 19)))
    few, many = (log_likelihood(model, [pair], mc_num=mc_num)[0].stderr for mc_num in (16, 256))
    assert many < few / 2        # by 4, less the scatter of the few


@pytest.mark.parametrize("length, mc_num", [(7, 16), (10, 64), (16, 16), (33, 8)])
def test_mask_counts_are_stratified_and_their_weights_match(length, mc_num):
    masks = count_masks(length, mc_num, 0, [1], [2])
    assert masks.masked.shape == (mc_num, length) and not masks.exact
    count = masks.masked.sum(-1)
    assert torch.equal(masks.weight, length / (count.double() * mc_num))
    for row, k in enumerate(count.tolist()):        # floor((u + i) / S n) + 1 for one u: each stratum holds its own counts
        assert math.floor(row / mc_num * length) + 1 <= k <= min(length, math.floor((row + 1) / mc_num * length) + 1)
    if mc_num % length == 0:
        assert torch.bincount(count, minlength=length + 1)[1:].tolist() == [mc_num // length] * length


def test_mask_counts_and_positions_are_uniform_where_the_length_does_not_divide_the_samples():
    length, mc_num, seeds = 7, 16, 1500
    masks = [count_masks(length, mc_num, seed, [1], [2]) for seed in range(seeds)]
    count = torch.cat([mask.masked.sum(-1) for mask in masks])
    observed = torch.bincount(count, minlength=length + 1)[1:]
    # stratified counts scatter less than independent ones: a multinomial's bounds are generous
    expected = mc_num * seeds / length
    assert ((observed - expected).abs() < 4 * (expected * (1 - 1 / length)) ** 0.5).all()
    places = torch.cat([mask.masked for mask in masks])[count == 2]
    pairs = torch.bincount((places.int() * torch.arange(length)).sum(-1) * 49 + (places.int() * torch.arange(length) ** 2).sum(-1))
    pairs = pairs[pairs > 0]
    assert len(pairs) == math.comb(length, 2) and stats.chisquare(pairs.numpy()).pvalue > 1e-3


@pytest.mark.parametrize("length, mc_num", [(1, 1), (2, 3), (4, 128), (5, 31)])
def test_enumerated_masks_are_all_distinct_and_their_weights_average_the_counts(length, mc_num):
    masks = count_masks(length, mc_num, 0)
    assert masks.exact and len({tuple(row) for row in masks.masked.tolist()}) == 2 ** length - 1
    # a model that says -1 nat a token has a bound of -length: sum of weight x count
    assert float((masks.weight * masks.masked.sum(-1)).sum()) == pytest.approx(length, abs=1e-12)
    assert not count_masks(length + 1, 2 ** (length + 1) - 2, 0).exact


def test_a_value_does_not_depend_on_the_batch_around_it(model):
    expected = [log_likelihood(model, [pair], mc_num=10, batch_size=1)[0] for pair in PAIRS]
    for pairs, values in ((PAIRS, expected), (PAIRS[::-1], expected[::-1]), (PAIRS[2:4], expected[2:4])):
        for batch_size in (1, 3, 64):
            for value, alone in zip(log_likelihood(model, pairs, mc_num=10, batch_size=batch_size), values):
                assert value.value == pytest.approx(alone.value, abs=1e-4) and value.stderr == pytest.approx(alone.stderr, abs=1e-4)
                assert value.num_forwards == alone.num_forwards


def test_rows_of_all_requests_fill_the_batches(model):
    rows: list[int] = []
    log_likelihood(model, PAIRS, mc_num=10, batch_size=8, denoise=counting(model_denoiser(model), rows))
    total = 10 + 3 + 7 + 1 + 10
    assert sum(rows) == total and rows == [8] * (total // 8) + [total % 8]


def test_a_seed_repeats_its_value_and_requests_have_masks_of_their_own(model):
    pair = ([1, 2], [3, 4, 5, 6, 7])
    first, same, other = (log_likelihood(model, [pair], mc_num=8, seed=seed)[0] for seed in (1, 1, 2))
    assert first == same and first != other
    assert not torch.equal(count_masks(9, 8, 0, [1], [2]).masked, count_masks(9, 8, 0, [1], [3]).masked)


def test_only_the_answer_is_masked_and_every_row_sees_its_prompt(model):
    def denoise(canvas: Canvas, window: slice) -> Prediction:
        for row, start in zip(canvas.tokens.tolist(), canvas.answer_start.tolist()):
            assert [token for token in row[:start] if token >= 0] in [prompt for prompt, _ in PAIRS]
            assert MASK in row[start:] and start >= window.start
        return model_denoiser(model)(canvas, window)
    log_likelihood(model, PAIRS, mc_num=10, denoise=denoise)


def test_one_sample_of_a_longer_answer_has_no_standard_error(model):
    value, = log_likelihood(model, [([1], [2, 3])], mc_num=1)
    assert math.isnan(value.stderr) and value.num_forwards == 1


def test_a_likelier_answer_has_the_larger_value(model):
    tokens = torch.tensor([[1, 2, 3, MASK]])
    log_p = model(tokens)[0, -1].log_softmax(-1)
    order = log_p.argsort(descending=True).tolist()
    values = [value.value for value in log_likelihood(model, [([1, 2, 3], [token]) for token in order])]
    assert values == sorted(values, reverse=True) and sum(map(math.exp, values)) == pytest.approx(1, abs=1e-5)


def test_wrong_requests_are_told_before_a_forward(model, make_model):
    def never(canvas: Canvas, window: slice) -> Prediction:
        raise AssertionError("a forward ran")
    for pairs, options, message in (
        ([([1], [2]), ([1], [])], {}, "answer 1 is empty: there is nothing to score"),
        ([([1] * 60, [2] * 5)], {}, r"request 0 has 60 \+ 5 tokens, more than the model's context of 64"),
        ([([1], [2])], dict(mc_num=0), "mc_num and batch_size must be at least 1, got 0 and 32"),
        ([([1], [2])], dict(batch_size=0), "mc_num and batch_size must be at least 1, got 128 and 0"),
        ([([1], [2])], dict(estimator="chain"), "estimator must be one of count, got 'chain'"),
    ):
        with pytest.raises(ValueError, match=message):
            log_likelihood(model, pairs, denoise=never, **options)
    with pytest.raises(ValueError, match="names no mask token"):
        log_likelihood(make_model(mask_token_id=None), [([1], [2])], denoise=never)
    assert log_likelihood(model, [], denoise=never) == []
    assert log_likelihood(make_model(mask_token_id=None), [([1], [2])], special=SpecialTokens(MASK))[0].num_forwards == 1
