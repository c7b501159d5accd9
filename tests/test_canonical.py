"""Canonical answers of a teacher: against a naive decode, and against all answers to a puzzle."""

from __future__ import annotations

import itertools

import pytest
import torch

from llada_plugins.diffusion.denoiser import Canvas, Prediction
from llada_plugins.models.special_tokens import SpecialTokens
from llada_plugins.sampling.config import SamplerConfig
from llada_plugins.sampling.decode import decode
from llada_plugins.tasks import sudoku
from tests.small_training import MASK_ID, examples, small_model
from training.runs.canonical import canonical
from training.runs.extraction import decoded

pytestmark = pytest.mark.floats

MASK = 0  # of the puzzles below, whose tokens are the digits


def naive(model, prompt: list[int], length: int, block: int, sure: float, share: float):
    """The answer of a prompt, the order of its tokens and the forwards, step by step."""
    tokens, order, forwards = [*prompt, *[MASK_ID] * length], [0] * length, 0
    for first in range(len(prompt), len(tokens), block):
        while MASK_ID in tokens[first : first + block]:
            probability = model(torch.tensor([tokens]))[0].softmax(-1)
            probability[:, MASK_ID] = 0
            forwards += 1
            columns = [
                each
                for each in range(first, min(first + block, len(tokens)))
                if tokens[each] == MASK_ID
            ]
            best = {each: float(probability[each].amax()) for each in columns}
            kept = sorted((each for each in columns if best[each] >= sure), key=lambda c: -best[c])
            chosen = {each: int(probability[each].argmax()) for each in kept}
            if not kept:
                [*kept] = columns[:1]
                of_first = probability[columns[0]].tolist()
                likely = [t for t, p in enumerate(of_first) if p >= share * max(of_first)]
                chosen = {columns[0]: likely[0]}
            standing = len(tokens) - len(prompt) - tokens[len(prompt) :].count(MASK_ID)
            for number, each in enumerate(kept):
                tokens[each] = chosen[each]
                order[each - len(prompt)] = standing + number
    return tokens, order, forwards


@pytest.mark.parametrize("block", [None, 3, 2])
@pytest.mark.parametrize("sure, share", [(0.11, 0.9), (0.12, 0.7), (0.9, 0.8), (0.9, 1.0)])
def test_a_teacher_decodes_as_the_naive_loop_does(block, sure, share):
    # weights so small that many tokens are about as probable
    model, rows = small_model().requires_grad_(False), examples(6)
    sampler = SamplerConfig(gen_length=6, block_length=block, threshold=sure)
    answers = decoded(model, rows, sampler, share)
    for row, found in zip(rows, answers):
        expected = naive(model, row.input_ids[: row.prompt_length], 6, block or 6, sure, share)
        assert (found.trajectory.input_ids, found.trajectory.order, found.num_forwards) == expected
    if sure == 0.9:  # of which a random model never is sure
        assert {each.num_forwards for each in answers} == {6}
        assert answers != decoded(model, rows, sampler)


def puzzle_ids(puzzle: str) -> list[int]:
    """5 for a cell without a clue, 6 after them all."""
    return [int(each) if each in "1234" else 5 if each == "." else 6 for each in puzzle]


def all_knowing(canvas: Canvas, window: slice) -> Prediction:
    """The share of a puzzle's completions that have each digit, as logits."""
    every = torch.tensor([[int(digit) for digit in grid] for grid in sudoku.solutions()])
    found = torch.zeros(len(canvas.tokens), 16, 7)
    for number, row in enumerate(canvas.tokens):
        clues, answer = row[:16], row[17:]
        possible = ((clues == every) | (clues > 4)).all(-1)
        possible &= ((answer == every) | (answer == MASK)).all(-1)
        for digit in range(1, 5):
            found[number, :, digit] = (every[possible] == digit).float().mean(0)
    first = 17
    return Prediction.from_logits(found[:, window.start - first : window.stop - first].log())


def test_the_answer_is_the_first_of_all_that_are_right_where_the_teacher_knows_them():
    puzzles = [each.puzzle for each in sudoku.problems("validation", 40)]
    config = SamplerConfig(gen_length=16, threshold=0.999)  # above 287 of 288
    denoise = canonical(all_knowing, MASK, sure=0.999, share=1e-6)
    samples = decode(denoise, [*map(puzzle_ids, puzzles)], config, SpecialTokens(mask=MASK))
    several = 0
    for puzzle, sample in zip(puzzles, samples):
        right = [grid for grid in sudoku.solutions() if sudoku.is_valid(puzzle, grid)]
        assert "".join(map(str, sample.answer)) == min(right)
        several += len(right) > 1
    assert several >= 20


def test_a_sure_row_is_left_as_it_is_and_logits_are_the_same_however_they_are_asked_for():
    logits = torch.tensor([[[0.0, 1.0, 1.1], [0.0, 2.0, 1.0]], [[0.0, 1.0, 1.1], [0.0, 9.0, 0.0]]])
    canvas = Canvas(torch.full((2, 2), MASK), torch.tensor([0, 0]))
    denoise = canonical(
        lambda *_: Prediction.from_logits(logits.clone()), MASK, sure=0.99, share=0.5
    )
    found = denoise(canvas, slice(0, 2))
    every = found.logits_at(torch.tensor([[0, 1], [0, 1]]))
    assert torch.equal(every[1], logits[1])  # its second token is sure
    assert every[0, 0].softmax(-1).tolist() == [0, 1, 0]
    assert torch.equal(every[0, 1], logits[0, 1])
    for row, column in itertools.product(range(2), range(2)):
        one = found.logits_at(torch.tensor([column]), torch.tensor([row]))
        assert torch.equal(one[0], every[row, column])
