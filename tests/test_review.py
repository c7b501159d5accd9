"""Reviews: what holds for every one of them, brute-force oracles for what they choose,
budgets, and the text between blocks and steps.
"""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
import torch

from llada_plugins.diffusion.denoiser import Canvas, Denoiser, Prediction
from llada_plugins.diffusion.random_streams import request_key
from llada_plugins.models.special_tokens import SpecialTokens
from llada_plugins.rewards.block_review import BlockReview, Scores, masked_shares, summary
from llada_plugins.rewards.families import Encoded
from llada_plugins.rewards.review_config import ReviewConfig
from llada_plugins.rewards.step_scorer import StepScorer
from llada_plugins.rewards.steps import block_ends, block_scorer, split_steps
from llada_plugins.sampling.config import SamplerConfig
from llada_plugins.sampling.decode import decode
from llada_plugins.sampling.draft import Draft, Filled, Sample
from llada_plugins.sampling.generate import generate, with_options
from llada_plugins.sampling.step import Step
from tests.test_sampler import EOS, MASK, PROMPTS, SPECIAL, VOCAB, record, toy_denoiser

pytestmark = pytest.mark.floats

SAMPLER = dict(gen_length=16, block_length=4, steps=8)
REVIEWS = [
    dict(method="vanilla", num_candidates_per_block=3),
    dict(
        method="vanilla",
        num_candidates_per_block=4,
        candidate_temperature=2.0,
        selection_metric="min_score",
    ),
    dict(num_candidates_per_block=2, max_retry_attempts=3),
    dict(num_demasking_candidates=3, backmasking_lookback=2, backmasking_threshold=0.9),
    dict(
        backmasking_frequency=4,
        backmasking_lookback=4,
        max_retry_attempts=4,
        backmasking_threshold=0.8,
    ),
    dict(global_demasking=True, backmasking_threshold=0.7, backmasking_lookback=2),
    dict(
        backmasking_rule="legacy",
        num_candidates_per_block=2,
        num_demasking_candidates=2,
        backmasking_lookback=2,
    ),
    dict(
        backmasking_rule="legacy",
        backmasking_lookback=3,
        num_candidates_per_block=1,
        backmasking_intensity=1.0,
        global_demasking=False,
    ),
    dict(
        method="window",
        backmasking_frequency=2,
        num_refinement_samples=3,
        backmasking_intensity=1.0,
    ),
    dict(
        method="window",
        backmasking_frequency=3,
        num_refinement_samples=2,
        backmasking_threshold=0.99,
    ),
]
SAMPLERS = [
    SAMPLER,
    dict(SAMPLER, temperature=1.0),
    dict(SAMPLER, threshold=0.4),
    dict(SAMPLER, sampling_method="semi_ar_origin"),
    dict(SAMPLER, revise=True, confidence_source="ups"),
    dict(SAMPLER, early_stop=True, temperature=0.5),
]
every_review = pytest.mark.parametrize(
    "options", REVIEWS, ids=lambda options: ",".join(f"{k}={v}" for k, v in options.items())
)
every_sampler = pytest.mark.parametrize(
    "sampler", SAMPLERS, ids=lambda options: ",".join(f"{k}={v}" for k, v in options.items())
)


def hashed_score(block: list[int], before: list[int]) -> float:
    """A score in [0, 1) that depends on the block and everything before it."""
    return request_key(7, before, block) % 1000 / 1000


class Judge:
    """A scorer of token blocks that remembers what it was asked; blocks behind an EOS
    hold nothing to judge.
    """

    def __init__(self, block: int, rule=hashed_score) -> None:
        self.block, self.rule, self.asked = block, rule, []

    def of(self, answer: list[int]) -> Scores:
        end = answer.index(EOS) if EOS in answer else len(answer)
        return [
            self.rule(answer[first : min(first + self.block, end)], answer[:first])
            if first < end
            else None
            for first in range(0, len(answer), self.block)
        ]

    def __call__(self, rows, answers) -> list[Scores]:
        self.asked += [(row, list(answer)) for row, answer in zip(rows, answers)]
        return [self.of(list(answer)) for answer in answers]


def endless() -> Denoiser:
    return toy_denoiser(favoured={EOS: -30.0})


def run(
    review: dict,
    sampler: dict = SAMPLER,
    prompts=PROMPTS,
    denoise: Denoiser | None = None,
    judge: Judge | None = None,
    **given,
) -> list[Sample]:
    config = SamplerConfig(**sampler)
    judge = judge or Judge(config.block)
    return decode(
        denoise or toy_denoiser(),
        prompts,
        config,
        SPECIAL,
        review=BlockReview(ReviewConfig(**review), config, judge, MASK),
        **given,
    )


def plain(
    sampler: dict = SAMPLER, prompts=PROMPTS, denoise: Denoiser | None = None, **given
) -> list[Sample]:
    return decode(denoise or toy_denoiser(), prompts, SamplerConfig(**sampler), SPECIAL, **given)


# --- every review ---------------------------------------------------------------------


@every_sampler
@every_review
def test_answers_are_whole_counted_and_independent_of_their_batch(options, sampler):
    together = run(options, sampler)
    for prompt, sample in zip(PROMPTS, together):
        judge = Judge(4)
        [alone] = run(options, sampler, [prompt], judge=judge)
        assert alone == sample
        assert MASK not in sample.answer and len(sample.answer) % 4 == 0
        assert sample.num_scored == sum(
            any(score is not None for score in judge.of(answer)) for _, answer in judge.asked
        )
    assert run(options, sampler, list(reversed(PROMPTS))) == list(reversed(together))


@pytest.mark.parametrize("more", [{}, dict(schedule="dream")], ids=str)
@every_review
def test_a_last_block_of_the_rest_is_filled_and_filled_again_within_its_tokens(options, more):
    sampler = dict(gen_length=14, block_length=4, steps=8, last_block="rest", **more)
    seen: list[tuple[Canvas, slice]] = []
    together = run(options, sampler, denoise=record(endless(), seen))
    assert {len(sample.answer) for sample in together} == {14}
    assert not any(MASK in sample.answer for sample in together)
    assert {canvas.tokens.shape[1] - int(canvas.answer_start[0]) for canvas, _ in seen} == {14}
    for prompt, sample in zip(PROMPTS, together):
        assert run(options, sampler, [prompt], denoise=endless()) == [sample]


class Rounds(torch.nn.Module):
    """A model of steps whose results err by another little in every call."""

    def __init__(self, error: float) -> None:
        super().__init__()
        self.on_a_device = torch.nn.Parameter(torch.zeros(1))
        self.error, self.calls = error, 0

    def forward(self, ids, rows, positions):
        self.calls += 1
        seen = [ids[row, : place + 1].tolist() for row, place in zip(rows, positions.tolist())]
        right = torch.tensor([request_key(3, each) % 2**40 / 2**40 for each in seen])
        return torch.stack([right * 0, right + self.calls * self.error], -1)


@pytest.mark.parametrize("more", [{}, dict(selection_metric="min_score")], ids=["own", "min_score"])
@every_review
def test_rounding_of_a_judge_does_not_choose_between_answers_that_read_the_same(options, more):
    prompts = PROMPTS[:3]

    def answers(error: float) -> list[list[int]]:
        config = SamplerConfig(**SAMPLER, temperature=1.0)
        scorer = StepScorer(
            model=Rounds(error),
            encoder=lambda question, steps: Encoded(
                [ord(letter) for step in steps for letter in f"{step}\n"],
                [sum(len(step) + 1 for step in steps[: n + 1]) - 1 for n in range(len(steps))],
            ),
            family="none",
            options={},
            source="none",
            vocabulary=128,
            max_length=1000,
            batch_size=2,
        )
        score = block_scorer(
            scorer,
            ["?"] * len(prompts),
            block=4,
            ends=[EOS],
            by="block",
            decode=lambda ids: "".join("ab"[token % 2] for token in ids),
        )
        review = BlockReview(ReviewConfig(**{**options, **more}), config, score, MASK)
        found = decode(toy_denoiser(), prompts, config, SPECIAL, review=review)
        return [sample.answer for sample in found]

    assert answers(1e-6) == answers(-1e-6)


@every_review
def test_the_seed_decides(options):
    assert [sample.answer for sample in run(options, dict(SAMPLER, temperature=1.0))] != [
        sample.answer for sample in run(options, dict(SAMPLER, temperature=1.0, seed=1))
    ]


@every_sampler
@every_review
def test_no_later_block_is_filled_early_and_the_prompt_stays(options, sampler):
    seen: list[tuple[Canvas, slice]] = []
    run(options, sampler, denoise=record(toy_denoiser(), seen))
    reached = 0
    for canvas, window in seen:
        start = int(canvas.answer_start[0])
        block = (window.stop - start) // 4
        assert (window.start - start) % 4 == 0 and window.start >= start
        later = canvas.tokens[:, max(window.stop, start + 4 * reached) :]
        assert (later == MASK).all()
        reached = max(reached, block)
        for row in canvas.tokens.tolist():
            assert [token for token in row[:start] if token >= 0] in PROMPTS


@every_review
def test_forwards_are_those_the_denoiser_did(options):
    """Rows with a mask in the window, over all its calls: counted from outside."""
    seen: list[tuple[Canvas, slice]] = []
    samples = run(options, prompts=[[5, 6, 7]], denoise=record(toy_denoiser(), seen))
    assert samples[0].num_forwards == sum(
        int((canvas.tokens[:, window] == MASK).any(-1).sum()) for canvas, window in seen
    )


@pytest.mark.parametrize(
    "sampler",
    [
        *SAMPLERS,
        dict(SAMPLER, steps=16),
        dict(SAMPLER, steps=16, revise=True, confidence_source="ups"),
        dict(SAMPLER, steps=12, revise=True, cfg_scale=0.5, temperature=1.0),
    ],
    ids=str,
)
@every_review
def test_every_forward_does_something_for_every_row_that_is_charged_for_it(options, sampler):
    """Random positions of a block may be fewer than its steps; under revise a step may
    then exchange tokens alone.
    """
    charged: Counter[int] = Counter()

    def count(step: Step) -> None:
        assert (step.kept.sum(-1) - step.remasked.sum(-1) >= (0 if config.revises else 1)).all()
        charged.update(step.rows.tolist())

    config = SamplerConfig(**sampler)
    samples = run(
        options, sampler, denoise=with_options(toy_denoiser(), config, SPECIAL), on_step=count
    )
    assert [sample.num_forwards for sample in samples] == [
        charged[row] for row in range(len(PROMPTS))
    ]


@pytest.mark.parametrize("sampler", SAMPLERS[:3], ids=str)
@every_review
@pytest.mark.parametrize("calls", [0, 1, 5, None])
def test_budgets_hold(options, sampler, calls):
    config = SamplerConfig(**sampler)
    least = config.num_blocks * (1 if config.adaptive else config.steps_per_block)
    for forwards in (least, least + 3, 4 * least):
        for sample in run(dict(options, max_prm_calls=calls), dict(sampler, max_forwards=forwards)):
            assert sample.num_forwards <= forwards
            assert calls is None or sample.num_scored <= calls
            assert MASK not in sample.answer


@every_review
def test_without_calls_or_forwards_to_spare_it_is_plain_decoding(options):
    expected = plain(dict(SAMPLER, temperature=1.0))
    assert [
        sample.answer
        for sample in run(dict(options, max_prm_calls=0), dict(SAMPLER, temperature=1.0))
    ] == [s.answer for s in expected]
    spare = run(options, dict(SAMPLER, temperature=1.0, max_forwards=8))
    assert [(sample.answer, sample.num_forwards) for sample in spare] == [
        (s.answer, s.num_forwards) for s in expected
    ]


@every_review
def test_a_content_scorer_changes_nothing_but_the_candidates(options):
    """All blocks score 1: none is low, and of equal candidates the first stays.
    (Without EOS: an empty answer scores nothing.)
    """
    content = Judge(4, rule=lambda block, before: 1.0)
    assert [sample.answer for sample in run(options, judge=content, denoise=endless())] == [
        sample.answer for sample in plain(denoise=endless())
    ]


def test_blocks_behind_the_end_are_neither_judged_nor_masked_again():
    ends = toy_denoiser(favoured={EOS: 30.0})  # the first proposal is EOS everywhere
    judge = Judge(4)
    for sample in run(dict(backmasking_threshold=1.0), denoise=ends, judge=judge):
        assert sample == Sample([EOS] * 16, 8, 0)
    assert all(judge.of(answer) == [None] * (len(answer) // 4) for _, answer in judge.asked)


# --- what is chosen: brute force ------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_vanilla_keeps_the_candidate_whose_newest_block_scores_best(temperature):
    """Every candidate decoded by itself through the public interface, one answer block
    at a time.
    """
    config = SamplerConfig(**dict(SAMPLER, temperature=temperature))
    judge, prompt = Judge(4), [5, 6, 7]
    [sample] = run(
        dict(method="vanilla", num_candidates_per_block=4),
        dict(SAMPLER, temperature=temperature),
        [prompt],
        endless(),
    )
    key, answer = request_key(0, prompt), []
    for number in range(4):
        candidates = []
        for copy in range(4):
            options = dict(SAMPLER, temperature=temperature if copy == 0 else temperature or 0.7)
            stream = key if copy == 0 else request_key(key, (number, 0, copy))
            candidates.append(
                answer + block_of(prompt, answer, number, SamplerConfig(**options), stream)
            )
        answer = max(candidates, key=lambda each: judge.of(each)[-1])
    assert sample == Sample(answer, 4 * config.steps, 16)


def block_of(
    prompt: list[int], answer: list[int], number: int, config: SamplerConfig, key: int
) -> list[int]:
    """One block decoded behind `answer`, by a decode call whose earlier blocks are forced."""
    toy = endless()

    def forced(canvas: Canvas, window: slice) -> Prediction:
        first = window.start - int(canvas.answer_start[0])
        if first < len(answer):
            wanted = torch.full((1, window.stop - window.start, VOCAB), -1e4)
            for column in range(window.stop - window.start):
                wanted[0, column, answer[first + column]] = 1e4
            return Prediction.from_logits(wanted)
        return toy(canvas, window)

    [sample] = decode(forced, [prompt], config, SPECIAL, keys=[key])
    assert sample.answer[: len(answer)] == answer
    return sample.answer[len(answer) : len(answer) + 4]


@pytest.mark.parametrize("metric", ["mean", "product", "min_score", "last"])
@pytest.mark.parametrize(
    "options",
    [dict(), dict(num_demasking_candidates=3), dict(method="window", backmasking_frequency=2)],
    ids=str,
)
def test_a_look_back_never_lowers_the_metric(options, metric):
    """The answer that is kept at each block's end is at least as good as the block's
    first fill, in the scorer's own words.
    """
    for seed in range(5):
        judge = Judge(4)
        [sample] = run(
            dict(
                options, selection_metric=metric, backmasking_threshold=1.0, backmasking_lookback=4
            ),
            dict(SAMPLER, seed=seed),
            [PROMPTS[0]],
            judge=judge,
        )
        first_whole = next(answer for _, answer in judge.asked if len(answer) == 16)
        best = max(
            summary(judge.of(answer), metric) for _, answer in judge.asked if len(answer) == 16
        )
        assert (
            summary(judge.of(sample.answer), metric)
            == best
            >= summary(judge.of(first_whole), metric)
        )


def test_only_low_masks_low_blocks_again_and_leaves_the_others():
    seen: list[tuple[Canvas, slice]] = []
    # the second and the fourth block
    low = Judge(4, rule=lambda block, before: 0.2 if len(before) in (4, 12) else 0.9)
    run(
        dict(backmasking_frequency=4, backmasking_lookback=4, max_retry_attempts=1),
        prompts=[[5, 6, 7]],
        denoise=record(endless(), seen),
        judge=low,
    )
    refills = seen[8:]
    assert [window.start - 3 for _, window in refills] == [4, 4, 12, 12]
    answer = refills[0][0].tokens[0, 3:].tolist()
    assert [MASK in answer[first : first + 4] for first in (0, 4, 8, 12)] == [
        False,
        True,
        False,
        True,
    ]


def test_tokens_that_a_review_masks_again_are_counted_for_every_refill():
    # of the second and the fourth block; the scores stay, so every attempt masks them again
    low = Judge(4, rule=lambda block, before: 0.2 if len(before) in (4, 12) else 0.9)
    config = SamplerConfig(**SAMPLER)
    options = dict(backmasking_frequency=4, backmasking_lookback=4, max_retry_attempts=1)
    counted = []
    for num_refills in (1, 3):
        review = ReviewConfig(**options, num_demasking_candidates=num_refills)
        judged = BlockReview(review, config, low, MASK)
        filled = []

        def noted(draft: Draft, judged: BlockReview = judged, filled: list = filled) -> Filled:
            filled.append(judged(draft))
            return filled[-1]

        decode(endless(), [[5, 6, 7]], config, SPECIAL, review=noted)
        counted.append([int(each.num_revised) for each in filled])
    assert counted == [[0, 0, 0, 2 * 4 * 1], [0, 0, 0, 2 * 4 * 3]]


def test_legacy_drops_the_old_state_even_for_a_worse_one_and_waits_for_a_full_look_back():
    first_seen: dict[int, int] = {}

    # every answer scores less than the one before it
    def spoiled(block: list[int], before: list[int]) -> float:
        key = request_key(0, before, block)
        return 0.5 / (1 + first_seen.setdefault(key, len(first_seen)))

    legacy = dict(
        backmasking_rule="legacy",
        num_candidates_per_block=1,
        num_demasking_candidates=1,
        backmasking_lookback=3,
        backmasking_intensity=1.0,
    )
    seen: list[tuple[Canvas, slice]] = []
    [unreviewed] = plain(prompts=[[5, 6, 7]], denoise=endless())
    [replaced] = run(
        legacy, prompts=[[5, 6, 7]], judge=Judge(4, spoiled), denoise=record(endless(), seen)
    )
    wide = [
        (window.start - 3, window.stop - 3) for _, window in seen if window.stop - window.start > 4
    ]
    assert set(wide) == {(0, 12), (4, 16)} and replaced.answer != unreviewed.answer
    first_seen.clear()
    [kept] = run(
        dict(legacy, backmasking_rule="only_low"),
        prompts=[[5, 6, 7]],
        judge=Judge(4, spoiled),
        denoise=endless(),
    )
    assert kept.answer == unreviewed.answer


def test_a_window_is_refined_together_every_k_blocks_in_the_steps_of_one():
    seen: list[tuple[Canvas, slice]] = []
    window = dict(
        method="window",
        backmasking_frequency=2,
        num_refinement_samples=3,
        backmasking_intensity=1.0,
    )
    run(
        window,
        prompts=[[5, 6, 7]],
        denoise=record(endless(), seen),
        judge=Judge(4, rule=lambda block, before: 0.1),
    )
    shapes = [(len(canvas.tokens), span.start - 3, span.stop - 3) for canvas, span in seen]
    one = [(1, 0, 4)] * 2 + [(1, 4, 8)] * 2 + [(3, 0, 8)] * 2
    assert shapes == one + [(rows, first + 8, last + 8) for rows, first, last in one]


@pytest.mark.parametrize(
    "scores, expected", [([0.2, 0.8, 0.5], None), ([0.3, 0.3], None), ([0.0], None)]
)
def test_masked_shares_follow_the_published_formula(scores, expected):
    """exp(-alpha s), at least 0.01; legacy: min-max to [0.01, 1]; window: divided by
    the largest.
    """
    legacy = ReviewConfig(
        backmasking_rule="legacy", backmasking_alpha=5.0, backmasking_intensity=0.5
    )
    raw = [max(math.exp(-5 * score), 0.01) for score in scores]
    spread = max(raw) - min(raw)
    shares = masked_shares(scores, legacy)
    for value, share in zip(raw, shares):
        assert share == pytest.approx(
            0.5 * (0.01 + 0.99 * (value - min(raw)) / spread if spread else value)
        )
    window = ReviewConfig(method="window", backmasking_alpha=5.0, backmasking_intensity=0.5)
    assert masked_shares(scores, window) == pytest.approx([0.5 * value / max(raw) for value in raw])


def test_the_worst_block_of_any_scores_has_exactly_the_intensity():
    legacy, window = ReviewConfig(backmasking_rule="legacy"), ReviewConfig(method="window")
    choose = random.Random(0)
    for _ in range(1000):
        scores = [choose.random() for _ in range(choose.randint(2, 5))]
        assert max(masked_shares(scores, legacy)) == legacy.backmasking_intensity
        assert max(masked_shares(scores, window)) == window.backmasking_intensity


def test_summaries():
    scores = [0.5, None, 0.8, 0.25, None]
    assert [
        summary(scores, metric) for metric in ("mean", "product", "min_score", "last")
    ] == pytest.approx([1.55 / 3, 0.1, 0.25, 0.25])
    assert summary([None, None], "mean") == summary([], "last") == -math.inf


# --- configuration --------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(num_candidates_per_block=0), "num_candidates_per_block must be at least 1, got 0"),
        (dict(backmasking_lookback=0), "backmasking_lookback must be at least 1"),
        (dict(backmasking_threshold=1.5), "backmasking_threshold must be between 0 and 1, got 1.5"),
        (
            dict(backmasking_threshold=0.5, backmasking_min_score_threshold=0.5),
            "two names of one option",
        ),
        (dict(candidate_temperature=0.0), "candidate_temperature must be a number above 0"),
        (dict(candidate_temperature=math.inf), "candidate_temperature must be a number above 0"),
        (dict(backmasking_alpha=math.nan), "backmasking_alpha must be a number, got nan"),
        (dict(backmasking_alpha=math.inf), "backmasking_alpha must be a number, got inf"),
        (dict(max_prm_calls=-1), "max_prm_calls must not be negative"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        ReviewConfig(**options)


def test_published_defaults():
    vanilla = ReviewConfig(method="vanilla")
    legacy = ReviewConfig(backmasking_rule="legacy")
    window = ReviewConfig(method="window")
    assert (vanilla.candidates, vanilla.rounds) == (5, 0)
    assert (
        legacy.candidates,
        legacy.lookback,
        legacy.threshold,
        legacy.backmasking_alpha,
        legacy.backmasking_intensity,
        legacy.refills,
        legacy.metric,
    ) == (5, 3, 0.9, 5.0, 0.5, 5, "product")
    assert (window.frequency, window.threshold, window.refills, window.metric, window.lookback) == (
        8,
        0.8,
        12,
        "product",
        8,
    )
    assert ReviewConfig(backmasking_min_score_threshold=0.4).threshold == 0.4


def test_a_budget_below_the_plain_decode_is_refused(make_model):
    model, config = make_model(), SamplerConfig(**dict(SAMPLER, max_forwards=7))
    with pytest.raises(ValueError, match=r"max_forwards \(7\) must be at least steps \(8\)"):
        generate(
            model,
            [[5]],
            config,
            special=SpecialTokens(39),
            review=BlockReview(ReviewConfig(), config, Judge(4), 39),
        )
    with pytest.raises(
        ValueError,
        match="max_forwards has no effect without threshold, .*, error_budget or a process "
        "reward model",
    ):
        generate(
            model, [[5]], SamplerConfig(**dict(SAMPLER, max_forwards=9)), special=SpecialTokens(39)
        )


# --- steps and blocks -----------------------------------------------------------------

ALPHABET = "ab \n"


def letters(ids) -> str:
    return "".join(ALPHABET[token] for token in ids)


@pytest.mark.parametrize("by", ["block", "line", "blank_line"])
def test_every_visible_character_is_in_one_step_that_touches_its_block(by):
    choose = random.Random(1)
    for _ in range(300):
        answer = [choose.choice([0, 1, 2, 3, 3, 9]) for _ in range(12)]
        text, edges = block_ends(answer, 4, [9], letters)
        steps = split_steps(text, edges, by)
        assert "".join("".join(step.text.split()) for step in steps) == "".join(text.split())
        assert all(step.text == step.text.strip() != "" for step in steps)
        visible = {
            number
            for number, (start, stop) in enumerate(zip([0, *edges], edges))
            if text[start:stop].strip()
        }
        assert visible <= {number for step in steps for number in step.blocks}


@pytest.mark.parametrize(
    "by, expected",
    [
        ("block", [("ab", [0]), ("a\n\nb", [1]), ("b\na", [2])]),
        ("line", [("ab  a", [0, 1]), ("bb", [1, 2]), ("a", [2])]),
        ("blank_line", [("ab  a", [0, 1]), ("bb\na", [1, 2])]),
    ],
)
def test_steps_of_a_small_answer(by, expected):
    text = "ab  a\n\nbb\na "
    answer = [ALPHABET.index(character) for character in text]
    steps = split_steps(*block_ends(answer, 4, [], letters), by)
    assert [(step.text, list(step.blocks)) for step in steps] == expected


def test_steps_are_scored_in_the_context_of_the_whole_solution_and_blocks_take_their_mean():
    class Recorder:
        asked: list = []

        def score(self, solutions, heard):
            self.asked += solutions
            return [[0.1 * (1 + number) for number in range(len(steps))] for _, steps in solutions]

    text = "ab  a\n\nbb\na "
    answer = [ALPHABET.index(character) for character in text]
    recorder = Recorder()
    score = block_scorer(
        recorder, ["first?", "second?"], block=4, ends=[9], decode=letters, by="line"
    )
    scores = score([1, 0, 0], [answer, [9] * 8, [2, 2, 2, 2, 0, 9, 9, 9]])
    assert recorder.asked == [("second?", ["ab  a", "bb", "a"]), ("first?", ["a"])]
    assert scores == [pytest.approx([0.1, 0.15, 0.25]), [None, None], [None, pytest.approx(0.1)]]


def test_a_character_torn_by_a_block_border_belongs_to_the_later_block():
    raw = "aé".encode()  # 3 bytes, a border behind the second

    def decode_bytes(ids) -> str:
        return bytes(ids).decode(errors="replace")

    text, edges = block_ends([*raw, ord("b")], 2, [], decode_bytes)
    assert text == "aéb" and edges == [1, 3]
