"""Estimators on a table of log-probabilities: means equal to enumeration, honest
errors, stated budgets. No model.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from llada_plugins.diffusion.random_streams import request_key
from llada_plugins.likelihood.budget import budget, check_length
from llada_plugins.likelihood.control_variate import SHRINKAGE, terms
from llada_plugins.likelihood.estimators import (
    ESTIMATORS,
    Masks,
    bernoulli_masks,
    count_masks,
    enumerated,
    published_masks,
)
from llada_plugins.likelihood.standard_error import is_settled, mean_and_error
from tests.tolerance import EPS64, rounding

pytestmark = pytest.mark.floats

LENGTH = 6


def table(length: int, seed: int = 0) -> Tensor:
    """log p of each token under each of the 2^length masks (as binary numbers): by
    token, by number of masks, by all of it.
    """
    generator = torch.Generator().manual_seed(seed)
    level = -5 * torch.rand(length, generator=generator, dtype=torch.float64)
    size = (torch.arange(2**length)[:, None] >> torch.arange(length) & 1).sum(-1, keepdim=True)
    return (
        level
        + 0.4 * (size % 2)
        - 0.2 * size
        - torch.rand(2**length, length, generator=generator, dtype=torch.float64)
    )


def neighbourly(length: int, seed: int = 0) -> Tensor:
    """The same, where each token suffers from masks beside it as well."""
    generator = torch.Generator().manual_seed(seed)
    place = torch.arange(length)
    effect = torch.rand(length, length, generator=generator, dtype=torch.float64) / (
        place[:, None] - place
    ).abs().clamp(min=1)
    masked = (torch.arange(2**length)[:, None] >> place & 1).double()
    return table(length, seed) / 2 - 2 * masked @ effect


def looked_up(log_p: Tensor, masks: Masks) -> Tensor:
    """What a model with this table says of the masks' scored tokens."""
    number = (masks.masked.long() << torch.arange(masks.masked.shape[1])).sum(-1)
    return log_p[number] * masks.scored


def expected(log_p: Tensor, share: dict[int, float]) -> float:
    """Sum over counts k of share[k] E_{|S| = k} [n / k sum_S log p]."""
    length, total = log_p.shape[1], 0.0
    for k, weight in share.items():
        subsets = list(itertools.combinations(range(length), k))
        said = sum(
            float(log_p[sum(1 << p for p in subset), p]) for subset in subsets for p in subset
        )
        total += weight * length / k * said / len(subsets)
    return total


def uniform_counts(length: int) -> dict[int, float]:
    return dict.fromkeys(range(1, length + 1), 1 / length)


def published_counts(length: int, batch: int) -> dict[int, float]:
    """How often the published code draws each count: its own rounding for every first count."""
    share = dict.fromkeys(range(1, length + 1), 0.0)
    for first in range(1, length + 1):
        for row in range(batch):
            # Python rounds half to even as well
            share[(round(first + row * length / batch) - 1) % length + 1] += 1 / length / batch
    return share


def estimates(
    name: str, log_p: Tensor, num: int, seeds: int, batch: int = 8
) -> tuple[Tensor, Tensor]:
    found = []
    for seed in range(seeds):
        masks = ESTIMATORS[name](log_p.shape[1], range(num), request_key(seed), batch)
        found.append(mean_and_error([terms(masks, looked_up(log_p, masks))], masks.sweep))
    return torch.tensor(found, dtype=torch.float64).unbind(-1)


@pytest.mark.parametrize(
    "name, share",
    [
        ("count", uniform_counts(LENGTH)),
        ("bernoulli", uniform_counts(LENGTH)),
        ("published", published_counts(LENGTH, 8)),
    ],
)
def test_sampled_estimates_have_the_enumerated_mean_and_an_honest_error(name, share):
    log_p = table(LENGTH)
    values, errors = estimates(name, log_p, 16, 500)
    # 4 sigma, and the seeds are fixed
    assert abs(values.mean() - expected(log_p, share)) < 4 * values.std() / 500**0.5
    assert 0.9 * values.std() < errors.square().mean().sqrt() < 2 * values.std()


@pytest.mark.parametrize("length, num", [(8, 8), (9, 32), (9, 100)])
@pytest.mark.parametrize("make", [table, neighbourly])
def test_counts_estimate_is_unbiased_with_an_honest_error_at_any_number_of_rows(make, length, num):
    log_p = make(length)
    values, errors = estimates("count", log_p, num, 400)
    assert (
        abs(values.mean() - expected(log_p, uniform_counts(length))) < 4 * values.std() / 400**0.5
    )
    assert 0.9 * values.std() < errors.square().mean().sqrt() < 2 * values.std()


def test_published_rounding_has_another_mean_than_the_bound():
    # 0.5, 1.5, 0.5, 1.5 of uniform
    assert published_counts(4, 8) == {1: 0.125, 2: 0.375, 3: 0.125, 4: 0.375}
    log_p = table(4)
    values, _ = estimates("published", log_p, 64, 300)
    assert (
        abs(values.mean() - expected(log_p, published_counts(4, 8))) < 4 * values.std() / 300**0.5
    )
    assert abs(values.mean() - expected(log_p, uniform_counts(4))) > 10 * values.std() / 300**0.5


@pytest.mark.parametrize("length", [1, 2, 5, LENGTH])
def test_enumeration_is_the_bound_and_the_chain_is_the_chain_rule(length):
    log_p = table(length)
    for masks in (
        ESTIMATORS["exact"](length, range(8), 0, 8),
        count_masks(length, range(2**length - 1), 0, 8),
    ):
        assert masks.exact and len({tuple(row) for row in masks.masked.tolist()}) == 2**length - 1
        assert float(terms(masks, looked_up(log_p, masks)).mean()) == pytest.approx(
            expected(log_p, uniform_counts(length)),
            abs=rounding(length * 2**length, log_p.sum(), eps=EPS64),
        )
    chain = ESTIMATORS["chain"](length, range(8), 0, 8)
    # all from j on masked
    conditionals = [float(log_p[sum(1 << p for p in range(j, length)), j]) for j in range(length)]
    assert chain.exact
    assert float(terms(chain, looked_up(log_p, chain)).mean()) == pytest.approx(
        sum(conditionals), abs=rounding(length, sum(conditionals), eps=EPS64)
    )


def test_one_row_fewer_than_there_are_masks_is_a_sample():
    assert not count_masks(5, range(30), 0, 8).exact and not count_masks(40, range(128), 0, 8).exact


@pytest.mark.parametrize("make", [table, neighbourly])
def test_count_has_a_fifth_of_the_published_variance_at_equal_rows(make):
    log_p = make(9)
    ours, theirs = (estimates(name, log_p, 32, 300)[0].var() for name in ("count", "published"))
    assert ours < theirs / 5  # .12 of it on both tables


def test_adjustment_keeps_the_value_where_all_tokens_are_masked_or_one_row_is_all_there_is():
    whole = Masks(
        torch.ones(4, 3, dtype=torch.bool),
        torch.ones(4, 3, dtype=torch.bool),
        torch.ones(4).double(),
        torch.ones(4).double(),
    )
    log_p = -torch.rand(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert float(terms(whole, log_p).mean()) == pytest.approx(float(log_p.sum(-1).mean()))
    one = count_masks(9, range(1), 5, 8)
    said = looked_up(table(9), one)
    expected = terms(one._replace(share=None), said)
    torch.testing.assert_close(
        terms(one, said), expected, atol=rounding(9, expected, eps=EPS64), rtol=0
    )


def fitted(
    masked: Tensor, log_p: Tensor, row: int, token: int, share: float
) -> tuple[float, float]:
    """What the other rows predict of a token in this row, and of one with a share of
    masked tokens on average: least squares, plainly.
    """
    length = masked.shape[1]

    def explained(mask: Tensor) -> list[float]:
        rate = (int(mask.sum()) - 1) / (length - 1)
        near = [
            (float(mask[place]) - rate) / abs(place - token) ** 0.5
            for place in range(length)
            if 0 < abs(place - token) <= 8
        ]
        return [1.0, 2 * rate - 1, *near]

    others = [number for number in range(len(masked)) if number != row]
    level = float(log_p[others].sum() / masked[others].sum())
    known = [number for number in others if masked[number, token]]
    design = torch.tensor(
        [explained(masked[number]) for number in known] + [[0.0] * len(explained(masked[0]))],
        dtype=torch.float64,
    )
    # slopes have a prior of one row, the intercept one of a tenth of a row
    ridge = torch.eye(design.shape[1]).double()
    ridge[0, 0] = SHRINKAGE**0.5
    said = torch.cat([log_p[known, token], torch.zeros(1).double(), level * ridge[0]])
    slopes = torch.linalg.lstsq(torch.cat([design, ridge]), said[:, None]).solution[:, 0]
    mine = torch.tensor(explained(masked[row]), dtype=torch.float64)
    return float(mine @ slopes), float(slopes[0] + share * slopes[1])


def test_adjustment_is_a_ridge_regression_over_the_other_rows():
    length, num = 12, 10
    masks = count_masks(length, range(num), request_key(1), 8)
    log_p = (
        -torch.rand(num, length, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        * masks.masked
    )
    residual, back = torch.zeros(num).double(), 0.0
    for row in range(num):
        predicted = [
            fitted(masks.masked, log_p, row, token, float(masks.share[row]))
            for token in range(length)
        ]
        hidden = masks.masked[row].nonzero()[:, 0].tolist()
        residual[row] = masks.weight[row] * sum(
            float(log_p[row, token]) - predicted[token][0] for token in hidden
        )
        back += (
            float(masks.weight[row])
            * len(hidden)
            / length
            * sum(typical for _, typical in predicted)
            / num
        )
    # sums over rows and tokens, a matrix of condition < num
    bound = rounding(num * length * num, masks.weight * length, eps=EPS64)
    torch.testing.assert_close(terms(masks, log_p), residual + back, atol=bound, rtol=0)


@pytest.mark.parametrize("name", ["count", "published", "exact", "chain"])
def test_a_model_that_says_minus_one_nat_a_token_scores_minus_the_length_in_every_row(name):
    masks = ESTIMATORS[name](LENGTH, range(16), 3, 8)
    rows = terms(masks, -masks.scored.double())
    assert float(rows.mean()) == pytest.approx(
        -LENGTH, abs=rounding(16 * LENGTH, LENGTH, eps=EPS64)
    )
    if not masks.exact:
        assert rows.tolist() == pytest.approx(
            [-LENGTH] * 16, abs=rounding(16 * LENGTH, LENGTH, eps=EPS64)
        )


@pytest.mark.parametrize("length, num", [(7, 16), (10, 64), (16, 16), (33, 8), (9, 1)])
def test_counts_are_stratified_and_small_ones_drawn_more_often_for_less_weight(length, num):
    rate = [k**-0.5 for k in range(1, length + 1)]
    often = [sum(rate[:k]) / sum(rate) for k in range(length + 1)]  # of rows with at most k masks
    masks = count_masks(length, range(num), request_key(0, [1]), 8)
    count = masks.masked.sum(-1)
    for row, k in enumerate(count.tolist()):
        assert row / num < often[k]
        assert often[k - 1] < (row + 1) / num + rounding(length, 1.0, eps=EPS64)
    width = masks.weight * count / length  # of the counts that a row stands for
    assert float(width.sum()) == pytest.approx(num)
    assert (width.diff() >= -rounding(length + num, num, eps=EPS64)).all()
    # shares run from -1 to 1, uniformly
    assert float((width * masks.share).sum()) == pytest.approx(
        0, abs=rounding(num * length, width, eps=EPS64)
    )
    drawn = [
        count_masks(length, range(num), request_key(seed), 8).masked.sum(-1) for seed in range(400)
    ]
    share = 2 * (torch.stack(drawn) - 1) / (length - 1) - 1  # (seeds, S)
    # 400 seeds; some counts are rarer than that
    assert ((share.mean(0) - masks.share).abs() < 4 * share.std(0) / 20 + 0.01).all()


def test_weighted_counts_and_positions_are_uniform():
    length, num, seeds = 7, 16, 1500
    masks = [count_masks(length, range(num), request_key(seed), 8) for seed in range(seeds)]
    masked = torch.cat([each.masked for each in masks])
    weight = torch.cat([each.weight for each in masks])
    count = masked.sum(-1)
    counts = torch.arange(1, length + 1)[:, None]
    weighed = weight * count * (count == counts)  # (length, seeds * num)
    share = weighed.view(length, seeds, num).sum(-1) / length / num  # (length, seeds)
    assert ((share.mean(-1) - 1 / length).abs() < 4 * share.std(-1) / seeds**0.5).all()
    places = masked[count == 2]
    pairs = torch.bincount(
        (places.int() * torch.arange(length)).sum(-1) * 49
        + (places.int() * torch.arange(length) ** 2).sum(-1)
    )
    pairs = pairs[pairs > 0]
    assert len(pairs) == math.comb(length, 2) and stats.chisquare(pairs.numpy()).pvalue > 1e-3


def test_bernoulli_masks_every_token_at_its_rows_rate():
    masks = [bernoulli_masks(5, range(40), request_key(seed), 8) for seed in range(300)]
    rate = torch.stack([1 / each.weight for each in masks])  # (seeds, S)
    assert ((rate * 40).long() == torch.arange(40)).all()  # one in each of 40 intervals
    share = torch.stack([each.masked.double().mean(-1) for each in masks])
    assert ((share - rate).mean(0).abs() < 4 * (0.25 / 5 / 300) ** 0.5).all()


@pytest.mark.parametrize("name", ["count", "bernoulli", "published"])
def test_rounds_are_drawn_anew_and_a_longer_answers_masks_resemble_a_shorter_ones(name):
    draw = ESTIMATORS[name]
    key, other = request_key(0, [1, 2]), request_key(0, [1, 3])
    assert not torch.equal(
        draw(12, range(16), key, 8).masked, draw(12, range(16, 32), key, 8).masked
    )
    assert torch.equal(draw(12, range(16), key, 8).masked, draw(12, range(16), key, 8).masked)
    if name != "published":  # whose rounding shifts counts with the length
        shorter = draw(12, range(64), key, 8).masked
        near, far = (
            float((shorter == draw(13, range(64), each, 8).masked[:, :12]).double().mean())
            for each in (key, other)
        )
        assert near > 0.9 and far < 0.75


def test_error_of_two_rows_is_half_their_difference_and_of_one_is_unknown():
    assert mean_and_error([torch.tensor([1.0, 4.0]).double()]) == (2.5, 1.5)
    assert math.isnan(mean_and_error([torch.tensor([1.0]).double()])[1])
    assert math.isnan(mean_and_error([torch.arange(8.0).double()], sweep=8)[1])
    value, error = mean_and_error(
        [torch.tensor([1.0, 4.0]).double(), torch.tensor([2.0, 2.0]).double()]
    )
    # rounds of equal size: the mean of both, and the root of a quarter of 1.5 squared
    assert (value, error) == (2.25, 0.75)


def test_a_trend_between_strata_adds_no_error():
    trend = torch.linspace(0, 10, 1000).double()
    assert mean_and_error([trend])[1] < 0.02 * float(trend.std()) / 1000**0.5 * 10


def test_choices_are_settled_once_the_margin_is_beyond_chance_by_sum_and_by_mean():
    noise = torch.randn(64, generator=torch.Generator().manual_seed(0)).double()

    def settled(
        *choices: Tensor, lengths: tuple[int, ...] = (1, 1), confidence: float = 0.99
    ) -> bool:
        return is_settled([[choice] for choice in choices], lengths, confidence, 4)

    assert settled(noise, noise - 1)  # the same noise: no chance in the difference
    assert not settled(noise, noise.roll(7) - 0.1)
    assert settled(noise, noise.roll(7) - 3)
    assert not settled(noise, noise.roll(7) - 0.6, confidence=0.999999)
    assert not settled(noise, noise)  # equal choices never are
    assert settled(noise - 20, noise - 10, lengths=(2, 2))
    assert not settled(noise - 20, noise - 10, lengths=(2, 1))


def test_a_settled_best_choice_is_rarely_wrong():
    generator, wrong, found = torch.Generator().manual_seed(1), 0, 0
    for _ in range(2000):
        choices = torch.randn(3, 16, generator=generator).double() + torch.tensor(
            [[0.3], [0.0], [0.0]]
        )
        if is_settled([[choice] for choice in choices], [1, 1, 1], 0.9, 1):
            found += 1
            wrong += int(choices.mean(-1).argmax()) != 0
    assert found > 50 and wrong < 0.1 * 2000  # of all questions, which is what the confidence is of


def settling_margin(num_rows: int, confidence: float) -> float:
    """The margin, in standard errors, from which two choices of few rows are settled; bisected."""
    noise = torch.randn(num_rows, generator=torch.Generator().manual_seed(2)).double()
    noise = noise - noise.mean()
    _, error = mean_and_error([noise])
    low, high = 0.0, 100.0
    while high - low > 1e-9:
        margin = (low + high) / 2
        choices = [[noise + margin * error], [torch.zeros(num_rows).double()]]
        if is_settled(choices, [1, 1], confidence, 1):
            high = margin
        else:
            low = margin
    return high


@pytest.mark.parametrize("num_rows", [8, 16, 64])
@pytest.mark.parametrize("confidence", [0.9, 0.99, 0.999])
def test_the_margin_that_settles_is_students_quantile_of_the_rows(num_rows, confidence):
    freedom = 2 / 3 * num_rows
    z, student = stats.norm.ppf(confidence), stats.t.ppf(confidence, freedom)
    # what Student's quantile has beyond its first correction to the normal one, in the next
    # order of Fisher's expansion and its share of that for all that follow
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96 / freedom**2
    rest = second * (1 + z**2 / freedom)
    margin = settling_margin(num_rows, confidence)
    assert student - rest < margin < student
    assert margin - z > (student - z) / 2  # most of what few rows add is there


def test_few_rows_settle_a_wrong_choice_about_as_rarely_as_the_confidence_says():
    generator, confidence, questions = torch.Generator().manual_seed(4), 0.98, 6000
    drawn = torch.randn(questions, 2, 8, generator=generator).double()
    wrong = 0  # of two choices of one mean, the first is called the better
    for first, other in drawn:
        if first.mean() > other.mean():
            wrong += is_settled([[first], [other]], [1, 1], confidence, 1)
    # half more at most: the error is an estimate, and its degrees of freedom a rule of thumb
    assert 0 < wrong < 1.5 * (1 - confidence) * questions


def test_rounds_double_up_to_the_limit():
    assert list(budget("count", 128).rounds()) == [range(128)]
    assert list(budget("count", "auto:0.1", 100).rounds()) == [
        range(16),
        range(16, 32),
        range(32, 64),
        range(64, 100),
    ]
    assert list(budget("bernoulli", "auto:2", 7).rounds()) == [range(7)]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ("mean", 8),
            "estimator must be one of count, published, published_dream, bernoulli, .*, got 'mean'",
        ),
        (("count", 0), "mc_num must be at least 1, got 0"),
        (("count", "auto"), "mc_num must be a whole number, got 'auto': or auto:NATS"),
        (("count", None), "mc_num must be a whole number, got None: or auto:NATS"),
        (("count", 3.5), "mc_num must be a whole number, got 3.5: or auto:NATS"),
        (("count", "auto:-1"), "got 'auto:-1'"),
        (("count", "auto:nan"), "got 'auto:nan'"),
        (("count", "many:1"), "got 'many:1'"),
        (
            ("chain", "auto:1"),
            "needs an estimator that can go on drawing, count or bernoulli; got 'chain'",
        ),
        (("count", 8, 100), "mc_max has no effect without mc_num=auto:NATS"),
        (("count", 8, None, 0.9), "mc_confidence has no effect without mc_num=auto:NATS"),
        (
            ("count", 8, None, None, 4),
            "mc_batch has no effect without estimator=published or .*_dream",
        ),
        (("count", "auto:1", 0), "mc_max must be at least 1, got 0"),
        (("count", "auto:1", None, 0.2), "mc_confidence must be from 0.5 to 1, got 0.2"),
        (("published", 12), r"needs mc_num to be a multiple of mc_batch \(8\), got 12"),
    ],
)
def test_budgets_that_mean_nothing_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        budget(*arguments)


def test_exact_refuses_what_it_cannot_enumerate():
    with pytest.raises(
        ValueError,
        match=r"2\^8 - 1 rows for an answer of 8 tokens, which exceeds mc_num=128: raise mc_num "
        r"or use",
    ):
        check_length("exact", 8, budget("exact", 128))
    check_length("exact", 7, budget("exact", 127)), check_length("exact", 6, budget("exact", 1))
    check_length("count", 800, budget("count", 1))
    assert len(enumerated(7).masked) == 127


def test_published_sweeps_are_the_golden_counts():
    counts = published_masks(4, range(80), request_key(0), 8).masked.sum(-1).view(10, 8)
    for row in counts.tolist():
        first = row[0]
        assert row == [(round(first + i * 0.5) - 1) % 4 + 1 for i in range(8)]


@pytest.mark.parametrize("limit", [2, 3, 16, 17, 18, 33, 65, 100])
def test_rounds_cover_all_rows_and_none_is_of_one_row(limit):
    rounds = list(budget("count", "auto:0.1", mc_max=limit).rounds())
    assert [row for each in rounds for row in each] == list(range(limit))
    assert min(map(len, rounds)) > 1


@pytest.mark.parametrize("num", [1, 16])
def test_an_answer_with_a_token_ruled_out_is_impossible(num):
    masks = ESTIMATORS["count"](20, range(num), 0, 8)
    log_p = torch.where(masks.scored, -1.0, 0.0).double()
    log_p[0, masks.scored[0].nonzero()[0]] = -math.inf
    value, _ = mean_and_error([terms(masks, log_p)])
    assert value == -math.inf
