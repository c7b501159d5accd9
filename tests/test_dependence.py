"""Tokens that depend on one another are not kept in one step: the rule against its formulas."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch

from llada_plugins.diffusion.denoiser import Canvas, Denoiser, Prediction
from llada_plugins.sampling.config import SamplerConfig
from llada_plugins.sampling.dependence import without_dependents
from llada_plugins.sampling.draft import Sample
from tests.test_sampler import MASK, PROMPTS, SURE, check_refused, run, toy_denoiser

pytestmark = pytest.mark.floats

DEPENDENCE = ("max_dependence", "certain_above")

# ---- the decoder against a naive loop

NEAR = 1e-5  # a comparison this close may fall otherwise in float32: that setting is left out


class Judged:
    """Distributions of one row's masked places in float64, and comparisons that were close."""

    def __init__(self, denoise: Denoiser, row: list[int], start: int, places: list[int]) -> None:
        canvas = Canvas(torch.tensor([row]), torch.tensor([start]))
        logits = denoise(canvas, slice(0, len(row))).logits_at(torch.tensor([places]))[0]
        self.choices, self.tokens, self.probability, self.entropy = {}, {}, {}, {}
        for place, values in zip(places, logits.double().tolist()):
            total = sum(math.exp(value) for value in values)
            weights = [math.exp(value) * (token != MASK) for token, value in enumerate(values)]
            self.tokens[place] = max(range(len(values)), key=weights.__getitem__)
            self.choices[place] = weights
            self.probability[place] = weights[self.tokens[place]] / total
            shares = [math.exp(value) / total for value in values]
            self.entropy[place] = -sum(share * math.log(share) for share in shares)
        self.close = False

    def alike(self, one: int, other: int) -> float:
        a, b = self.choices[one], self.choices[other]
        dot = sum(x * y for x, y in zip(a, b))
        return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))

    def at_least(self, value: float, bound: float) -> bool:
        self.close |= abs(value - bound) < NEAR
        return value >= bound


ALONE = {
    "threshold": lambda p: 1 - p,
    "threshold_entropy": lambda h: 1 - math.exp(-h),
    "factor": lambda f: f / 2,
    "error_budget": lambda b: b,
}


def kept_in_one_step(judged: Judged, options: dict[str, Any]) -> list[int]:
    """Places to keep, as the rules are written down: one pass by descending probability."""
    [(rule, value)] = [(name, options[name]) for name in ALONE if name in options]
    certain = options.get("certain_above", 1 - ALONE[rule](value) / 150)
    p = judged.probability
    kept: list[int] = []
    passed_over: list[int] = []
    independent: list[int] = []  # of those after the first that the rule refuses
    spent, refused = 0.0, False
    doubt = judged.entropy if rule == "threshold_entropy" else {at: -p[at] for at in p}
    for place in sorted(p, key=lambda place: (doubt[place], place)):
        uncertain = [
            other for other in [*kept, *independent] if not judged.at_least(p[other], certain)
        ]
        depends = not judged.at_least(p[place], certain) and any(
            judged.at_least(judged.alike(place, other), options["max_dependence"])
            for other in uncertain
        )
        if depends:
            passed_over.append(place)
            continue
        spent += 1 - p[place]
        if rule == "threshold":
            passes = judged.at_least(p[place], value)
        elif rule == "threshold_entropy":
            passes = judged.at_least(value, judged.entropy[place])
        elif rule == "factor":
            passes = not judged.at_least((len(kept) + 2) * (1 - p[place]), value)
        else:
            passes = judged.at_least(value, spent)
        refused = refused or not passes
        (independent if refused else kept).append(place)
    wanted = max(options.get("at_least", 1), len(kept))
    return [*kept, *independent, *passed_over][:wanted]


def naive(denoise: Denoiser, prompt: list[int], options: dict[str, Any]) -> Sample | None:
    """An answer token by token; None where a comparison was close."""
    length, width = options["gen_length"], options["block_length"]
    row, forwards = prompt + [MASK] * length, 0
    for first in range(len(prompt), len(row), width):
        left = options["max_forwards"] // (length // width) if "max_forwards" in options else width
        while places := [p for p in range(first, first + width) if row[p] == MASK]:
            judged = Judged(denoise, row, len(prompt), places)
            forwards, left = forwards + 1, left - 1
            for place in places if left == 0 else kept_in_one_step(judged, options):
                row[place] = judged.tokens[place]
            if judged.close:
                return None
    return Sample(row[len(prompt) :], forwards)


def random_options(choose: random.Random) -> dict[str, Any]:
    num_blocks, width = choose.choice([1, 2]), choose.choice([3, 4, 6])
    options: dict[str, Any] = dict(
        gen_length=num_blocks * width,
        block_length=width,
        max_dependence=choose.choice([0.03, 0.1, 0.2, 0.4, 0.7, 0.95]),
    )
    rule = choose.choice(list(ALONE))
    options[rule] = choose.choice(
        {
            "threshold": [0.15, 0.3, 0.5, 0.7],
            "threshold_entropy": [0.8, 1.4, 2.0],
            "factor": [0.7, 1.4, 1.9, 4.0],
            "error_budget": [0.5, 0.9, 1.7, 3.0],
        }[rule]
    )
    if choose.random() < 0.6:
        options["certain_above"] = choose.choice([0.71, 0.8, 0.9])
    if choose.random() < 0.3:
        options["at_least"] = choose.choice([2, 3])
    if choose.random() < 0.3:
        options["max_forwards"] = num_blocks * choose.choice([1, 2, 4])
    return options


def test_answers_equal_a_naive_loop_over_more_than_200_random_settings():
    compared, passed_over, sooner = 0, 0, 0
    for seed in range(206):
        choose = random.Random(seed)
        options, prompt = random_options(choose), choose.choice(PROMPTS)
        denoise = toy_denoiser(seed, SURE if seed % 2 else None)
        expected = naive(denoise, prompt, options)
        if expected is None:
            continue
        compared += 1
        assert run(options, [prompt], denoise) == [expected], options
        sooner += expected.num_forwards < options["gen_length"]
        if seed % 4 == 0:
            plain = {name: each for name, each in options.items() if name not in DEPENDENCE}
            passed_over += run(plain, [prompt], denoise)[0].num_forwards < expected.num_forwards
    assert compared >= 200 and passed_over > 3 and sooner > 100, (compared, passed_over, sooner)


# ---- properties


def greedy(score: list[float], eligible: list[bool], dependent: list[list[bool]]) -> list[bool]:
    taken: list[int] = []
    for place in sorted(range(len(score)), key=lambda place: (-score[place], place)):
        if eligible[place] and not any(dependent[place][other] for other in taken):
            taken.append(place)
    return [place in taken for place in range(len(score))]


def test_the_best_go_first_and_each_excludes_what_depends_on_it():
    generator = torch.Generator().manual_seed(5)
    for share in (0.0, 0.1, 0.4, 1.0):
        score = (torch.rand(40, 9, generator=generator) * 4).round()  # with ties
        eligible = torch.rand(40, 9, generator=generator) < 0.8
        dependent = torch.rand(40, 9, 9, generator=generator) < share
        dependent = dependent | dependent.mT
        taken = without_dependents(score, eligible, dependent)
        rows = zip(score.tolist(), eligible.tolist(), dependent.tolist())
        assert taken.tolist() == [greedy(*row) for row in rows]


def fixed_denoiser(probability: float, tokens: list[int]) -> Denoiser:
    """At every step the token of its column with this probability, else the mask token."""
    logits = torch.full((1, len(tokens), 16), -math.inf)
    for place, token in enumerate(tokens):
        for each, share in ((token, probability), (MASK, 1 - probability)):
            logits[0, place, each] = math.log(share)

    def denoise(canvas: Canvas, window: slice) -> Prediction:
        return Prediction.from_logits(logits.expand(len(canvas.tokens), -1, -1).clone())

    return denoise


@pytest.mark.parametrize(
    ("tokens", "certain_above", "forwards"),
    [
        ([5, 5, 5, 5, 5, 5], None, 6),  # one at a time
        ([5, 5, 5, 5, 5, 5], 0.85, 1),  # of which the model is certain
        ([4, 5, 6, 7, 8, 9], None, 1),  # nothing in common
        ([4, 4, 5, 5, 5, 6], None, 3),  # as often as the commonest
    ],
)
def test_equal_predictions_take_turns_unless_they_are_certain(tokens, certain_above, forwards):
    more = {} if certain_above is None else dict(certain_above=certain_above)
    options = dict(gen_length=6, threshold=0.6, max_dependence=0.5, **more)
    for rule in (dict(threshold=0.6), dict(error_budget=0.75), dict(factor=0.9)):
        given = {**options, "threshold": None, **rule}
        [sample] = run(given, [[5, 6]], fixed_denoiser(0.9, tokens))
        assert sample == Sample(tokens, forwards)


def test_a_floor_is_reached_with_tokens_that_depend_on_others():
    denoise = fixed_denoiser(0.9, [5, 5, 5, 5, 5, 5])
    for at_least, forwards in ((2, 3), (4, 2)):
        options = dict(gen_length=6, threshold=0.6, max_dependence=0.5, at_least=at_least)
        assert run(options, [[5]], denoise)[0].num_forwards == forwards


def test_no_row_waits_for_another_and_few_logits_exist_together(monkeypatch):
    asked: list[int] = []

    def watched(canvas: Canvas, window: slice) -> Prediction:
        prediction = toy_denoiser()(canvas, window)

        def logits_at(at, rows=None):
            asked.append(at.numel())
            return prediction.logits_at(at, rows)

        return prediction._replace(logits_at=logits_at)

    monkeypatch.setattr("llada_plugins.sampling.propose.positions_at_once", lambda device: 30)
    run(dict(gen_length=12, threshold=0.3, max_dependence=0.3), PROMPTS, watched)
    assert 24 <= max(asked) <= 30


MISTAKES = [
    (dict(max_dependence=0.1), r"max_dependence has no effect without threshold, "),
    (dict(max_dependence=0.1, revise=True), r"max_dependence has no effect without threshold, "),
    (dict(max_dependence=0.0, factor=1.0), r"max_dependence must be between 0 and 1, got 0.0"),
    (dict(max_dependence=1.0, factor=1.0), r"max_dependence must be between 0 and 1, got 1.0"),
    (dict(max_dependence=math.nan, factor=1.0), r"max_dependence must be between .*, got nan"),
    (dict(certain_above=0.9, threshold=0.5), r"certain_above has no effect without max_dependence"),
    (
        dict(certain_above=1.5, threshold=0.5, max_dependence=0.1),
        r"certain_above must be between 0 and 1, got 1.5",
    ),
    (
        dict(certain_above=0.5, threshold=0.5, max_dependence=0.1),
        r"certain_above \(0.5\) must be above threshold \(0.5\)",
    ),
]


@pytest.mark.parametrize(
    ("options", "message"), MISTAKES, ids=lambda each: str(each) if isinstance(each, dict) else ""
)
def test_a_wrong_option_is_told_with_what_was_given_and_what_is_allowed(options, message):
    check_refused(options, message)


@pytest.mark.parametrize(
    ("rule", "certainty"),
    [
        (dict(threshold=0.7), 0.998),
        (dict(error_budget=0.15), 0.999),
        (dict(factor=0.6), 0.998),
        (dict(threshold_entropy=math.log(2)), 1 - 0.5 / 150),
        (dict(threshold=0.7, certain_above=0.9), 0.9),
    ],
    ids=str,
)
def test_a_token_is_certain_where_an_error_is_150_times_rarer_than_the_rule_allows(rule, certainty):
    config = SamplerConfig(max_dependence=0.1, **rule)
    assert config.certainty == pytest.approx(certainty)
