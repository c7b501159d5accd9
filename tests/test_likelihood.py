"""Likelihoods of a model: equal to enumeration where that is possible, unbiased
elsewhere; shared rows, rounds, greedy flags.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import replace

import pytest
import torch

from llada_plugins.diffusion.denoiser import Canvas, Denoiser, Prediction, model_denoiser
from llada_plugins.likelihood.estimate import LogLikelihood, log_likelihood
from llada_plugins.models.llada import LLaDA
from llada_plugins.models.special_tokens import SpecialTokens
from llada_plugins.sampling.config import SamplerConfig
from llada_plugins.sampling.generate import generate
from tests.tolerance import likelihood_error, token_error

pytestmark = pytest.mark.floats

MASK = 39  # of the random model
PAIRS = [
    ([1, 2, 3], [4, 5, 6, 7]),
    ([8], [9, 10]),
    ([], [11, 12, 13]),
    ([1, 2, 3, 4, 5, 6], [7]),
    ([20, 21], [22, 23, 24, 25, 26]),
]


@pytest.fixture(scope="module")
def model(make_model) -> LLaDA:
    return make_model()


def brute_force(model: LLaDA, prompt: list[int], answer: list[int], scale: float = 0.0) -> float:
    """E_k E_{|S| = k} (n / k) sum_{i in S} log p(x_i | x with S masked), one forward of
    one row per subset.
    """
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
            total += (
                sum(float(log_p[len(prompt) + place, answer[place]]) for place in subset)
                / k
                / len(subsets)
            )
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
        bound = likelihood_error(model, len(answer), cfg_scale)
        assert value.value == pytest.approx(
            brute_force(model, prompt, answer, cfg_scale), abs=bound
        )
        assert value.stderr == 0 and value.num_forwards == 2 ** len(answer) - 1


def test_an_answer_of_one_token_takes_one_forward_and_is_its_log_probability(model):
    (value,) = log_likelihood(model, [([1, 2, 3], [4])], mc_num=1)
    expected = model(torch.tensor([[1, 2, 3, MASK]]))[0, -1].log_softmax(-1)[4]
    assert value.value == pytest.approx(float(expected), abs=token_error(model))
    assert (
        value.stderr,
        value.num_forwards,
    ) == (0, 1)


def test_sampled_values_are_unbiased_and_their_standard_error_is_honest(model):
    prompt, answer = [1, 2, 3], [4, 5, 6, 7, 8]
    exact = brute_force(model, prompt, answer)
    estimates = [
        log_likelihood(model, [(prompt, answer)], mc_num=8, seed=seed)[0] for seed in range(200)
    ]
    values = torch.tensor([estimate.value for estimate in estimates], dtype=torch.float64)
    # fewer where two rows mask the same
    assert max(estimate.num_forwards for estimate in estimates) == 8
    # 4 sigma, and the seeds are fixed
    assert abs(values.mean() - exact) < 4 * values.std() / 200**0.5
    reported = (sum(estimate.stderr**2 for estimate in estimates) / 200) ** 0.5
    assert 0.8 * values.std() < reported < 2 * values.std()


def test_more_masks_make_the_standard_error_smaller(model):
    pair = ([1, 2], list(range(3, 19)))
    few, many = (log_likelihood(model, [pair], mc_num=mc_num)[0].stderr for mc_num in (16, 256))
    assert many < few / 2  # by 4, less the scatter of the few


def test_a_value_does_not_depend_on_the_batch_around_it(model):
    expected = [log_likelihood(model, [pair], mc_num=10, batch_size=1)[0] for pair in PAIRS]
    bound = likelihood_error(model, max(len(answer) for _, answer in PAIRS))
    for pairs, values in (
        (PAIRS, expected),
        (PAIRS[::-1], expected[::-1]),
        (PAIRS[2:4], expected[2:4]),
    ):
        for size in (
            dict(batch_size=1),
            dict(batch_size=3),
            dict(batch_size=64),
            dict(batch_tokens=20),
        ):
            for value, alone in zip(log_likelihood(model, pairs, mc_num=10, **size), values):
                assert value[:2] == pytest.approx(alone[:2], abs=bound)
                assert value.num_forwards == alone.num_forwards


def test_rows_of_all_requests_fill_the_batches(model):
    rows: list[int] = []
    values = log_likelihood(
        model, PAIRS, mc_num=10, batch_size=8, denoise=counting(model_denoiser(model), rows)
    )
    total = sum(value.num_forwards for value in values)
    assert total <= 10 + 3 + 7 + 1 + 10
    assert sum(rows) == total
    assert rows == [8] * (total // 8) + [total % 8] * (total % 8 > 0)


def test_batches_keep_to_the_token_budget_longest_rows_first(model):
    shapes: list[tuple[int, int]] = []

    def denoise(canvas: Canvas, window: slice) -> Prediction:
        shapes.append(tuple(canvas.tokens.shape))
        return model_denoiser(model)(canvas, window)

    log_likelihood(model, PAIRS, mc_num=10, batch_tokens=21, denoise=denoise)
    assert all(rows * length <= 21 for rows, length in shapes)
    assert max(rows for rows, _ in shapes) > 3
    assert [length for _, length in shapes] == sorted(
        (length for _, length in shapes), reverse=True
    )
    # less than a row: one at a time
    log_likelihood(model, PAIRS[:1], batch_tokens=1, denoise=denoise)
    assert shapes[-1] == (1, 7)


@pytest.mark.parametrize("cfg_scale", [0.0, 1.5])
def test_the_head_computes_masked_places_and_no_others(model, cfg_scale):
    places: list[int] = []

    def watched(canvas: Canvas, window: slice) -> Prediction:
        prediction = model_denoiser(model)(canvas, window)

        def logits_at(at: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
            assert (canvas.tokens[:, window][rows, at] == MASK).all()
            places.append(len(at))
            return prediction.logits_at(at, rows)

        return prediction._replace(logits_at=logits_at)

    # enumerated: 3, 7 and 1 rows, each token masked in half of 2^n
    pairs = [([8, 9, 10], [5, 6]), ([8], [7, 5, 9]), ([11, 12], [4])]
    log_likelihood(model, pairs, batch_size=5, cfg_scale=cfg_scale, denoise=watched)
    assert sum(places) == (2 * 2 + 3 * 4 + 1) * (2 if cfg_scale else 1)


def test_a_row_that_masks_nothing_says_nothing(model):
    # of 256 rows of a Bernoulli mask some mask no token
    pairs = [([8, 9, 10], list(range(4, 20)))] * 2
    one, other = log_likelihood(model, pairs, estimator="bernoulli", mc_num=256, batch_size=1)
    assert math.isfinite(one.value) and one == other and one.num_forwards <= 256


def test_rows_that_choices_share_run_once(model):
    rows: list[int] = []
    denoise = counting(model_denoiser(model), rows)
    single = [([1, 2, 3], [token]) for token in (4, 5, 6, 7)]
    together = log_likelihood(model, single, mc_num=1, denoise=denoise)
    assert sum(rows) == 1 and [value.num_forwards for value in together] == [1] * 4
    alone = [log_likelihood(model, [pair], mc_num=1)[0].value for pair in single]
    assert [value.value for value in together] == pytest.approx(alone, abs=token_error(model))
    rows.clear()
    log_likelihood(model, [([1, 2], [3, 4]), ([1, 2], [3, 5])], denoise=denoise)
    assert sum(rows) == 4  # (3, mask) and (mask, mask) of both; (mask, 4); (mask, 5)


def test_a_seed_repeats_its_value_and_prompts_have_masks_of_their_own(model):
    pair = ([1, 2], [3, 4, 5, 6, 7])
    first, same, other = (
        log_likelihood(model, [pair], mc_num=8, seed=seed)[0] for seed in (1, 1, 2)
    )
    assert first == same and first != other
    assert hidden_places(model, [1, 2], [3] * 9) != hidden_places(model, [1, 3], [3] * 9)


def hidden_places(model: LLaDA, prompt: list[int], answer: list[int]) -> list[tuple[int, ...]]:
    """Which answer tokens each row masks."""
    places: list[tuple[int, ...]] = []

    def denoise(canvas: Canvas, window: slice) -> Prediction:
        places.extend(
            tuple((row == MASK).nonzero()[:, 0].tolist()) for row in canvas.tokens[:, window]
        )
        return model_denoiser(model)(canvas, window)

    log_likelihood(model, [(prompt, answer)], mc_num=8, denoise=denoise)
    return places


def test_choices_of_a_question_have_the_same_masks_and_texts_without_a_question_their_own(model):
    assert hidden_places(model, [1, 2], list(range(3, 12))) == hidden_places(
        model, [1, 2], list(range(13, 22))
    )
    # a lone BOS
    assert hidden_places(model, [1], list(range(3, 12))) != hidden_places(
        model, [1], list(range(13, 22))
    )


def test_common_masks_compare_two_choices_with_less_variance_than_masks_of_their_own(model):
    prompt, answers = [1, 2, 3], ([4, 5, 6, 7, 8, 9, 10, 11], [4, 5, 6, 17, 8, 9, 10, 11])

    def values(answer: list[int], first_seed: int) -> torch.Tensor:
        return torch.tensor(
            [
                log_likelihood(model, [(prompt, answer)], mc_num=8, seed=first_seed + seed)[0].value
                for seed in range(60)
            ]
        )

    right, wrong, elsewhere = values(answers[0], 0), values(answers[1], 0), values(answers[1], 1000)
    assert (right - wrong).var() < (right - elsewhere).var() / 2


def test_only_the_answer_is_masked_and_every_row_sees_its_prompt(model):
    def denoise(canvas: Canvas, window: slice) -> Prediction:
        for row, start in zip(canvas.tokens.tolist(), canvas.answer_start.tolist()):
            assert [token for token in row[:start] if token >= 0] in [prompt for prompt, _ in PAIRS]
            assert MASK in row[start:] and start >= window.start
        return model_denoiser(model)(canvas, window)

    log_likelihood(model, PAIRS, mc_num=10, denoise=denoise)


def test_one_sample_of_a_longer_answer_has_no_standard_error(model):
    (value,) = log_likelihood(model, [([1], [2, 3])], mc_num=1)
    assert math.isnan(value.stderr) and value.num_forwards == 1


def test_a_likelier_answer_has_the_larger_value(model):
    tokens = torch.tensor([[1, 2, 3, MASK]])
    log_p = model(tokens)[0, -1].log_softmax(-1)
    order = [token for token in log_p.argsort(descending=True).tolist() if token != MASK]
    values = [
        value.value for value in log_likelihood(model, [([1, 2, 3], [token]) for token in order])
    ]
    assert values == sorted(values, reverse=True)
    # relative errors of parts of 1
    every = sum(map(math.exp, values)) + math.exp(log_p[MASK])
    assert every == pytest.approx(1, abs=token_error(model))


def test_wrong_requests_are_told_before_a_forward(model, make_model):
    def never(canvas: Canvas, window: slice) -> Prediction:
        raise AssertionError("a forward ran")

    for pairs, options, message in (
        ([([1], [2]), ([1], [])], {}, "answer 1 is empty: there is nothing to score"),
        (
            [([1] * 60, [2] * 5)],
            {},
            r"request 0 has 60 \+ 5 tokens, more than the model's context of 64",
        ),
        ([([1], [2])], dict(mc_num=0), "mc_num must be at least 1, got 0"),
        (
            [([1], [2])],
            dict(batch_size=0),
            "batch_size and batch_tokens must be at least 1, got 0 and None",
        ),
        (
            [([1], [2])],
            dict(batch_tokens=0),
            "batch_size and batch_tokens must be at least 1, got 32 and 0",
        ),
        (
            [([1], [2])],
            dict(estimator="mean"),
            "estimator must be one of count, published, published_dream, bernoulli, .*, got 'mean'",
        ),
        ([([1] * 20, [2]), ([1], [2] * 8)], dict(estimator="exact"), "exceeds mc_num=128"),
    ):
        with pytest.raises(ValueError, match=message):
            log_likelihood(model, pairs, denoise=never, **options)
    with pytest.raises(ValueError, match="names no mask token"):
        log_likelihood(make_model(mask_token_id=None), [([1], [2])], denoise=never)
    assert log_likelihood(model, [], denoise=never) == []
    assert (
        log_likelihood(make_model(mask_token_id=None), [([1], [2])], special=SpecialTokens(MASK))[
            0
        ].num_forwards
        == 1
    )


# ---- other estimators, rounds, greedy flags


@pytest.mark.parametrize("cfg_scale", [0.0, 1.5])
def test_the_chain_multiplies_conditionals_from_left_to_right(model, cfg_scale):
    rows: list[int] = []
    values = log_likelihood(
        model,
        PAIRS,
        estimator="chain",
        cfg_scale=cfg_scale,
        denoise=counting(model_denoiser(model), rows),
    )
    for (prompt, answer), value in zip(PAIRS, values):
        total = 0.0
        for place, token in enumerate(answer):
            masked = answer[:place] + [MASK] * (len(answer) - place)
            logits = model(torch.tensor([prompt + masked]))[0]
            if cfg_scale:
                blank = model(torch.tensor([[MASK] * len(prompt) + masked]))[0]
                logits = blank + (cfg_scale + 1) * (logits - blank)
            total += float(logits.log_softmax(-1)[len(prompt) + place, token])
        assert value.value == pytest.approx(
            total, abs=likelihood_error(model, len(answer), cfg_scale)
        )
        assert (value.stderr, value.num_forwards) == (0, len(answer))
    assert sum(rows) == sum(len(answer) for _, answer in PAIRS) * (2 if cfg_scale else 1)


@pytest.mark.parametrize("cfg_scale", [0.0, 1.5])
@pytest.mark.parametrize("estimator", ["count", "published", "bernoulli"])
def test_sampling_estimators_agree_with_enumeration_under_guidance(model, estimator, cfg_scale):
    pair = ([1, 2, 3], [4, 5, 6, 7, 8])
    exact = brute_force(model, *pair, cfg_scale)
    estimates = [
        log_likelihood(
            model, [pair], estimator=estimator, mc_num=16, seed=seed, cfg_scale=cfg_scale
        )[0]
        for seed in range(60)
    ]
    values = torch.tensor([estimate.value for estimate in estimates], dtype=torch.float64)
    bias = 0.3 if estimator == "published" else 0.0  # of its rounding; nats
    assert abs(values.mean() - exact) < 4 * values.std() / 60**0.5 + bias


def test_rows_are_drawn_until_the_error_is_small_enough_or_the_limit_is_reached(model, caplog):
    pair = ([1, 2, 3], list(range(4, 16)))
    loose, tight = (
        log_likelihood(model, [pair], mc_num=f"auto:{target}")[0] for target in (2, 0.25)
    )
    assert loose.stderr <= 2
    assert tight.stderr <= 0.25
    assert loose.num_forwards < tight.num_forwards <= 1024
    assert not caplog.messages
    (stopped,) = log_likelihood(model, [pair], mc_num="auto:0.001", mc_max=40)
    assert stopped.stderr > 0.001 and 30 < stopped.num_forwards <= 40
    assert caplog.messages == [
        "1 questions reached mc_max=40 rows before the standard error of 0.001 nats"
    ]


def test_a_question_ends_once_its_best_choice_is_settled(model):
    prompt, length = [1, 2, 3], 10
    likely = model(torch.tensor([prompt + [MASK] * length]))[0, 3:].argsort(-1, descending=True)
    pairs = [
        (prompt, likely[:, 0].tolist()),
        (prompt, likely[:, -1].tolist()),
        (prompt, likely[:-8, -2].tolist()),
    ]
    ranked = log_likelihood(model, pairs, mc_num="auto:0.01")
    patient = log_likelihood(model, pairs, mc_num="auto:0.01", mc_confidence=1, mc_max=256)
    assert (
        max(value.num_forwards for value in ranked)
        <= 16
        < min(value.num_forwards for value in patient[:2])
    )
    bound = likelihood_error(model, 2)  # two tokens: enumerated, and once
    assert ranked[2].stderr == 0 and patient[2] == pytest.approx(ranked[2], abs=bound)
    assert max(range(3), key=lambda n: ranked[n].value) == max(
        range(3), key=lambda n: patient[n].value
    )
    apart = log_likelihood(
        model, [([1], answer) for _, answer in pairs], mc_num="auto:0.01", mc_max=64
    )
    assert min(value.num_forwards for value in apart[:2]) > 32  # a lone token asks nothing


def test_an_answer_is_enumerated_once_that_takes_no_more_rows_than_sampling(model):
    pair = ([1, 2, 3], [4, 5, 6, 7, 8])
    (value,) = log_likelihood(model, [pair], mc_num="auto:0.001")
    assert value.value == pytest.approx(brute_force(model, *pair), abs=likelihood_error(model, 5))
    assert (value.stderr, value.num_forwards) == (0, 31)


def test_greedy_flags_are_those_of_decoding_one_token_a_step(model):
    config = SamplerConfig(gen_length=5, block_length=5, steps=5)
    prompts = [[1, 2], [7], [9, 8, 7, 6]]
    decoded = [sample.answer for sample in generate(model, prompts, config)]
    other = [answer[:-1] + [(answer[-1] + 1) % 38] for answer in decoded]
    rows: list[int] = []
    for cfg_scale in (0.0, 1.0):
        if cfg_scale:
            decoded = [
                sample.answer
                for sample in generate(model, prompts, replace(config, cfg_scale=cfg_scale))
            ]
            other = [answer[:-1] + [(answer[-1] + 1) % 38] for answer in decoded]
        right, wrong = (
            log_likelihood(
                model,
                list(zip(prompts, answers)),
                mc_num=1,
                cfg_scale=cfg_scale,
                batch_size=2,
                greedy_check=True,
                denoise=counting(model_denoiser(model), rows),
            )
            for answers in (decoded, other)
        )
        assert [value.greedy for value in right] == [True] * 3
        assert [value.greedy for value in wrong] == [False] * 3
        assert all(value.num_forwards == 1 + 5 for value in right)
        assert all(2 <= value.num_forwards <= 1 + 5 for value in wrong)
    plain = log_likelihood(model, list(zip(prompts, decoded)), mc_num=1)
    assert [value.greedy for value in plain] == [None] * 3 and isinstance(plain[0], LogLikelihood)


def test_a_choice_that_is_exact_is_not_run_again_in_later_rounds(model):
    rows: list[int] = []
    pairs = [([1, 2], list(range(3, 13))), ([1, 2], [3, 4])]
    values = log_likelihood(
        model,
        pairs,
        mc_num="auto:0.001",
        mc_max=64,
        mc_confidence=1,
        denoise=counting(model_denoiser(model), rows),
    )
    assert values[1].num_forwards == 3 and sum(rows) == sum(value.num_forwards for value in values)


# ---- Dream: shifted logits, an EOS after the answer


@pytest.fixture(scope="module")
def dream(make_model) -> LLaDA:
    return make_model(family="dream", n_kv_heads=2, include_qkv_bias=True)


def naive_dream_log_p(
    model: LLaDA, prompt: list[int], answer: list[int], hidden: Iterable[int]
) -> float:
    """Summed log-probability of the hidden tokens: logits of the column before, EOS shown."""
    masked = [MASK if place in hidden else token for place, token in enumerate(answer)]
    row = [*prompt, *masked, model.config.eos_token_id]
    log_p = model(torch.tensor([row]))[0].log_softmax(-1)
    return sum(float(log_p[len(prompt) + place - 1, answer[place]]) for place in hidden)


def subsets_of(length: int) -> list[tuple[int, ...]]:
    sizes = range(1, length + 1)
    return [subset for k in sizes for subset in itertools.combinations(range(length), k)]


WITH_PROMPT = [pair for pair in PAIRS if pair[0]]


@pytest.mark.parametrize("estimator", ["count", "exact"])
def test_dreams_bound_equals_enumeration_with_the_shift_and_the_eos_written_out(dream, estimator):
    values = log_likelihood(dream, WITH_PROMPT, estimator=estimator, mc_num=31)
    for (prompt, answer), value in zip(WITH_PROMPT, values):
        n = len(answer)
        expected = sum(
            naive_dream_log_p(dream, prompt, answer, hidden)
            / len(hidden)
            / math.comb(n, len(hidden))
            for hidden in subsets_of(n)
        )
        assert value.value == pytest.approx(expected, abs=likelihood_error(dream, n))
        assert value.stderr == 0 and value.num_forwards == 2**n - 1


def test_dreams_chain_is_the_log_probability_from_left_to_right(dream):
    values = log_likelihood(dream, WITH_PROMPT, estimator="chain")
    for (prompt, answer), value in zip(WITH_PROMPT, values):
        n = len(answer)
        expected = 0.0
        for place in range(n):
            later = list(range(place, n))
            row = [*prompt, *(MASK if at in later else t for at, t in enumerate(answer))]
            logits = dream(torch.tensor([[*row, dream.config.eos_token_id]]))[0]
            log_p = logits[len(prompt) + place - 1].log_softmax(-1)
            expected += float(log_p[answer[place]])
        assert value.value == pytest.approx(expected, abs=likelihood_error(dream, n))


def test_dreams_published_estimator_has_the_mean_of_its_integral_and_an_honest_error(dream):
    """Its p is uniform on (eps, 1), so a set of k of n tokens has the weight that the integral of
    p^(k - 1) (1 - p)^(n - k) over there says, divided by 1 - eps.
    """
    prompt, answer, eps = [1, 2, 3], [4, 5, 6, 7], 1e-3
    p = torch.linspace(eps, 1, 200_001, dtype=torch.float64)
    expected = 0.0
    for hidden in subsets_of(4):
        k = len(hidden)
        weight = torch.trapezoid(p ** (k - 1) * (1 - p) ** (4 - k), p) / (1 - eps)
        expected += float(weight) * naive_dream_log_p(dream, prompt, answer, hidden)
    options = dict(estimator="published_dream", mc_num=64, mc_batch=16)
    found = [
        log_likelihood(dream, [(prompt, answer)], seed=seed, **options)[0] for seed in range(100)
    ]
    values = torch.tensor([each.value for each in found], dtype=torch.float64)
    # 4 sigma, and the seeds are fixed
    assert abs(values.mean() - expected) < 4 * values.std() / 100**0.5
    reported = (sum(each.stderr**2 for each in found) / 100) ** 0.5
    assert 0.7 * values.std() < reported < 2 * values.std()


def test_count_has_less_variance_than_dreams_published_estimator_at_equal_rows(dream):
    pair = ([1, 2, 3], list(range(4, 16)))
    ours, theirs = (
        torch.tensor(
            [
                log_likelihood(dream, [pair], estimator=name, mc_num=32, seed=seed)[0].value
                for seed in range(30)
            ]
        ).var()
        for name in ("count", "published_dream")
    )
    assert ours < theirs / 2


def test_dreams_greedy_flag_is_that_of_decoding_by_the_shifted_logits(dream):
    prompt = [1, 2, 3]
    row, answer = [*prompt, MASK, MASK, MASK, dream.config.eos_token_id], [0, 0, 0]
    for _ in range(3):
        logits = dream(torch.tensor([row]))[0]
        logits[:, MASK] = -math.inf
        best = {at: logits[at - 1].softmax(-1).max(-1) for at in range(3, 6) if row[at] == MASK}
        place = max(best, key=lambda at: float(best[at].values))
        row[place] = answer[place - 3] = int(best[place].indices)
    pairs = [(prompt, answer), (prompt, [answer[0], answer[1], (answer[2] + 1) % 30])]
    found = log_likelihood(dream, pairs, mc_num=7, greedy_check=True)
    assert [each.greedy for each in found] == [True, False]


def test_a_shifted_model_refuses_an_answer_without_a_prompt(dream):
    with pytest.raises(ValueError, match="request 1 has no prompt: this model predicts each token"):
        log_likelihood(dream, [([1], [2]), ([], [3])])


def test_the_eos_that_is_shown_counts_for_the_context(dream):
    limit = dream.config.max_sequence_length
    pair = ([1] * (limit - 4), [2, 3, 4])
    assert log_likelihood(dream, [pair], mc_num=7)[0].num_forwards == 7
    with pytest.raises(ValueError, match=rf"more than the model's context of {limit - 1}"):
        log_likelihood(dream, [([1, *pair[0]], pair[1])], mc_num=7)
