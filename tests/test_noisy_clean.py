"""Rows [noisy | clean] of block diffusion: every block as if it were computed alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from llada_plugins.diffusion.noisy_clean import (
    ABSENT,
    CLEAN,
    layout,
    noisy_and_clean,
    texts,
)
from llada_plugins.models.llada import LLaDA
from tests.tolerance import forward_error

pytestmark = pytest.mark.floats

MASK = 39


@pytest.fixture(scope="module")
def model(make_model) -> LLaDA:
    return make_model(n_kv_heads=2)


def block_alone(model: LLaDA, noisy: list[int], clean: list[int], block: int, width: int) -> Tensor:
    """Logits of one noisy block after its clean ones: a row of its own, and who sees whom by hand.

    Returns (tokens of the block, V), as if the network were called for that block only.
    """
    begin, end = block * width, min((block + 1) * width, len(clean))
    row = clean[:begin] + noisy[begin:end]
    sees = [[j // width <= i // width for j in range(end)] for i in range(end)]
    return model(torch.tensor([row]), torch.tensor([sees]))[0, begin:]


def every_block_alone(model: LLaDA, noisy: list[int], clean: list[int], width: int) -> Tensor:
    num_blocks = -(-len(clean) // width)
    return torch.cat([block_alone(model, noisy, clean, each, width) for each in range(num_blocks)])


def some_rows(num_rows: int, length: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Clean tokens and a noisy copy, (B, L) each."""
    generator = torch.Generator().manual_seed(seed)
    clean = torch.randint(0, MASK, (num_rows, length), generator=generator)
    masked = torch.rand(num_rows, length, generator=generator) < 0.6
    return clean, clean.masked_fill(masked, MASK)


@pytest.mark.parametrize("width", [1, 3, 4, 20])
@pytest.mark.parametrize("length", [11, 12])
def test_one_forward_has_the_logits_of_every_block_alone(model, width, length):
    clean, noisy = some_rows(2, length)
    rows = noisy_and_clean(noisy, clean, width)
    found = model(rows.tokens, rows.layout.visible, position_ids=rows.layout.position_ids)
    expected = torch.stack(
        [every_block_alone(model, *each, width) for each in zip(noisy.tolist(), clean.tolist())]
    )
    bound = forward_error(model)
    torch.testing.assert_close(found[:, :length], expected, atol=bound, rtol=0)
    # clean tokens, too, are as in a row without a noisy copy
    block = torch.arange(length) // width
    plain = model(clean, (block[:, None] >= block).expand(2, -1, -1))
    last = rows.tokens.shape[1] - length
    torch.testing.assert_close(found[:, length:], plain[:, :last], atol=bound, rtol=0)


def test_blocks_of_the_prompt_need_no_noisy_copy(model):
    clean, noisy = some_rows(2, 14)
    noisy[:, :7] = clean[:, :7]
    whole, short = (noisy_and_clean(noisy, clean, 4, first=first) for first in (0, 7))
    assert short.first == 4 and short.tokens.shape[1] == 10 + 12
    logits = [
        model(each.tokens, each.layout.visible, position_ids=each.layout.position_ids)
        for each in (whole, short)
    ]
    torch.testing.assert_close(
        logits[1][:, :10], logits[0][:, 4:14], atol=forward_error(model), rtol=0
    )
    at = noisy == MASK
    expected = [(row, column) for row, column in at.nonzero().tolist()]
    rows, columns = short.columns(at)
    assert list(zip(rows.tolist(), (columns + 4).tolist())) == expected
    values = torch.arange(44).view(2, 22)
    assert short.of_text(values).tolist() == [
        [0] * 4 + list(range(begin, begin + 10)) for begin in (0, 22)
    ]


@pytest.mark.parametrize("left", [False, True], ids=["padded right", "padded left"])
def test_a_rows_logits_depend_on_neither_padding_nor_neighbours(model, left):
    lengths, width, total = (5, 9, 12), 4, 12
    pairs = [some_rows(1, length, seed=length) for length in lengths]
    clean, noisy, real = (torch.zeros(3, total, dtype=torch.long) for _ in range(3))
    at = [slice(total - each, None) if left else slice(each) for each in lengths]
    for row, place in enumerate(at):
        clean[row, place], noisy[row, place] = pairs[row]
        real[row, place] = 1
    rows = noisy_and_clean(noisy, clean, width, real)
    found = model(rows.tokens, rows.layout.visible, position_ids=rows.layout.position_ids)
    assert found.isfinite().all()
    for row, place in enumerate(at):
        own_clean, own_noisy = (each[0].tolist() for each in pairs[row])
        expected = every_block_alone(model, own_noisy, own_clean, width)
        torch.testing.assert_close(
            found[row, :total][place], expected, atol=forward_error(model), rtol=0
        )
    # to the bit, where what it does not see is another
    other = rows.tokens.clone()
    other[1:] = 7
    other[0, real[0].repeat(2) == 0] = 7
    again = model(other, rows.layout.visible, position_ids=rows.layout.position_ids)
    seen = real[0].repeat(2) == 1
    assert torch.equal(again[0, seen], found[0, seen])


def test_documents_of_a_row_are_counted_from_their_own_first_tokens(model):
    first, second = some_rows(1, 6), some_rows(1, 7, seed=1)
    clean, noisy = (torch.cat([a, b], 1) for a, b in zip(first, second))
    document = torch.tensor([[0] * 6 + [1] * 7])
    apart = document[:, :, None] == document[:, None]
    rows = noisy_and_clean(noisy, clean, 4, apart)
    found = model(rows.tokens, rows.layout.visible, position_ids=rows.layout.position_ids)[0, :13]
    expected = torch.cat(
        [
            every_block_alone(model, noisy[0].tolist(), clean[0].tolist(), 4)
            for clean, noisy in (first, second)
        ]
    )
    torch.testing.assert_close(found, expected, atol=forward_error(model), rtol=0)
    blocks = texts(clean, apart).block(4)[0].tolist()
    assert blocks == [0, 0, 0, 0, 1, 1, 2, 2, 2, 2, 3, 3, 3]


def test_the_column_before_is_clean_at_a_blocks_beginning_and_of_the_same_copy_inside():
    copies = [1] * 4 + [2] * 4 + [CLEAN] * 5 + [ABSENT]
    positions = [4, 5, 6, 7, 4, 5, 6, 7, 0, 1, 2, 3, 4, 0]
    found = layout(torch.tensor([copies]), torch.tensor([positions]), 4).before[0].tolist()
    assert found == [11, 0, 1, 2, 11, 4, 5, 6, 8, 8, 9, 10, 11, 13]


def test_copies_of_a_block_do_not_see_each_other(model):
    clean, _ = some_rows(1, 8)
    prefix, copies = clean[0, :4], [[MASK] * 4, [1, MASK, 2, MASK], [MASK, 5, 5, 5]]
    tokens = torch.cat([*(torch.tensor(each) for each in copies), prefix])[None]
    copy = torch.tensor([[1] * 4 + [2] * 4 + [3] * 4 + [CLEAN] * 4])
    positions = torch.tensor([[4, 5, 6, 7] * 3 + [0, 1, 2, 3]])
    found = layout(copy, positions, 4)
    logits = model(tokens, found.visible, position_ids=found.position_ids)[0]
    for number, each in enumerate(copies):
        expected = block_alone(model, [0] * 4 + each, clean[0].tolist(), 1, 4)
        torch.testing.assert_close(
            logits[4 * number : 4 * number + 4], expected, atol=forward_error(model), rtol=0
        )
