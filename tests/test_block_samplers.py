"""Published samplers of block-causal models, each against a naive loop of its own rules.

The loops are written from the published algorithms, one row and one block after another,
and know nothing of ours: not that blocks share one canvas, nor that "append the next
token" is an unmasking like any other.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

import pytest
import torch

from llada_plugins.diffusion.batch_limit import BatchLimit
from llada_plugins.diffusion.denoiser import model_denoiser
from llada_plugins.models.llada import LLaDA
from llada_plugins.models.special_tokens import SpecialTokens
from llada_plugins.options.fields import split
from llada_plugins.sampling.config import SamplerConfig
from llada_plugins.sampling.decode import decode_each
from llada_plugins.sampling.for_model import fitted
from llada_plugins.sampling.generate import with_options
from llada_plugins.sampling.published import native

MASK, VOCABULARY = 39, 40
Predict = Callable[[Sequence[int], int, int], list[tuple[int, float]]]


class Naive(NamedTuple):
    """What a published sampler returns."""

    answer: list[int]
    forwards: int  # denoising steps


@pytest.fixture(scope="module")
def model(make_model) -> LLaDA:
    """Its tokens see their own block and earlier ones alone; it is often rather sure."""
    model = make_model(attention="block_causal", block_length=4)
    model.transformer["ff_out"].weight.data *= 5
    return model


def predictor(model: LLaDA, first: int = 0) -> Predict:
    """Best token and its probability at each column of a row, of blocks of so many tokens.

    first: a column at which a block begins.
    """

    def predict(row: Sequence[int], width: int, shift: int = 0) -> list[tuple[int, float]]:
        block = (torch.arange(len(row)) - first) // width
        visible = (block[None, :] <= block[:, None])[None]
        with torch.no_grad():
            logits = model(torch.tensor([row]), visible)[0]
        probability = logits.softmax(-1)
        probability[:, MASK] = 0  # none of the samplers should propose it
        best = [(int(each.argmax()), float(each.max())) for each in probability]
        return [best[0], *best[:-1]] if shift else best

    return predict


def masks_of(row: Sequence[int], columns: range) -> list[int]:
    return [column for column in columns if row[column] == MASK]


def all_or_best(
    best: Sequence[tuple[int, float]], masks: Sequence[int], threshold: float, least: int
) -> list[int]:
    """All masks that are more probable than the threshold if so many are, else the best ones."""
    above = [column for column in masks if best[column][1] > threshold]
    if len(above) >= least:
        return above
    return sorted(masks, key=lambda column: (-best[column][1], column))[:least]


def stopped_at(row: Sequence[int], start: int, ends: set[int]) -> int | None:
    """Column of the first end token after the prompt."""
    return next((column for column in range(start, len(row)) if row[column] in ends), None)


def cut(answer: list[int], ends: set[int], length: int | None = None) -> list[int]:
    """The answer of at most this length, cut after its first end token."""
    first = stopped_at(answer, 0, ends)
    return answer[: len(answer) if first is None else first + 1][:length]


def llada2(predict: Predict, prompt: list[int], ends: set[int], options: dict) -> Naive:
    """LLaDA2.0's generate."""
    width, length = options["block_length"], options["gen_length"]
    steps = min(options["steps"], length // options.get("minimal_topk", 1))
    start, forwards = len(prompt), 0
    num_blocks = -(-(start + length) // width)
    row = list(prompt) + [MASK] * (num_blocks * width - start)
    for number in range(start // width, num_blocks):
        columns, seen = range(number * width, (number + 1) * width), (number + 1) * width
        for step in range(steps):
            masks = masks_of(row, columns)
            if not masks:
                break
            best = predict(row[:seen], width, 0)
            forwards += 1
            least = width // steps + (step < width % steps)
            chosen = all_or_best(best, masks, options["threshold"], least)
            for column in chosen:
                row[column] = best[column][0]
            if options.get("eos_early_stop") and any(row[column] in ends for column in chosen):
                first = stopped_at(row, start, ends)
                if MASK not in row[start:first]:
                    return Naive(row[start : first + 1], forwards)
        if stopped_at(row[:seen], start, ends) is not None:
            break
    return Naive(cut(row[start:seen], ends, length), forwards)


def llada21(predict: Predict, prompt: list[int], ends: set[int], options: dict) -> Naive:
    """LLaDA2.1's generate, which replaces tokens."""
    width, length = options["block_length"], options["gen_length"]
    start, forwards = len(prompt), 0
    num_blocks = -(-(start + length) // width)
    row = list(prompt) + [MASK] * (num_blocks * width - start)
    for number in range(start // width, num_blocks):
        columns, seen, post = range(number * width, (number + 1) * width), (number + 1) * width, 0
        while True:
            masks = masks_of(row, columns)
            if not masks:
                post += 1
                if post > options["max_post_steps"]:
                    break
            best = predict(row[:seen], width, 0)
            forwards += 1
            least = options["num_to_transfer"]
            chosen = all_or_best(best, masks, options["threshold"], least) if masks else []
            edited = [
                column
                for column in columns
                if column >= start
                and column not in masks
                and best[column][1] > options["editing_threshold"]
                and best[column][0] != row[column]
            ]
            for column in (*chosen, *edited):
                row[column] = best[column][0]
            if not masks and not edited:
                break
        if options["eos_early_stop"] and stopped_at(row[:seen], start, ends) is not None:
            break
    return Naive(cut(row[start:seen], ends, length), forwards)


def sdar(predict: Predict, prompt: list[int], ends: set[int], options: dict) -> Naive:
    """SDAR's evaluation; with remasking_strategy=sequential its generate.py."""
    width, steps = options["block_length"], options["denoising_steps"]
    start, forwards = len(prompt), 0
    num_blocks = -(-(start + options["gen_length"]) // width)
    row = list(prompt) + [MASK] * (num_blocks * width - start)
    for number in range(start // width, num_blocks):
        columns, seen = range(number * width, (number + 1) * width), (number + 1) * width
        for step in range(steps):
            masks = masks_of(row, columns)
            if not masks:
                break
            best = predict(row[:seen], width, 0)
            forwards += 1
            least = width // steps + (step < width % steps)
            if options.get("remasking_strategy") == "sequential":
                chosen = masks[:least]
            else:
                chosen = all_or_best(best, masks, options["threshold"], least)
            for column in chosen:
                row[column] = best[column][0]
        if stopped_at(row[:seen], start, ends) is not None:
            break
    return Naive(row[start:seen], forwards)


def fast_dllm_v2(predict: Predict, prompt: list[int], ends: set[int], options: dict) -> Naive:
    """Fast-dLLM v2's generate: a finished block gives the first token of the next one."""
    width, part = options["block_size"], options["small_block_size"]
    start, forwards, row = len(prompt), 0, list(prompt)
    stop = None
    if len(row) % width == 0:  # the whole prompt is finished blocks
        row.append(predict([*row, MASK], width, 1)[-1][0])
        forwards += 1
    for _ in range(options["max_new_tokens"] // width):
        if stopped_at(row, start, ends) is not None:
            break
        first = len(row) // width * width
        row += [MASK] * (first + width - len(row))
        while MASK in row:
            stop = stopped_at(row, start, ends)
            if stop is not None and MASK not in row[:stop]:
                break
            left = masks_of(row, range(first, first + width))[0]
            begin = left // part * part if part < width else first
            masks = masks_of(row, range(begin, begin + part))
            best = predict(row, width, 1)
            forwards += 1
            for column in all_or_best(best, masks, options["threshold"], 1):
                row[column] = best[column][0]
        stop = stopped_at(row, start, ends)
        if stop is not None and MASK not in row[:stop]:
            break
        row.append(predict([*row, MASK], width, 1)[-1][0])
        forwards += 1
    return Naive(cut(row[start:], ends), forwards)


def bd3lm(predict: Predict, prompt: list[int], ends: set[int], options: dict) -> Naive:
    """dllm's BD3LM: blocks after the prompt, whose own are counted back from its end."""
    width, length = options["block_size"], options["max_new_tokens"]
    steps = -(-options["steps"] // -(-length // width))
    row, forwards = list(prompt), 0
    while len(row) < len(prompt) + length:
        begin = len(row)
        row += [MASK] * min(width, len(prompt) + length - begin)
        shares, left = [], len(row) - begin
        for step in range(steps, 0, -1):
            before, after = (1 - (1 - torch.tensor(t / steps)) for t in (step, step - 1))
            share = round(left * (1 - float(after / before)))
            left -= share
            shares += [share] if share else []
        for share in shares:
            best = predict(row, width, 0)
            forwards += 1
            masks = masks_of(row, range(begin, len(row)))
            for column in all_or_best(best, masks, 1.0, share):
                row[column] = best[column][0]
        if stopped_at(row, len(prompt), ends) is not None:
            break
    return Naive(row[len(prompt) :], forwards)


# ---- drawn settings


def draw_llada2(draw: random.Random, width: int) -> dict:
    steps = draw.randint(1, 2 * width)
    options = dict(
        block_length=width,
        gen_length=draw.randint(1, 3 * width),
        steps=steps,
        threshold=draw.choice([0.2, 0.4, 0.6, 0.9, 1.0]),
        eos_early_stop=draw.random() < 0.5,
    )
    if draw.random() < 0.5:
        options["minimal_topk"] = draw.randint(1, options["gen_length"])
    return options


def draw_llada21(draw: random.Random, width: int) -> dict:
    return dict(
        block_length=width,
        gen_length=draw.randint(1, 3 * width),
        threshold=draw.choice([0.2, 0.4, 0.6, 0.9, 1.0]),
        editing_threshold=draw.choice([0.0, 0.1, 0.3, 0.6, 0.9]),
        max_post_steps=draw.randint(0, 4),
        num_to_transfer=draw.randint(1, 4),
        eos_early_stop=draw.random() < 0.5,
    )


def draw_sdar(draw: random.Random, width: int) -> dict:
    options = dict(
        block_length=width,
        gen_length=draw.randint(1, 3 * width),
        denoising_steps=draw.randint(1, width),
    )
    if draw.random() < 0.3:
        return dict(options, remasking_strategy="sequential")
    return dict(options, threshold=draw.choice([0.2, 0.4, 0.6, 0.9, 1.0]))


def draw_fast(draw: random.Random, width: int) -> dict:
    parts = [part for part in range(1, width + 1) if width % part == 0]
    return dict(
        block_size=width,
        max_new_tokens=width * draw.randint(1, 3) + draw.randrange(width),
        small_block_size=draw.choice(parts),
        threshold=draw.choice([0.2, 0.4, 0.6, 0.9, 1.0]),
    )


def draw_bd3lm(draw: random.Random, width: int) -> dict:
    return dict(
        block_size=width,
        max_new_tokens=draw.randint(1, 3 * width),
        steps=draw.randint(1, 4 * width),
    )


class Sampler(NamedTuple):
    """A published sampler: its naive loop, and settings that are drawn for it."""

    naive: Callable[[Predict, list[int], set[int], dict], Naive]
    options: Callable[[random.Random, int], dict]
    family: str  # name of the published names
    more: dict = {}  # what a model of that family sets beside them


SAMPLERS = {
    "llada2": Sampler(llada2, draw_llada2, "llada2"),
    "llada2.1": Sampler(llada21, draw_llada21, "llada2"),
    "sdar": Sampler(sdar, draw_sdar, "sdar"),
    "fast_dllm_v2": Sampler(fast_dllm_v2, draw_fast, "fast_dllm_v2"),
    "bd3lm": Sampler(bd3lm, draw_bd3lm, "mdlm", dict(blocks_from="answer")),
}
FAST = [(name, seed) for name in SAMPLERS for seed in range(3)]
SLOW = [(name, seed) for name in SAMPLERS for seed in range(3, 63)]
CASES = [*FAST, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)]


@pytest.mark.parametrize("name, seed", CASES)
def test_a_batch_of_drawn_settings_is_what_the_published_rules_give_row_by_row(model, name, seed):
    draw, sampler = random.Random(f"{name}{seed}"), SAMPLERS[name]
    width, num = draw.choice([2, 3, 4, 8]), draw.choice([1, 3, 8])
    options = sampler.options(draw, width)
    ends = set(draw.sample(range(MASK), draw.randint(0, 4)))
    special = SpecialTokens(MASK, more_eos=tuple(ends))
    prompts = [
        [draw.randrange(MASK) for _ in range(draw.choice([width, draw.randint(1, 3 * width)]))]
        for _ in range(num)
    ]
    [config] = split({**native(options, sampler.family), **sampler.more}, SamplerConfig)
    config = fitted(config, model.config)
    plain = model_denoiser(model, shift=name == "fast_dllm_v2")
    rows_at_once = draw.randint(1, num)
    samples = dict(
        decode_each(
            with_options(plain, config, special),
            prompts,
            config,
            special,
            at_once=BatchLimit(lambda longest: rows_at_once),
            in_step=draw.random() < 0.3,
        )
    )
    for number, prompt in enumerate(prompts):
        first = len(prompt) % width if name == "bd3lm" else 0
        expected = sampler.naive(predictor(model, first), prompt, ends, options)
        found = samples[number].answer
        if name in ("llada2", "llada2.1"):  # ours leaves what follows an end to the text
            found = cut(found, ends)
        assert found == expected.answer, (options, prompt)
        assert samples[number].num_forwards == expected.forwards, (options, prompt)
