"""Drafts that the rows of the next forward verify, against a naive loop from the description."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import fields
from typing import Any, NamedTuple

import pytest
import torch

from llada_plugins.diffusion.denoiser import Canvas, Denoiser, Prediction
from llada_plugins.engine.engine import Engine
from llada_plugins.engine.request import Request
from llada_plugins.sampling.block_rules import BESIDE_DRAFTS
from llada_plugins.sampling.config import SamplerConfig
from llada_plugins.sampling.draft import Sample
from llada_plugins.sampling.speculation import LEAST, Choices, grow
from llada_plugins.tasks.registry import SUDOKU4
from tests.test_dependence import NEAR, Judged
from tests.test_sampler import MASK, PROMPTS, check_refused, run, steps_of, toy_denoiser

pytestmark = pytest.mark.floats

# ---- the decoder against a naive loop


class Node(NamedTuple):
    """A row, and the drafted tokens that it has beyond what the step kept."""

    row: list[int]
    drafted: tuple[tuple[int, int], ...]  # places and tokens

    def with_one_more(self, place: int, token: int) -> Node:
        row = [token if at == place else old for at, old in enumerate(self.row)]
        return Node(row, (*self.drafted, (place, token)))


class Read(Judged):
    """What a forward says of a node's masks."""

    def __init__(self, denoise: Denoiser, node: Node, start: int, block: range) -> None:
        places = [place for place in block if node.row[place] == MASK]
        super().__init__(denoise, node.row, start, places)
        self.order = sorted(places, key=lambda place: (-self.probability[place], place))
        ranked = [self.probability[place] for place in self.order]
        self.close |= any(abs(a - b) < NEAR for a, b in zip(ranked, ranked[1:]))

    def kept(self, options: dict[str, Any]) -> list[int]:
        """The places that the rule keeps, by descending probability."""
        found: list[int] = []
        spent = 0.0
        for place in self.order:
            p = self.probability[place]
            spent += 1 - p
            if "threshold" in options:
                passes = self.at_least(p, options["threshold"])
            elif "factor" in options:
                passes = not self.at_least((len(found) + 2) * (1 - p), options["factor"])
            else:
                passes = self.at_least(options["error_budget"], spent)
            if not passes:
                break
            found.append(place)
        return found or self.order[:1]

    def likeliest(self, place: int) -> list[tuple[float, int]]:
        """Probabilities and tokens at a place."""
        weights = self.choices[place]
        total = weights[self.tokens[place]] / self.probability[place]
        return [(weight / total, token) for token, weight in enumerate(weights)]


def drafts(read: Read, row: list[int], size: int) -> list[Node]:
    """The row itself and its likeliest drafts, all together `size` at most."""
    places = [place for place in read.order if row[place] == MASK][: size - 1]
    found, last = [(1.0, Node(row, ()))], [(1.0, Node(row, ()))]
    for place in places:
        last = [
            (p * more, node.with_one_more(place, token))
            for p, node in last
            for more, token in read.likeliest(place)
            if p * more >= LEAST - NEAR
        ]
        found += last
    found.sort(key=lambda each: (-each[0], len(each[1].drafted)))
    read.close |= any(abs(p - LEAST) < NEAR for p, _ in found)
    read.close |= any(a - b < NEAR for (a, _), (b, _) in zip(found, found[1:]))
    return [node for p, node in found[:size] if p >= LEAST]


def passes(read: Read, surely: list[int], last: tuple[int, int], options: dict[str, Any]) -> bool:
    """May this token stand, by what is read in the row without it? surely: what the rule keeps."""
    place, token = last
    if read.tokens[place] == token:
        bound = options.get("draft_threshold", 2.0)
        if place in surely or read.at_least(read.probability[place], bound):
            return True
    if "draft_odds" not in options:
        return False
    [own] = [p for p, each in read.likeliest(place) if each == token]
    best = read.probability[read.order[0]]
    return read.at_least(own * (1 - best), options["draft_odds"] * best * (1 - own))


def standing(
    node: Node,
    nodes: list[Node],
    reads: dict[tuple, Read],
    kept: Callable[[Read], list[int]],
    options: dict[str, Any],
) -> list[Node]:
    """The node and all that go on from it, as far as their tokens may stand."""
    found = [node]
    if node.drafted in reads:
        read = reads[node.drafted]
        children = [each for each in nodes if each.drafted and each.drafted[:-1] == node.drafted]
        for each in children:
            if passes(read, kept(read), each.drafted[-1], options):
                found += standing(each, nodes, reads, kept, options)
    return found


def longest(found: list[Node], nodes: list[Node]) -> Node:
    """Of those with most tokens the likeliest, in whose order nodes come."""
    return max(found, key=lambda each: (len(each.drafted), -nodes.index(each)))


def naive(denoise: Denoiser, prompt: list[int], options: dict[str, Any]) -> Sample | None:
    """An answer draft by draft; None where a comparison was close."""
    length, width = options["gen_length"], options["block_length"]
    row, forwards, further = prompt + [MASK] * length, 0, 0
    for first in range(len(prompt), len(row), width):
        block, nodes, left = range(first, first + width), [Node(row, ())], width
        if "max_forwards" in options:
            left = options["max_forwards"] // (length // width)
        while nodes:
            open_ones = [each for each in nodes if any(each.row[p] == MASK for p in block)]
            forwards, further, left = forwards + 1, further + len(open_ones) - 1, left - 1
            reads = {each.drafted: Read(denoise, each, len(prompt), block) for each in open_ones}

            def kept(read: Read, left: int = left) -> list[int]:
                return read.order if left == 0 else read.kept(options)

            node = longest(standing(nodes[0], nodes, reads, kept, options), nodes)
            row = node.row
            if node.drafted in reads:
                read = reads[node.drafted]
                surely = kept(read)
                row = [read.tokens[at] if at in surely else old for at, old in enumerate(row)]
            done = all(row[place] != MASK for place in block)
            nodes = [] if done else drafts(read, row, options["draft_rows"])
            if any(each.close for each in reads.values()):
                return None
    return Sample(row[len(prompt) :], forwards, num_branches=further)


RULES = (dict(threshold=0.5), dict(threshold=0.8), dict(factor=1.2), dict(error_budget=0.7))


def random_options(choose: random.Random) -> dict[str, Any]:
    num_blocks, width = choose.choice([1, 2]), choose.choice([3, 4, 6])
    options: dict[str, Any] = dict(
        gen_length=num_blocks * width,
        block_length=width,
        draft_rows=choose.choice([2, 3, 4, 8]),
        **choose.choice(RULES),
    )
    if choose.random() < 0.5:
        options["draft_threshold"] = choose.choice([0.2, 0.4, 0.6])
    if choose.random() < 0.5:
        options["draft_odds"] = choose.choice([0.05, 0.3, 0.8, 1.0])
    if choose.random() < 0.3:
        options["max_forwards"] = num_blocks * choose.choice([1, 2, 3])
    return options


def compare(seeds: range) -> None:
    compared, verified = 0, 0
    for seed in seeds:
        choose = random.Random(seed)
        options, prompt = random_options(choose), choose.choice(PROMPTS)
        denoise = toy_denoiser(seed, choose.choice([{7: 3.0}, {7: 4.0}, {7: 5.0}]))
        expected = naive(denoise, prompt, options)
        if expected is None:
            continue
        compared += 1
        assert run(options, [prompt], denoise) == [expected], options
        plain = {name: each for name, each in options.items() if not name.startswith("draft")}
        verified += expected.num_forwards < run(plain, [prompt], denoise)[0].num_forwards
    assert compared >= 0.9 * len(seeds) and verified > 0.1 * len(seeds), (compared, verified)


def test_answers_equal_a_naive_loop():
    compare(range(24))


@pytest.mark.slow
def test_answers_equal_a_naive_loop_over_more_than_200_random_settings():
    compare(range(24, 264))


# ---- trees


def test_a_tree_holds_the_likeliest_sets_of_tokens_with_all_that_they_go_on_from():
    stem = torch.tensor([[1, MASK, MASK], [1, 2, 4], [MASK, 5, MASK]])
    probability = torch.tensor(
        [[[0.6, 0.3], [0.5, 0.4]], [[0.0, 0.0], [0.0, 0.0]], [[0.9, 0.04], [0.02, 0.01]]]
    )
    choices = Choices(
        torch.tensor([[2, 1], [0, 1], [0, 2]]), torch.tensor([[[7, 8], [7, 9]]] * 3), probability
    )
    tree = grow(stem, choices, 4, MASK)
    # of the first .6, .3 and .6 x .5 = .3 beside itself, of the last .9; .04 is too little
    assert tree.answer.tolist() == [0, 0, 0, 0, 2, 2]
    assert tree.depth.tolist() == [0, 1, 1, 2, 0, 1]
    assert tree.parent.tolist() == [0, 0, 0, 1, 4, 4]
    assert tree.tokens.tolist()[:4] == [[1, MASK, MASK], [1, MASK, 7], [1, MASK, 8], [1, 7, 7]]
    assert tree.row.tolist() == [0, 1, 2, -1, 3, 4]  # a full one needs no forward


# ---- costs and steps

DRAFTS = dict(gen_length=12, threshold=0.6, draft_rows=4, draft_threshold=0.3)


def test_rows_of_all_forwards_are_the_answers_forwards_and_their_drafts():
    rows: list[int] = []

    def counted(canvas: Canvas, window: slice) -> Prediction:
        rows.append(len(canvas.tokens))
        return toy_denoiser(0, {7: 4.0})(canvas, window)

    steps, samples = steps_of(DRAFTS, counted)
    assert sum(rows) == sum(each.num_forwards + each.num_branches for each in samples)
    # an observer sees one row of each answer a forward, and each token kept once
    assert sum(len(step.rows) for step in steps) == sum(each.num_forwards for each in samples)
    assert sum(int(step.kept.sum()) for step in steps) == 12 * len(samples)
    assert all(math.isfinite(each) for step in steps for each in step.score[step.kept].tolist())
    assert any(each.num_branches for each in samples)


def test_sudokus_take_fewer_forwards_with_drafts_and_an_answer_says_its_further_rows():
    engine = Engine("llada_ups", pretrained="sudoku4", device="cpu", dtype="float32")
    prompts = SUDOKU4.prompts(8)
    given = dict(gen_length=16, threshold=0.99)
    plain = Engine("llada", pretrained="sudoku4", device="cpu", dtype="float32").sampler_for(given)
    drafting = engine.sampler_for({**given, "draft_rows": 4, "draft_threshold": 0.9})
    assert not drafting.revises and not plain.revises
    without, found = (
        dict(engine.generate([Request(prompt, sampler) for prompt in prompts]))
        for sampler in (plain, drafting)
    )
    saved = [without[each].num_forwards - found[each].num_forwards for each in range(8)]
    assert sum(saved) >= 8
    # an answer of one forward has none to draft for
    assert all((each.num_branches > 0) == (each.num_forwards > 1) for each in found.values())


# ---- bad input

GIVEN = dict(gen_length=8, threshold=0.9, draft_rows=4)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (dict(threshold=None), "draft_rows has no effect without threshold, "),
        (dict(draft_rows=1), "draft_rows must be at least 2, .* got 1"),
        (dict(draft_rows=None, draft_threshold=0.5), "draft_threshold has no effect without"),
        (dict(draft_threshold=0.0), "draft_threshold must be above 0 and at most 1, got 0.0"),
        (dict(draft_threshold=1.5), "draft_threshold must be above 0 and at most 1, got 1.5"),
        (dict(draft_odds=float("nan")), "draft_odds must be above 0 and at most 1, got nan"),
        (
            dict(draft_odds=0.3, confidence_source="margin"),
            "draft_odds compares the model's own probabilities",
        ),
        (
            dict(threshold=None, threshold_entropy=0.5, draft_threshold=0.5),
            "draft_threshold compares probabilities",
        ),
        (dict(branches="0.6:0.1"), "draft_rows and branches do not go together"),
        (dict(temperature=0.5), "draft_rows and temperature do not go together"),
        (dict(revise_below=0.1), "draft_rows and revise_below do not go together"),
        (dict(cache="dual"), "draft_rows and cache do not go together"),
        (dict(stop_at="eos"), "draft_rows and stop_at=eos do not go together"),
        (
            dict(sampling_method="block_causal", block_length=4),
            "draft_rows makes rows of block-causal models, which share no cache: set cache=none",
        ),
    ],
    ids=str,
)
def test_a_wrong_option_is_told_with_what_was_given_and_what_is_allowed(more, message):
    SamplerConfig(**GIVEN)
    check_refused({**GIVEN, **more}, message)


def test_drafts_beside_a_process_reward_model_are_refused():
    with pytest.raises(ValueError, match="draft_rows and a process reward model"):
        SamplerConfig(**GIVEN).check_budget(reviewed=True)


def test_what_goes_without_drafts_is_a_name_of_an_option():
    assert set(BESIDE_DRAFTS) <= {field.name for field in fields(SamplerConfig)}
