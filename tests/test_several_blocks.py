"""Multi-block decoding: against a naive loop written from the formulas, and block by block."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch
from scipy import stats

from llada_plugins.diffusion.denoiser import Canvas, Denoiser
from llada_plugins.models.special_tokens import SpecialTokens
from llada_plugins.sampling.config import SamplerConfig
from llada_plugins.sampling.draft import Sample
from llada_plugins.sampling.generate import with_options
from llada_plugins.sampling.several_blocks import FLOORS, BlocksInWork
from tests.test_sampler import (
    EOS,
    EOT,
    MASK,
    PROMPTS,
    SURE,
    check_refused,
    policy_toy,
    random_prompts,
    run,
    steps_of,
    toy_denoiser,
)

pytestmark = pytest.mark.floats

RULES = {
    "threshold_entropy": [0.8, 1.3, 1.7, 2.0],
    "threshold": [0.2, 0.4, 0.6],
    "factor": [0.7, 1.3, 1.9],
    "error_budget": [0.3, 0.9, 1.9],
}


def drawn_options(choose: random.Random) -> dict[str, Any]:
    """A rule with or without revision, on two to four blocks."""
    num_blocks, width = choose.choice([2, 3, 4]), choose.choice([2, 3, 4])
    last_block = choose.choice(["whole", "rest"])
    rule = choose.choice([*RULES, "threshold_entropy"])
    options = dict(
        gen_length=num_blocks * width - choose.choice([0, 0, 1]) * (last_block == "rest"),
        block_length=width,
        last_block=last_block,
        max_forwards=choose.choice([None, None, num_blocks, 2 * num_blocks]),
        at_least=choose.choice([None, None, 2]),
    )
    options[rule] = choose.choice(RULES[rule])
    if choose.random() < 0.4:
        options.update(revise_below=choose.choice([0.05, 0.2, 0.5]), confidence_source="ups")
    return options


# ---- the naive loop


def judged(logits: list[float], token: int, policy: float, options: dict, masked: bool) -> float:
    """The score of a token at one place, by the papers' words."""
    weights = [math.exp(value) for value in logits]
    if not masked:
        return 1 / (1 + math.exp(-policy))
    if "threshold_entropy" in options:
        return -float(stats.entropy(weights))
    return weights[token] / sum(weights)


def num_passing(scores: list[float], options: dict) -> int:
    """How many of the scores, in descending order, pass the rule."""
    if "threshold_entropy" in options:
        return sum(-score <= options["threshold_entropy"] for score in scores)
    if "threshold" in options:
        return sum(score >= options["threshold"] for score in scores)
    number = 0
    for place, score in enumerate(scores):
        worst = (place + 2) * (1 - score)
        spent = sum(1 - each for each in scores[: place + 1])
        if "factor" in options and not worst < options["factor"]:
            break
        if "error_budget" in options and not spent <= options["error_budget"]:
            break
        number += 1
    return number


class Naive:
    """One row in lists, by d3LLM's order of checks."""

    def __init__(self, denoise: Denoiser, prompt: list[int], options: dict) -> None:
        self.denoise, self.options, self.start = denoise, options, len(prompt)
        self.row = prompt + [MASK] * options["gen_length"]
        width = options["block_length"]
        ends = range(self.start, len(self.row), width)
        self.blocks = [range(first, min(first + width, len(self.row))) for first in ends]
        num_blocks = len(self.blocks)
        self.forwards_of_block = (options["max_forwards"] or width * num_blocks) // num_blocks
        self.led = [0] * num_blocks  # forwards in which a block was the first with masks
        self.num_entered, self.active, self.done, self.forwards = 1, {0}, set(), 0

    def masks(self, block: int) -> list[int]:
        return [place for place in self.blocks[block] if self.row[place] == MASK]

    def is_filled(self, block: int, share: float | None) -> bool:
        size = len(self.blocks[block])
        return size - len(self.masks(block)) >= (1 if share is None else share) * size - 1e-9

    def look(self) -> int:
        """Which blocks are in work; the first with masks."""
        last = self.num_entered - 1
        self.done |= {block for block in range(self.num_entered) if not self.masks(block)}
        if last in self.done or self.is_filled(last, self.options["block_add_threshold"]):
            self.num_entered = min(self.num_entered + 1, len(self.blocks))
        share = self.options.get("decoded_token_threshold")
        self.active |= {
            block for block in range(1, self.num_entered) if self.is_filled(block - 1, share)
        }
        first = min(set(range(len(self.blocks))) - self.done)
        self.led[first] += 1
        return first

    def found(self) -> dict[int, tuple[int, float]]:
        """The token and its score at each place of the blocks in work, by a forward."""
        self.forwards += 1
        canvas = Canvas(torch.tensor([self.row]), torch.tensor([self.start]))
        prediction = self.denoise(canvas, slice(0, len(self.row)))
        logits = prediction.logits_at(torch.arange(len(self.row))[None])[0].tolist()
        found = {}
        for block in set(range(self.num_entered)) - self.done:
            for place in self.blocks[block]:
                masked = self.row[place] == MASK
                best = logits[place].index(max(logits[place]))
                token = best if masked else self.row[place]
                policy = float(prediction.confidence[0, place])
                score = judged(logits[place], token, policy, self.options, masked)
                found[place] = token, score
        return found

    def kept(self, found: dict[int, tuple[int, float]], first: int) -> set[int]:
        """The masks that a forward fills."""
        ordered = sorted(found, key=lambda place: -found[place][1])
        masked = [place for place in ordered if self.row[place] == MASK]
        kept = set(masked[: num_passing([found[place][1] for place in masked], self.options)])
        floor, least = self.options.get("floor_in") or "active", self.options["at_least"] or 1
        for block in self.active - self.done if floor == "active" else {first}:
            kept |= set([place for place in masked if place in self.blocks[block]][:least])
        return kept | set(masked[:least] if floor == "first_and_best" else [])

    def step(self) -> None:
        first = self.look()
        found = self.found()
        kept = self.kept(found, first)
        least = self.options.get("revise_below", -math.inf)
        doubted = {p for p, each in found.items() if self.row[p] != MASK and each[1] < least}
        if self.led[first] == self.forwards_of_block:
            kept |= set(self.masks(first))
            doubted -= set(self.blocks[first])
        for place in kept:
            self.row[place] = found[place][0]
        for place in doubted:
            self.row[place] = MASK

    def is_ended(self) -> bool:
        """Write EOS after the first end; does nothing before it wait?"""
        ends = [place for place, token in enumerate(self.row) if token in (EOS, EOT)]
        ends = [place for place in ends if place >= self.start]
        if not self.options.get("early_stop") or not ends:
            return False
        self.row[ends[0] + 1 :] = [EOS] * (len(self.row) - ends[0] - 1)
        self.row = self.row[: ends[0] + 1] if MASK not in self.row[self.start :] else self.row
        return MASK not in self.row[self.start :]

    def decoded(self) -> Sample:
        while MASK in self.row[self.start :]:
            self.step()
            if self.is_ended():
                break
        return Sample(self.row[self.start :], self.forwards)


@pytest.mark.parametrize(
    "seeds", [range(50), pytest.param(range(50, 300), marks=pytest.mark.slow)], ids=len
)
def test_answers_and_forwards_equal_a_naive_loop_over_random_settings(seeds):
    fewer, ended, revised = 0, 0, 0
    for seed in seeds:
        choose = random.Random(seed)
        options = drawn_options(choose)
        options["block_add_threshold"] = choose.choice([0.0, 0.1, 0.3, 0.5, 0.9, 1.0])
        options["floor_in"] = choose.choice([None, *FLOORS])
        if options["floor_in"] in (None, "active"):
            options["decoded_token_threshold"] = choose.choice([None, 0.0, 0.4, 0.7, 1.0])
        options["early_stop"] = choose.random() < 0.4
        favoured = {**SURE, EOS: 1.0, EOT: 1.0} if options["early_stop"] else SURE
        denoise, prompt = policy_toy(seed, False, favoured), random_prompts(choose)[0]
        [sample] = run(options, [prompt], denoise)
        assert sample == Naive(denoise, prompt, options).decoded(), options
        fewer += sample.num_forwards < -(-options["gen_length"] // options["block_length"])
        ended += len(sample.answer) < options["gen_length"]
        revised += "revise_below" in options
    assert min(fewer, ended, revised) > 5  # none of them is left to chance


@pytest.mark.parametrize(
    "seeds", [range(12), pytest.param(range(12, 80), marks=pytest.mark.slow)], ids=len
)
def test_with_all_thresholds_1_it_is_decoding_block_by_block(seeds):
    for seed in seeds:
        choose = random.Random(seed)
        options = {
            **drawn_options(choose),
            "temperature": choose.choice([0.0, 0.8]),
            "cfg_scale": choose.choice([0.0, 0.7]),
        }
        if choose.random() < 0.3:
            options["max_dependence"] = 0.3
        denoise = policy_toy(seed, False, SURE)
        floor_in = choose.choice([None, *FLOORS])
        at_once = {**options, "block_add_threshold": 1.0, "floor_in": floor_in}
        assert run(at_once, denoise=denoise) == run(options, denoise=denoise), at_once


# ---- properties


OPTIONS = [
    dict(threshold_entropy=1.6, block_add_threshold=0.25, decoded_token_threshold=0.75),
    dict(threshold_entropy=1.9, block_add_threshold=0.5, floor_in="first_and_best"),
    dict(threshold=0.4, block_add_threshold=0.5, floor_in="first", temperature=1.0),
    dict(
        error_budget=0.9,
        block_add_threshold=0.25,
        decoded_token_threshold=0.5,
        revise_below=0.3,
        confidence_source="ups",
    ),
]
every_option = pytest.mark.parametrize("options", OPTIONS, ids=str)
WIDTH, LENGTH = 4, 20


def several(options: dict) -> dict:
    return {"gen_length": LENGTH, "block_length": WIDTH, **options}


@every_option
def test_masks_fall_as_specified(options):
    config = SamplerConfig(**several(options))
    steps, _ = steps_of(several(options), policy_toy(1, False, SURE))
    num_active = 0
    for row in range(len(PROMPTS)):
        num_entered, active, full = 1, {0}, set()
        for step in steps:
            if row not in step.rows.tolist():
                continue
            at = step.rows.tolist().index(row)
            masked = step.masked[at].view(-1, WIDTH)
            filled = (~masked).sum(-1).tolist()
            full |= {block for block in range(num_entered) if filled[block] == WIDTH}
            num_entered += filled[num_entered - 1] >= options["block_add_threshold"] * WIDTH
            num_entered = min(num_entered, LENGTH // WIDTH)
            share = options.get("decoded_token_threshold", 1.0)
            active |= {
                block for block in range(1, num_entered) if filled[block - 1] >= share * WIDTH
            }
            changed = (step.kept | step.remasked)[at].view(-1, WIDTH).any(-1).tolist()
            assert not any(changed[block] for block in (*full, *range(num_entered, len(filled))))
            kept = step.kept[at].view(-1, WIDTH).sum(-1).tolist()
            must = active - full if config.floor == "active" else {min(active - full)}
            assert all(kept[block] > 0 for block in must)
            num_active = max(num_active, sum(number > 0 for number in kept))
    assert num_active > 1  # several blocks in one step


@pytest.mark.parametrize(
    "options",
    [*OPTIONS[2:], *(pytest.param(each, marks=pytest.mark.slow) for each in OPTIONS[:2])],
    ids=str,
)
def test_an_answer_depends_neither_on_the_batch_nor_on_its_order(options):
    choose = random.Random(5)
    prompts = [prompt for _ in range(3) for prompt in random_prompts(choose)]
    denoise = policy_toy(2, False, SURE)
    alone = [run(several(options), [prompt], denoise)[0] for prompt in prompts]
    for size in (3, 8):
        for first in range(0, len(prompts), size):
            batch = slice(first, first + size)
            assert run(several(options), prompts[batch], denoise) == alone[batch]
            assert run(several(options), prompts[batch][::-1], denoise)[::-1] == alone[batch]


def test_after_an_end_that_stands_everything_is_eos_and_nothing_more_is_decoded():
    options = several({**OPTIONS[0], "early_stop": True})
    seen: list[tuple[Canvas, slice]] = []
    denoise = toy_denoiser(favoured={EOT: 2.0, MASK: -50.0})
    samples = run(options, PROMPTS, denoise, seen=seen)
    later = 0
    for canvas, window in seen:
        for row in canvas.tokens[:, window].tolist():
            ends = [place for place, token in enumerate(row) if token in (EOS, EOT)]
            if ends:
                assert set(row[ends[0] + 1 :]) <= {EOS}
                assert MASK in row[: ends[0]]  # or the row would be done
                later += 1
    assert later > 3
    whole = run({**options, "early_stop": False}, PROMPTS, denoise)
    for sample, other in zip(samples, whole):
        assert sample.answer[-1] in (EOS, EOT) and sample.num_forwards < other.num_forwards


def test_a_share_of_a_block_counts_exact_tokens_whatever_its_float_says():
    config = SamplerConfig(
        gen_length=20, block_length=10, threshold=0.9, block_add_threshold=0.2
    )  # in floats 1 - 8 / 10 is less than 0.2
    masked = torch.ones(1, 20, dtype=torch.bool)
    masked[0, :2] = False
    assert BlocksInWork.of(masked, config).before_step(masked).entered.tolist() == [[True, True]]
    masked[0, 1] = True
    assert BlocksInWork.of(masked, config).before_step(masked).entered.tolist() == [[True, False]]


def test_an_early_stop_needs_an_eos_to_write():
    config = SamplerConfig(**several({**OPTIONS[0], "early_stop": True}))
    with pytest.raises(ValueError, match=r"early_stop with block_add_threshold writes EOS .*false"):
        with_options(toy_denoiser(), config, SpecialTokens(MASK, None, EOT))


MISTAKES = [
    (dict(threshold_entropy=None), r"block_add_threshold has no effect without threshold, .*"),
    (dict(block_add_threshold=1.1), r"block_add_threshold must be from 0 to 1, got 1.1"),
    (dict(block_add_threshold=float("nan")), r"block_add_threshold must be from 0 to 1, got nan"),
    (dict(decoded_token_threshold=-0.1), r"decoded_token_threshold must be from 0 to 1, got -0.1"),
    (
        dict(block_add_threshold=None),
        r"decoded_token_threshold has no effect without block_add_threshold: set it, or leave",
    ),
    (
        dict(block_add_threshold=None, decoded_token_threshold=None, floor_in="first"),
        r"floor_in has no effect without block_add_threshold",
    ),
    (
        dict(floor_in="first_and_best"),
        r"decoded_token_threshold has no effect with floor_in=first_and_best: .* leave one out",
    ),
    (
        dict(block_length=None),
        r"block_add_threshold has no effect on a single block: set block_length below .*\(20\)",
    ),
    (
        dict(sampling_method="semi_ar_origin"),
        r"block_add_threshold needs .* sampling_method=semi_ar_padding, got semi_ar_origin",
    ),
    (dict(stop_at="block"), r"stop_at=block waits for a finished block.* eos .* or never"),
    (dict(block_steps=2), r"block_steps fills one block after another, and block_add_threshold"),
    (dict(first_token_alone=True), r"first_token_alone fills one block after another"),
    (dict(cache="dual"), r"cache=dual freezes what comes after .*: set cache to prefix"),
    (dict(cache_delay_iter=1), r"cache_delay_iter has no effect with cache='auto'"),
    (dict(cache="prefix", cache_delay_iter=-1), r"cache_delay_iter must be 0 or more, got -1"),
    (
        dict(cache="prefix", cache_delay_iter=1, cache_delayed=True),
        r"cache_delay_iter and cache_delayed are alternatives: give one",
    ),
    (
        dict(
            **dict(cache="prefix", cache_delay_iter=1, block_add_threshold=None),
            decoded_token_threshold=None,
        ),
        r"cache_delay_iter .* has no effect without block_add_threshold",
    ),
    *(
        (
            dict(cache="prefix", cache_prompt_refresh=every),
            r"cache_prompt_refresh fills one block after another",
        )
        for every in (0, 2)
    ),
    (dict(edit_threshold=0.0), r"edit_threshold fills one block after another"),
]


@pytest.mark.parametrize("options, message", MISTAKES, ids=str)
def test_a_wrong_option_is_told_with_what_was_given_and_what_is_allowed(options, message):
    check_refused(several({**OPTIONS[0], **options}), message)


def test_candidates_of_a_process_reward_model_go_without_it():
    with pytest.raises(ValueError, match="block_add_threshold goes without a process reward model"):
        SamplerConfig(**several(OPTIONS[0])).check_budget(reviewed=True)
