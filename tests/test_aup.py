"""The AUP score is the published one, and what can be said of it in general holds."""

from __future__ import annotations

import math
import random
import sys

import pytest

from llada_plugins.reports.aup import Measured, aup, counted, weight


def curve(*points: tuple[float, float]) -> list[Measured]:
    return [Measured(*point) for point in points]


def published(points: list[Measured], best: float) -> float:
    """The formula of arXiv 2601.07568 as it is written, term by term."""
    rho, y = zip(*sorted(points))
    keep = [i for i in range(len(rho)) if y[i] >= y[0] - 5]
    total = rho[0] * y[0]
    for before, i in zip(keep, keep[1:]):
        w, w_before = (min(math.exp(-3 * (1 - y[j] / best)), 1) for j in (i, before))
        total += 0.5 * (rho[i] - rho[before]) * (y[i] * w + y[before] * w_before)
    return total


def random_curve(draw: random.Random, least: float = 55.0) -> list[Measured]:
    """Different parallelisms; none is more than 5 points below the slowest."""
    rhos = sorted(draw.sample(range(1, 40), draw.randrange(1, 7)))
    return curve(
        *(
            (rho / 4, draw.uniform(least + 5, 90) if not i else draw.uniform(least, 90))
            for i, rho in enumerate(rhos)
        )
    )


@pytest.mark.parametrize(
    ("points", "best", "expected"),
    [
        (curve((1, 72.55)), 74.98, 72.55),
        (curve((1, 74.02), (9.11, 73.09)), 74.98, 637.65),
    ],
)
def test_published_scores_are_reproduced(points, best, expected):
    assert round(aup(points, best), 2) == expected


def test_the_score_is_the_published_formula_on_random_curves_in_any_order():
    draw = random.Random(1)
    for _ in range(200):
        points = random_curve(draw, least=draw.choice([55.0, 84.0]))
        best = draw.uniform(80, 100)
        expected = published(points, best)
        draw.shuffle(points)
        # less than ten terms of about six roundings each
        assert aup(points, best) == pytest.approx(expected, rel=64 * sys.float_info.epsilon)


def test_without_y_max_the_best_accuracy_seen_counts_fully():
    points = curve((1, 70), (3, 72), (5, 69))
    assert aup(points) == aup(points, 72.0) and weight(72.0, 72.0) == weight(80.0, 72.0) == 1.0


def test_points_more_than_five_below_the_slowest_are_dropped_wherever_they_stand():
    kept = curve((1, 70), (4, 65))
    assert counted(curve((1, 70), (2, 64.99), (4, 65), (9, 20))) == kept
    assert aup(curve((1, 70), (2, 64.99), (4, 65), (9, 20)), 80) == aup(kept, 80)


def test_a_flat_curve_is_parallelism_times_accuracy():
    assert aup(curve((1, 80), (2.5, 80), (6, 80))) == pytest.approx(6 * 80)


def test_a_point_beyond_all_others_never_lowers_the_score_at_a_given_y_max():
    draw = random.Random(2)
    for _ in range(200):
        points = random_curve(draw)
        further = Measured(max(points).parallelism + draw.random(), draw.uniform(0, 100))
        assert aup([*points, further], 95) >= aup(points, 95)


def test_more_accuracy_at_a_counted_point_but_the_slowest_never_lowers_the_score():
    draw = random.Random(3)
    for _ in range(200):
        points = random_curve(draw)
        place = draw.randrange(len(points))
        if place == 0:
            continue
        kept = points[place].accuracy >= points[0].accuracy - 5
        better = list(points)
        better[place] = Measured(
            points[place].parallelism, draw.uniform(points[place].accuracy, 100)
        )
        assert not kept or aup(better, 95) >= aup(points, 95)


@pytest.mark.parametrize(
    ("points", "more"),
    [
        # a better slowest point raises what is dropped: 66 was counted before
        (curve((1, 70), (9, 66)), Measured(1, 72)),
        # it dominates a point that was dropped, and lies below the line between the others
        (curve((1, 70), (2, 60), (10, 80)), Measured(2.5, 66)),
    ],
)
def test_a_point_that_dominates_another_may_lower_the_score(points, more):
    assert any(more.parallelism >= p.parallelism and more.accuracy >= p.accuracy for p in points)
    assert aup([*points, more], 90) < aup(points, 90)


def test_of_equal_parallelism_the_most_accurate_counts_whatever_the_order():
    points = curve((1, 70), (2, 69), (2, 67), (3, 68))
    assert aup(points, 75) == aup(points[::-1], 75) == aup(curve((1, 70), (2, 69), (3, 68)), 75)


@pytest.mark.parametrize(
    ("points", "best", "message"),
    [
        ([], None, "at least one point"),
        (curve((0, 50)), None, "positive number of tokens a forward, got 0"),
        (curve((math.nan, 50)), None, "positive number"),
        (curve((1, 101)), None, r"in percent \(0-100\), got 101"),
        (curve((1, 50)), 0.0, "y_max must be a percentage above 0"),
    ],
)
def test_what_has_no_score_is_told(points, best, message):
    with pytest.raises(ValueError, match=message):
        aup(points, best)


def test_a_curve_without_a_right_answer_scores_nothing():
    assert aup(curve((1, 0), (3, 0))) == 0.0
