"""Branches of a step as rows of the next forward, against a naive loop from the description."""

from __future__ import annotations

import math
import random
from dataclasses import fields
from typing import Any

import pytest
import torch

from llada_plugins.diffusion.denoiser import Canvas, Denoiser, Prediction
from llada_plugins.engine.engine import Engine
from llada_plugins.engine.probes import decoding_probe
from llada_plugins.engine.request import Encoded, Group, Request
from llada_plugins.harness.statistics import Totals, statistics
from llada_plugins.sampling.block_rules import BESIDE_BRANCHES
from llada_plugins.sampling.branches import Branching, surest
from llada_plugins.sampling.branches import Judged as Branches
from llada_plugins.sampling.config import SamplerConfig
from llada_plugins.sampling.draft import Sample
from llada_plugins.sampling.propose import ActiveBlock
from llada_plugins.tasks.registry import SUDOKU4
from tests.test_dependence import NEAR, Judged, kept_in_one_step
from tests.test_sampler import (
    EOS,
    MASK,
    PROMPTS,
    SPECIAL,
    VOCAB,
    check_refused,
    run,
    steps_of,
    toy_denoiser,
)

pytestmark = pytest.mark.floats

# ---- the decoder against a naive loop


def without_policy(denoise: Denoiser) -> Denoiser:
    def bare(canvas: Canvas, window: slice) -> Prediction:
        return denoise(canvas, window)._replace(confidence=None)

    return bare


class Branch(Judged):
    """A row, what its last step kept, and how sure a forward is of it."""

    def __init__(self, denoise: Denoiser, row: list[int], start: int, block: range, kept: list):
        self.row = row
        super().__init__(denoise, row, start, [place for place in block if row[place] == MASK])
        logs = [math.log(each) for each in self.probability.values()]
        self.score = sum(logs) / len(logs)
        canvas = Canvas(torch.tensor([row]), torch.tensor([start]))
        policy = denoise(canvas, slice(0, len(row))).confidence
        if policy is not None and kept:
            h = policy[0, kept].double().tolist()
            self.score -= sum(math.log1p(math.exp(-each)) for each in h) / len(h)

    def sets(self, options: dict[str, Any], rules: list[tuple[float, float]]) -> list[list[int]]:
        high, p = options["threshold"], self.probability
        passing = [place for place in p if self.at_least(p[place], high)]
        found = [passing or [max(p, key=lambda place: (p[place], -place))]]
        for low, alike in rules:
            rule = dict(threshold=low, max_dependence=alike, certain_above=high)
            found.append(kept_in_one_step(self, rule))
        return found

    def after(self, kept: list[int]) -> list[int]:
        return [self.tokens[at] if at in kept else token for at, token in enumerate(self.row)]


def best_of(branches: list[Branch]) -> Branch:
    best = max(branches, key=lambda each: each.score)
    close = [each for each in branches if each is not best and best.score - each.score < NEAR]
    best.close |= bool(close)
    return best


def naive(denoise: Denoiser, prompt: list[int], options: dict[str, Any]) -> Sample | None:
    """An answer branch by branch; None where a comparison was close."""
    rules = [tuple(map(float, each.split(":"))) for each in options["branches"].split("+")]
    length, width = options["gen_length"], options["block_length"]
    row, forwards, further = prompt + [MASK] * length, 0, 0
    for first in range(len(prompt), len(row), width):
        block, open_rows, left = range(first, first + width), [(row, [])], width
        if "max_forwards" in options:
            left = options["max_forwards"] // (length // width)
        while open_rows:
            forwards, further, left = forwards + 1, further + len(open_rows) - 1, left - 1
            best = best_of(
                [Branch(denoise, each, len(prompt), block, kept) for each, kept in open_rows]
            )
            if left == 0:
                row, open_rows = best.after(list(best.probability)), []
                continue
            open_rows = []
            for number, kept in enumerate(best.sets(options, rules)):
                after = best.after(kept)
                if any(after[place] == MASK for place in block):
                    if after not in [each for each, _ in open_rows]:
                        open_rows.append((after, kept))
                elif number == 0 or all(best.at_least(best.probability[p], 0.9) for p in kept):
                    row, open_rows = after, []
                    break
            if best.close:
                return None
    return Sample(row[len(prompt) :], forwards, num_branches=further)


def random_options(choose: random.Random) -> dict[str, Any]:
    num_blocks, width = choose.choice([1, 2]), choose.choice([3, 4, 6])
    high = choose.choice([0.5, 0.7, 0.95])
    rules = [
        f"{choose.choice([0.1, 0.2, 0.35, 0.45])}:{choose.choice([0.05, 0.2, 0.5, 0.9])}"
        for _ in range(choose.choice([1, 2, 3]))
    ]
    options: dict[str, Any] = dict(
        gen_length=num_blocks * width,
        block_length=width,
        threshold=high,
        branches="+".join(rules),
    )
    if choose.random() < 0.3:
        options["max_forwards"] = num_blocks * choose.choice([1, 2, 3])
    return options


def compare(seeds: range) -> None:
    compared, further = 0, 0
    for seed in seeds:
        choose = random.Random(seed)
        options, prompt = random_options(choose), choose.choice(PROMPTS)
        denoise = toy_denoiser(seed, choose.choice([None, {7: 4.0}, {7: 7.0}]))
        if choose.random() < 0.4:
            denoise = without_policy(denoise)
        expected = naive(denoise, prompt, options)
        if expected is None:
            continue
        compared += 1
        assert run(options, [prompt], denoise) == [expected], options
        further += expected.num_branches > 0
    assert compared >= 0.95 * len(seeds) and further > 0.3 * len(seeds), (compared, further)


def test_answers_equal_a_naive_loop():
    compare(range(24))


@pytest.mark.slow
def test_answers_equal_a_naive_loop_over_more_than_200_random_settings():
    compare(range(24, 254))


# ---- costs and steps

BRANCHES = dict(gen_length=12, threshold=0.6, branches="0.2:0.4+0.3:0.2+0.3:0.2")


def test_rows_of_all_forwards_are_the_answers_forwards_and_their_further_branches():
    rows: list[int] = []

    def counted(canvas: Canvas, window: slice) -> Prediction:
        rows.append(len(canvas.tokens))
        return toy_denoiser()(canvas, window)

    steps, samples = steps_of(BRANCHES, counted)
    assert sum(rows) == sum(each.num_forwards + each.num_branches for each in samples)
    # what an observer sees is one row of each answer a forward, the chosen one
    assert sum(len(step.rows) for step in steps) == sum(each.num_forwards for each in samples)
    assert any(each.num_branches for each in samples)


@pytest.mark.parametrize("option", [{}, dict(confidence_eos_eot_inf=True)], ids=str)
def test_the_surest_branch_goes_on_whether_or_not_end_tokens_are_kept_last(option):
    # two branches of a row, each with one mask: the first proposes EOS, the second is surer
    logits = torch.zeros(2, 2, VOCAB)
    logits[0, 1, EOS], logits[1, 1, 7] = 3.0, 9.0
    tokens = torch.tensor([[5, MASK], [6, MASK]])
    block = ActiveBlock(tokens, torch.zeros(2, dtype=torch.long), 0, 0)
    numbers = torch.zeros(2, dtype=torch.long)
    judged = Branches(Prediction.from_logits(logits), block, tokens != MASK, numbers)
    options = {**GIVEN, **option}
    stepper = Branching(SamplerConfig(**options), SPECIAL, None, torch.zeros(1))
    assert surest(judged, stepper.judging, SPECIAL).tolist() == [1]


def test_a_probe_of_memory_has_the_rows_of_all_branches_and_drafts():
    engine, seen = Engine(), list[int]()

    def counted(canvas: Canvas, window: slice) -> Prediction:
        seen.append(len(canvas.tokens))
        return engine.prepared.denoise(canvas, window)

    prepared = engine.prepared._replace(denoise=counted)
    for option, rows in (({}, 2), (dict(branches="0.6:0.1+0.7:0.1"), 6), (dict(draft_rows=4), 8)):
        request = Request("1", engine.sampler_for(dict(gen_length=8, threshold=0.9, **option)))
        group = Group(request.sampler, (), [Encoded(0, [5, 6], "", None, 0, request)])
        decoding_probe(prepared, group, engine.special, engine.model.device).run(2)
        assert seen.pop() == rows


def test_an_answer_says_its_branches_beside_its_forwards():
    engine = Engine("llada_ups", pretrained="sudoku4", device="cpu", dtype="float32")
    prompts = SUDOKU4.prompts(4)
    given = dict(threshold=0.998, branches="0.6:0.1+0.6:0.02+0.8:0.02")
    sampler = engine.sampler_for({"gen_length": 16, **given})
    assert not sampler.revises
    answers = dict(engine.generate([Request(prompt, sampler) for prompt in prompts]))
    told = [statistics(answers[number]) for number in range(4)]
    assert all(each["branches"] > 0 and each["forwards"] <= 8 for each in told)
    totals = Totals()
    for each in told:
        totals.add(each)
    totals.add({name: each for name, each in told[0].items() if name != "branches"})  # older
    assert totals.info()["branches"] == sum(each["branches"] for each in told)


# ---- bad input

GIVEN = dict(gen_length=8, threshold=0.9, branches="0.6:0.1")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (dict(threshold=None), "branches has no effect without threshold, "),
        (dict(threshold=None, factor=1.0), "branches need threshold, the rule that they go beyond"),
        (dict(branches="0.6"), "branches must be THRESHOLD:MAX_DEPENDENCE .* got '0.6'"),
        (dict(branches="0.6:high"), "branches must be THRESHOLD:MAX_DEPENDENCE"),
        (dict(branches="0.9:0.1"), r"each threshold below threshold \(0.9\)"),
        (dict(branches="0.6:0.1+0.7:1.0"), "each dependence between 0 and 1"),
        (dict(branches=""), "branches must be THRESHOLD:MAX_DEPENDENCE"),
        (dict(threshold=1.0), "branches need a threshold below 1"),
        (dict(temperature=0.5), "branches and temperature do not go together"),
        (dict(max_dependence=0.1), "branches and max_dependence do not go together"),
        (dict(revise_below=0.1), "branches and revise_below do not go together"),
        (dict(edit_threshold=0.1), "branches and edit_threshold do not go together"),
        (dict(cache="dual"), "branches and cache do not go together"),
        (dict(at_least=2), "branches and at_least do not go together"),
        (dict(edit_threshold=0.0), "branches and edit_threshold do not go together"),
        (dict(paced=True), "branches and paced are alternatives"),
        (dict(stop_at="eos"), "branches and stop_at=eos do not go together"),
        (
            dict(sampling_method="block_causal", block_length=4),
            "branches makes rows of block-causal models, which share no cache: set cache=none",
        ),
    ],
    ids=str,
)
def test_a_wrong_option_is_told_with_what_was_given_and_what_is_allowed(more, message):
    SamplerConfig(**GIVEN)
    check_refused({**GIVEN, **more}, message)


def test_branches_beside_a_process_reward_model_are_refused():
    with pytest.raises(ValueError, match="branches and a process reward model"):
        SamplerConfig(**GIVEN).check_budget(reviewed=True)


def test_what_goes_without_branches_is_a_name_of_an_option():
    assert set(BESIDE_BRANCHES) <= {field.name for field in fields(SamplerConfig)}
