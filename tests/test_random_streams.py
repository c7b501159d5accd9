"""The counter-based generator: uniform, independent, the same for a request wherever it stands."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from llada_plugins.diffusion.random_streams import request_key, uniform
from tests.tolerance import EPS64

pytestmark = pytest.mark.floats

NUM = 20_000
MASK64 = (1 << 64) - 1


def stream(axis: str, seed: int = 0) -> torch.Tensor:
    """NUM draws along one of the counters that the sampler varies."""
    key, running = torch.tensor([request_key(seed, [1, 2, 3])]), torch.arange(NUM)
    if axis == "key":
        return uniform(
            torch.tensor([request_key(seed, [number]) for number in range(NUM)]), 0, 5, 1
        )
    counters = {"step": (running, 5, 1), "position": (0, running, 1), "use": (0, 5, running)}[axis]
    return uniform(key, *counters)


@pytest.mark.parametrize("axis", ["key", "step", "position", "use"])
def test_draws_are_uniform_along_every_counter(axis):
    draws = stream(axis)
    assert draws.shape == (NUM,) and draws.dtype == torch.float64
    # a fixed seed: passes always or never
    assert stats.kstest(draws.numpy(), "uniform").pvalue > 1e-3
    assert abs(draws.mean() - 1 / 2) < 4 * (1 / 12 / NUM) ** 0.5
    assert abs(draws.pow(2).mean() - 1 / 3) < 4 * (4 / 45 / NUM) ** 0.5


@pytest.mark.parametrize("axis", ["key", "step", "position", "use"])
def test_neighbouring_counters_are_uncorrelated(axis):
    draws = stream(axis)
    for lag in (1, 2, 8):
        assert (
            abs(stats.pearsonr(draws[:-lag].numpy(), draws[lag:].numpy()).statistic) < 4 / NUM**0.5
        )


def test_different_counters_and_keys_give_uncorrelated_streams():
    key, running = torch.tensor([request_key(0, [1])]), torch.arange(NUM)
    streams = torch.stack(
        [
            uniform(key, 0, 0, running),
            uniform(key, 1, 0, running),
            uniform(key, 0, 1, running),
            uniform(key, running, 0, 0),
            uniform(key, 0, running, 0),
            uniform(key + 1, 0, 0, running),
            stream("use", seed=1),
        ]
    )
    correlation = torch.corrcoef(streams) - torch.eye(len(streams))
    assert correlation.abs().max() < 5 / NUM**0.5


def test_pairs_of_draws_fill_the_unit_square():
    first, second = stream("position")[0::2], stream("position")[1::2]
    counts = torch.histogramdd(
        torch.stack([first, second], 1), bins=[8, 8], range=[0.0, 1.0, 0.0, 1.0]
    ).hist
    assert stats.chisquare(counts.flatten().numpy()).pvalue > 1e-3


def test_a_draw_does_not_depend_on_the_batch_around_it():
    keys = torch.tensor([request_key(0, [number]) for number in range(5)])[:, None, None]
    rows, places = torch.arange(4)[:, None], torch.arange(6) + 1
    whole = uniform(keys, 3, rows, places)  # (5, 4, 6)
    shuffled = uniform(keys.flip(0), 3, rows.flip(0), places)
    assert torch.equal(shuffled.flip(0, 1), whole)
    assert float(whole[2, 1, 4]) == float(uniform(keys[2, 0], 3, 1, 5))


def _before_mix(value: int) -> int:
    """The state that SplitMix64 sends to `value`: its steps undone one by one, in
    Python's integers.
    """

    def unshift(z: int, bits: int) -> int:
        result = z
        for _ in range(64 // bits + 1):
            result = z ^ (result >> bits)
        return result

    value = unshift(value, 31) * pow(0x94D049BB133111EB, -1, 1 << 64) & MASK64
    value = unshift(value, 27) * pow(0xBF58476D1CE4E5B9, -1, 1 << 64) & MASK64
    value = unshift(value, 30) - 0x9E3779B97F4A7C15 & MASK64
    return value - (1 << 64) if value >> 63 else value


@pytest.mark.parametrize("hashed", [0, MASK64])
def test_draws_are_never_0_or_1_even_at_the_extreme_hashes(hashed):
    draw = float(uniform(torch.tensor([_before_mix(hashed)])))
    assert 0 < draw < 1
    assert abs(draw - hashed / MASK64) <= EPS64 / 2  # the distance of neighbouring draws


def test_request_key_depends_on_seed_and_every_sequence():
    keys = [
        request_key(0, [1, 2]),
        request_key(1, [1, 2]),
        request_key(0, [2, 1]),
        request_key(0, [1], [2]),
        request_key(0, [1, 2], []),
        request_key(0, [12]),
        request_key(0),
    ]
    assert len(set(keys)) == len(keys)
    assert all(0 <= key < 1 << 63 for key in keys)


def test_request_key_depends_on_the_ids_not_on_their_container():
    assert request_key(0, torch.tensor([4, 5])) == request_key(0, (4, 5)) == request_key(0, [4, 5])


def test_draws_are_the_recorded_ones():
    """Recorded by `uniform(torch.tensor([request_key(7, [1, 2, 3])]), 2,
    torch.arange(4), 9)`: seeded answers stay what they were.
    """
    assert request_key(7, [1, 2, 3]) == 798508650536147288
    draws = uniform(torch.tensor([request_key(7, [1, 2, 3])]), 2, torch.arange(4), 9)
    assert draws.tolist() == [
        0.7959536892429545,
        0.704789278578409,
        0.19239397596885965,
        0.9506636913040093,
    ]
