"""Blocks counted from a row's own start: against a naive loop of one row, in any batch."""

from __future__ import annotations

import random

import pytest
import torch

from llada_plugins.diffusion.batch_limit import BatchLimit
from llada_plugins.diffusion.blocks import Blocks, lay_out
from llada_plugins.diffusion.denoiser import PADDING, model_denoiser
from llada_plugins.models.llada import LLaDA
from llada_plugins.models.special_tokens import SpecialTokens
from llada_plugins.sampling.config import SamplerConfig
from llada_plugins.sampling.decode import decode, decode_each
from llada_plugins.sampling.for_model import fitted
from llada_plugins.sampling.generate import generate

MASK, EOS = 39, 38
SPECIAL = SpecialTokens(MASK, EOS)


@pytest.fixture(scope="module")
def model(make_model) -> LLaDA:
    """Its tokens see their own block and earlier ones alone."""
    return make_model(attention="block_causal", block_length=4)


def prompts_of(draw: random.Random, num: int, longest: int = 13) -> list[list[int]]:
    return [[draw.randrange(38) for _ in range(draw.randint(1, longest))] for _ in range(num)]


def visible(length: int, width: int, first: int = 0) -> torch.Tensor:
    """(1, L, L), by the definition; first: a column at which a block begins."""
    block = [(column - first) // width for column in range(length)]
    return torch.tensor([[[there <= here for there in block] for here in block]])


def naive(
    model: LLaDA, prompt: list[int], length: int, width: int, steps: int, from_row: bool
) -> tuple[list[int], int]:
    """LLaDA's low-confidence rule, block by block over one row: its answer and forwards."""
    row, forwards = list(prompt), 0
    first = 0 if from_row else len(prompt) % width
    while len(row) < len(prompt) + length:
        end = (len(row) - first) // width * width + first + width
        row += [MASK] * (end - len(row))
        num_masks = row.count(MASK)
        shares = [num_masks // steps + (step < num_masks % steps) for step in range(steps)]
        for share in shares:
            if MASK not in row:
                break
            with torch.no_grad():
                logits = model(torch.tensor([row]), visible(len(row), width, first))[0]
            probability = logits.softmax(-1)
            probability[:, MASK] = 0  # never proposed
            probability, token = probability.max(-1)
            masked = [column for column, each in enumerate(row) if each == MASK]
            best = sorted(masked, key=lambda column: -float(probability[column]))[:share]
            for column in best:
                row[column] = int(token[column])
            forwards += 1
        if EOS in row[len(prompt) :]:
            break
    return row[len(prompt) :][:length], forwards


@pytest.mark.parametrize("seed", range(12))
def test_each_row_of_a_batch_is_that_of_a_naive_loop_over_it_alone(model, seed):
    draw = random.Random(seed)
    width, num = draw.choice([1, 2, 4, 5, 8]), draw.choice([1, 3, 8])
    config = SamplerConfig(
        gen_length=draw.randint(1, 14),
        block_length=width,
        block_steps=draw.randint(1, width),
        sampling_method="block_causal",
        blocks_from=draw.choice(["row", "answer"]),
    )
    prompts = prompts_of(draw, num)
    rows_at_once = draw.randint(1, num)
    found = dict(
        decode_each(
            model_denoiser(model),
            prompts,
            config,
            SPECIAL,
            at_once=BatchLimit(lambda longest: rows_at_once),
            in_step=draw.random() < 0.5,
        )
    )
    for number, prompt in enumerate(prompts):
        expected = naive(
            model,
            prompt,
            config.gen_length,
            width,
            config.block_steps,
            config.blocks_from == "row",
        )
        assert (found[number].answer, found[number].num_forwards) == expected


def test_a_place_that_a_row_leaves_is_taken_at_once_whatever_the_block(model):
    draw = random.Random(0)
    prompts, sizes = prompts_of(draw, 12), []

    def watched(canvas, window):
        sizes.append(len(canvas.tokens))
        assert len(set(canvas.ids.tolist())) == len(canvas.ids)
        return denoise(canvas, window)

    denoise = model_denoiser(model)
    config = SamplerConfig(
        gen_length=12, block_length=4, block_steps=1, sampling_method="block_causal"
    )

    def stop_early(answer: list[int]) -> bool:
        return answer[0] % 3 == 0

    options = dict(stop=stop_early, at_once=BatchLimit(lambda longest: 4))
    found = dict(decode_each(watched, prompts, config, SPECIAL, **options))
    alone = [decode(denoise, [prompt], config, SPECIAL, stop=stop_early)[0] for prompt in prompts]
    assert [found[number] for number in range(12)] == alone
    assert len({len(sample.answer) for sample in alone}) > 1
    # full until nobody waits, and then as long as the last rows take
    assert sizes == sorted(sizes, reverse=True)
    assert len(sizes) - sizes.count(4) <= config.most_blocks


@pytest.mark.parametrize(
    "options",
    [
        dict(revise=True),
        dict(remask_ratio=0.5),
        dict(threshold=0.2, revise_below=0.1),
    ],
    ids=str,
)
def test_rules_that_mask_again_leave_the_prompts_end_and_padding_alone(model, options):
    config = SamplerConfig(
        gen_length=9,
        block_length=8,
        sampling_method="block_causal",
        last_block="rest",
        block_steps=None if "threshold" in options else 4,
        **options,
    )
    prompts = [[5, 6, 7, 8, 9, 10, 11], [1, 2], [3] * 8]
    seen = 0

    def look(canvas, window):
        nonlocal seen
        seen += 1
        for row, start, number in zip(canvas.tokens, canvas.answer_start, canvas.ids.tolist()):
            prompt = row[:start][row[:start] != PADDING]
            assert prompt.tolist() == prompts[number]
            assert len(row[start:][row[start:] != PADDING]) <= 9
        return denoise(canvas, window)

    denoise = model_denoiser(model)
    for sample in decode(look, prompts, config, SPECIAL):
        assert MASK not in sample.answer and len(sample.answer) == 9
    assert seen > 4


def test_positions_and_sight_of_a_row_do_not_depend_on_padding(model):
    prompts = [[5, 6, 7], list(range(1, 10))]
    blocks = SamplerConfig(gen_length=5, block_length=4, sampling_method="block_causal").blocks
    canvas = lay_out(blocks, prompts, [[], []], [0, 0], MASK, torch.device("cpu"))
    # each row ends with its own block, which holds the prompt's end
    assert canvas.tokens.tolist() == [
        [PADDING] * 8 + [5, 6, 7, MASK],
        [*range(1, 10), MASK, MASK, MASK],
    ]
    assert (canvas.first, canvas.answer_starts, canvas.padded) == (8, [11, 9], True)


@pytest.mark.parametrize("from_row", [True, False])
@pytest.mark.parametrize("whole", [True, False])
def test_blocks_hold_the_whole_answer_and_no_block_is_in_vain(from_row, whole):
    for width in (1, 3, 4, 32):
        for length in (1, 3, 4, 31, 33):
            blocks = Blocks(width, length, from_row=from_row, causal=True, grows=True, whole=whole)
            for prompt in range(1, 40):
                number = blocks.number(prompt)
                assert blocks.before(prompt, 0) <= prompt < blocks.end(prompt, 0)
                assert blocks.before(prompt, number - 1) < prompt + length
                assert blocks.end(prompt, number - 1) == blocks.row(prompt)
                assert prompt + length <= blocks.row(prompt) < prompt + length + width
                assert whole is False or not from_row or blocks.row(prompt) % width == 0
                fits = [each for each in range(100) if blocks.row(each) <= 100]
                assert blocks.room(100) in fits


def test_a_prompt_that_its_blocks_leave_no_room_for_is_refused(make_model):
    model = make_model(attention="block_causal", block_length=8, max_sequence_length=20)
    config = SamplerConfig(gen_length=4)  # the last whole block ends at 16
    assert len(generate(model, [[1] * 12], config, special=SPECIAL)[0].answer) <= 4
    with pytest.raises(ValueError, match="prompt 0 of 13 tokens .* exceed the model's context"):
        generate(model, [[1] * 13], config, special=SPECIAL)


def test_a_sampler_takes_the_models_blocks_unless_it_says_others(model):
    own = fitted(SamplerConfig(gen_length=8), model.config)
    assert (own.sampling_method, own.block_length, own.blocks_from) == ("block_causal", 4, "row")
    assert fitted(SamplerConfig(gen_length=8, block_length=2), model.config).block_length == 2


@pytest.mark.parametrize("method", ["fixed_length", "semi_ar_padding", "semi_ar_origin"])
def test_a_block_causal_model_refuses_other_canvases_by_name(model, method):
    with pytest.raises(ValueError, match=f"sampling_method={method}: .* must be block_causal"):
        generate(model, [[1]], SamplerConfig(sampling_method=method), special=SPECIAL)


@pytest.mark.parametrize(
    "options, named",
    [
        (dict(sampling_method="block_causal", block_length=4), "sampling_method=block_causal"),
        (dict(blocks_from="answer"), "blocks_from=answer"),
        (dict(answer_end="block"), "answer_end=block"),
    ],
)
def test_a_model_of_full_attention_refuses_causal_blocks_by_name(make_model, options, named):
    with pytest.raises(ValueError, match=f"{named} is for models whose tokens .* leave it out"):
        generate(make_model(), [[1]], SamplerConfig(**options), special=SPECIAL)
