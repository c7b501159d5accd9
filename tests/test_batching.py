"""Batches stay full, keep to their capacity, and lose or repeat no row."""

from __future__ import annotations

import random

import pytest

from llada_plugins.diffusion.denoiser import capacity
from llada_plugins.sampling.batching import Queue


def simulate(
    lengths: list[int], blocks: list[int], num_blocks: int, at_once
) -> list[tuple[int, list[int]]]:
    """Batches in the order taken; row n ends after blocks[n] blocks."""
    queue, taken = Queue(lengths, num_blocks, at_once), []
    while queue:
        number, rows = queue.take()
        taken.append((number, rows))
        queue.put(
            number + 1, [row for row in rows if blocks[row] > number + 1]
        ) if number + 1 < num_blocks else None
    return taken


CASES = [(seed, size) for seed in range(8) for size in (1, 3, 8)]


@pytest.mark.parametrize("seed, size", CASES)
def test_every_row_fills_its_blocks_once_and_in_order(seed, size):
    draw = random.Random(seed)
    lengths, blocks = [[draw.randint(1, most) for _ in range(40)] for most in (50, 5)]
    taken = simulate(lengths, blocks, 5, capacity(size))
    for row in range(40):
        assert [number for number, rows in taken if row in rows] == list(range(blocks[row]))
    assert all(
        len(rows) <= size and rows == sorted(rows, key=lambda row: -lengths[row])
        for _, rows in taken
    )


@pytest.mark.parametrize("seed, size", CASES)
def test_no_more_than_one_batch_of_each_block_is_not_full(seed, size):
    draw = random.Random(seed)
    blocks = [draw.randint(1, 5) for _ in range(100)]
    taken = simulate([10] * 100, blocks, 5, capacity(size))
    for number in range(5):
        assert sum(len(rows) < size for each, rows in taken if each == number) <= 1
    # beside one after another: sum of each batch's slowest row
    assert len(taken) <= sum(blocks) / size + 5


def test_few_rows_are_in_work_and_answers_end_early():
    queue, begun, ended, first = Queue([10] * 1000, 8, capacity(4)), 0, 0, None
    for turn in range(2000):
        number, rows = queue.take()
        begun += len(rows) * (number == 0)
        ended += len(rows) * (number == 7)
        first = turn if ended and first is None else first
        queue.put(number + 1, rows) if number < 7 else None
        assert begun - ended <= 4 * 8
    assert not queue and first == 7


@pytest.mark.parametrize("batch_tokens", [1, 90, 250])
def test_a_batch_holds_as_many_rows_as_its_tokens_allow(batch_tokens):
    lengths = [10, 80, 30, 30, 20, 60, 60]
    taken = simulate(lengths, [1] * 7, 1, capacity(8, batch_tokens))
    assert sorted(row for _, rows in taken for row in rows) == list(range(7))
    assert all(len(rows) == 1 or len(rows) * lengths[rows[0]] <= batch_tokens for _, rows in taken)
    assert all((len(rows) + 1) * lengths[rows[0]] > batch_tokens for _, rows in taken[:-1])


def test_without_a_capacity_all_go_together():
    assert simulate([3, 5, 4], [2, 1, 2], 2, None) == [(0, [1, 2, 0]), (1, [2, 0])]
    assert not Queue([], 3)
