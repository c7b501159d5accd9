"""The decode loop: what holds for every decoder, and a slow re-implementation of
LLaDA's. For recorded answers see test_golden.py.
"""

from __future__ import annotations

import functools
import itertools
import math
import random
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import pytest
import torch
from scipy import stats

from llada_plugins.diffusion.denoiser import (
    PADDING,
    Canvas,
    Denoiser,
    Prediction,
    capacity,
    log_total,
)
from llada_plugins.diffusion.guidance import guided, suppressed
from llada_plugins.diffusion.random_streams import uniform
from llada_plugins.models.loading import load_model
from llada_plugins.models.special_tokens import SpecialTokens
from llada_plugins.sampling.confidence import CONFIDENCE, OF_VISIBLE, PROBABILITIES, Candidates
from llada_plugins.sampling.config import SamplerConfig
from llada_plugins.sampling.decode import decode
from llada_plugins.sampling.draft import Draft, Filled, Sample, unreviewed
from llada_plugins.sampling.facts import ADAPTIVE_RULES
from llada_plugins.sampling.generate import generate, with_options
from llada_plugins.sampling.keep_rules import PASSING, keep_top, num_passing
from llada_plugins.sampling.propose import propose
from llada_plugins.sampling.propose import sample as sampled_tokens
from llada_plugins.sampling.step import Step
from llada_plugins.sampling.unmask_schedule import quota
from tests.tolerance import rounding

pytestmark = pytest.mark.floats

EOS, EOT, MASK, VOCAB = 1, 2, 3, 16
SPECIAL = SpecialTokens(MASK, EOS, EOT)
# the third holds a mask token of its own
PROMPTS = [[5, 6, 7], [8], [4, 4, 9, 10, 3, 12], [14, 5], [11, 12, 13, 14, 15]]
PRIME = 2_147_483_647

METHOD_OPTIONS = [
    dict(gen_length=12, **options)
    for options in (
        {},
        dict(steps=1),
        dict(steps=5),
        dict(sampling_method="fixed_length", temperature=1.0),
        dict(block_length=4),
        dict(block_length=4, steps=9, sampling_method="semi_ar_padding"),
        dict(block_length=6, steps=8, temperature=0.8),
        dict(steps=8, remasking="random"),
        dict(block_length=6, remasking="random", temperature=1.0),
        dict(steps=4, confidence_source="entropy"),
        dict(block_length=3, steps=8, confidence_source="margin", temperature=0.5),
        dict(threshold=0.5),
        dict(threshold=0.3, block_length=4, temperature=1.0),
        dict(threshold=0.2, confidence_source="margin"),
        dict(threshold=1.0, block_length=6),
        dict(threshold_entropy=1.7, block_length=6),
        dict(threshold_entropy=1.5, revise_below=0.4, confidence_source="ups", temperature=0.7),
        dict(factor=1.0, block_length=6),
        dict(factor=3.0, confidence_source="margin", temperature=0.7),
        dict(error_budget=1.5, block_length=6),
        dict(error_budget=2.5, confidence_source="margin", temperature=0.7),
        dict(threshold=0.3, max_dependence=0.3, block_length=6),
        dict(threshold=0.6, branches="0.2:0.4+0.3:0.2", block_length=6),
        dict(threshold=0.6, draft_rows=4, draft_threshold=0.3, draft_odds=0.5, block_length=6),
        dict(error_budget=2.5, max_dependence=0.2, cfg_scale=0.5, revise_below=0.2),
        dict(
            factor=2.0,
            max_dependence=0.4,
            confidence_of="filtered",
            top_k=3,
            temperature=0.7,
            confidence_source="margin",
        ),
        dict(cfg_scale=1.5, steps=6),
        dict(remask_ratio=0.5, steps=4),
        dict(remask_ratio=0.34, block_length=6, steps=10, temperature=1.0, top_k=5),
        dict(remask_ratio=0.75, steps=20, confidence_source="random", cfg_scale=0.5),
        dict(revise=True, steps=5, confidence_source="ups"),
        dict(revise=True, block_length=6, steps=8, confidence_source="ups_all", temperature=1.0),
        dict(revise=True, steps=6, confidence_source="random"),
        dict(revise=True, block_length=4, steps=6, sampling_method="semi_ar_origin"),
        dict(revise=True, steps=4, confidence_source="tps_logit", cfg_scale=1.0),
        dict(threshold=0.4, revise_below=0.5, confidence_source="ups"),
        dict(
            factor=1.5,
            revise_below=0.4,
            max_forwards=6,
            block_length=6,
            confidence_source="ups_all",
            temperature=1.0,
        ),
        dict(error_budget=1.2, revise_below=0.4, confidence_source="ups", cfg_scale=0.5),
        dict(sampling_method="semi_ar_origin", block_length=4),
        dict(sampling_method="semi_ar_origin", block_length=3, steps=8, temperature=0.7, top_p=0.8),
        dict(schedule="dream"),
        dict(schedule="dream", block_length=6, steps=20, schedule_eps=0.05, temperature=0.7),
        dict(schedule="dream", steps=5, revise=True, confidence_source="ups"),
        dict(schedule="independent", steps=5, remasking="random"),
        dict(schedule="independent", block_length=4, steps=30, remasking="random", cfg_scale=0.5),
        dict(schedule="mdlm", block_length=5, steps=20, last_block="rest"),
        dict(block_length=5, last_block="rest", sampling_method="semi_ar_origin"),
        dict(threshold=0.4, block_length=5, last_block="rest"),
        dict(confidence_of="filtered", top_p=0.8, confidence_source="margin"),
        dict(confidence_of="filtered", top_k=4, threshold=0.5, temperature=0.8),
        dict(
            confidence_of="filtered",
            top_p=0.7,
            top_k=6,
            temperature=0.7,
            confidence_source="entropy",
            schedule="dream",
            steps=7,
        ),
        dict(alg_temp=0.2, steps=4, confidence_source="entropy"),
        dict(alg_temp=0.05, revise=True, steps=4),
        dict(threshold_entropy=1.7, block_length=4, block_add_threshold=0.25),
        dict(
            threshold=0.4,
            block_length=5,
            last_block="rest",
            block_add_threshold=0.3,
            decoded_token_threshold=0.7,
            revise_below=0.4,
            confidence_source="ups",
            temperature=0.7,
            cfg_scale=0.5,
        ),
        dict(threshold=0.3, paced=True, steps=4),
        dict(threshold=0.5, paced=True, steps=6, block_length=6, temperature=1.0),
        dict(logits_eos_inf=True, temperature=1.0, block_length=4),
        dict(confidence_eos_eot_inf=True, steps=6),
        dict(confidence_eos_eot_inf=True, steps=6, confidence_of="filtered", top_p=0.8),
        dict(early_stop=True, block_length=3),
        dict(
            early_stop=True,
            confidence_eos_eot_inf=True,
            block_length=4,
            threshold=0.4,
            temperature=1.0,
        ),
    )
]
every_method = pytest.mark.parametrize(
    "options", METHOD_OPTIONS, ids=lambda options: ",".join(f"{k}={v}" for k, v in options.items())
)


def toy_denoiser(seed: int = 0, favoured: dict[int, float] | None = None) -> Denoiser:
    """Logits in [0, 6) hashed from the row's tokens and the position, in integers:
    exact whatever the batch and its padding.

    favoured: token -> added to its logit everywhere.
    """
    added = torch.zeros(VOCAB, dtype=torch.float64)
    for token, value in (favoured or {}).items():
        added[token] = value

    def denoise(canvas: Canvas, window: slice) -> Prediction:
        position = torch.arange(canvas.tokens.shape[1]) - canvas.answer_start[:, None]  # (B, L)
        each = ((canvas.tokens + 11) * 7919 + (position + 97) * 104_729) % PRIME
        context = ((each * each) % PRIME * (canvas.tokens != PADDING)).sum(1) % PRIME  # (B,)
        mixed = (
            context[:, None, None]
            + position[:, window, None] * 15_485_863
            + torch.arange(VOCAB) * 32_452_843
            + seed
        ) % PRIME
        for _ in range(3):
            mixed = (mixed * mixed + 12_345) % PRIME
        policy = (mixed[..., 0] * mixed[..., 1] % PRIME).double() / PRIME * 6 - 3  # (B, W)
        return Prediction.from_logits((mixed.double() / PRIME * 6 + added).float(), policy.float())

    return denoise


def record(denoise: Denoiser, seen: list[tuple[Canvas, slice]]) -> Denoiser:
    """The same denoiser; `seen` collects what it is asked."""

    def denoise_recorded(canvas: Canvas, window: slice) -> Prediction:
        seen.append((canvas._replace(tokens=canvas.tokens.clone()), window))
        return denoise(canvas, window)

    return denoise_recorded


def run(
    options: dict,
    prompts: list[list[int]] = PROMPTS,
    denoise: Denoiser | None = None,
    *,
    seen: list[tuple[Canvas, slice]] | None = None,
    **given,
) -> list[Sample]:
    """Decode with the toy, or another denoiser, wrapped as the options ask; `seen`
    collects what it is asked.
    """
    config = SamplerConfig(**options)
    denoise = with_options(denoise or toy_denoiser(), config, SPECIAL)
    return decode(
        denoise if seen is None else record(denoise, seen), prompts, config, SPECIAL, **given
    )


def steps_of(
    options: dict, denoise: Denoiser | None = None, prompts: list[list[int]] = PROMPTS
) -> tuple[list[Step], list[Sample]]:
    steps: list[Step] = []
    return steps, run(options, prompts, denoise, on_step=steps.append)


class Watched(NamedTuple):
    """What the toy was asked, the steps that were taken and the answers; for reading only."""

    seen: list[tuple[Canvas, slice]]
    steps: list[Step]
    samples: list[Sample]


def watched(options: dict) -> Watched:
    """PROMPTS decoded by the toy, once for all tests of these options."""
    return _watched(tuple(options.items()))


@functools.cache
def _watched(options: tuple[tuple[str, object], ...]) -> Watched:
    found = Watched([], [], [])
    found.samples.extend(run(dict(options), seen=found.seen, on_step=found.steps.append))
    return found


# ---- properties of every decoder


@every_method
def test_no_mask_survives_and_the_length_is_right(options):
    for sample in watched(options).samples:
        assert MASK not in sample.answer
        assert all(0 <= token < VOCAB for token in sample.answer)
        stops = options.get("early_stop") or options.get("sampling_method") == "semi_ar_origin"
        assert (
            len(sample.answer) == options["gen_length"]
            or stops
            and len(sample.answer) % options["block_length"] == 0
        )


@every_method
def test_the_mask_token_is_never_produced_even_if_the_model_favours_it(options):
    assert all(
        MASK not in sample.answer
        for sample in run(options, denoise=toy_denoiser(favoured={MASK: 20.0}))
    )


@every_method
def test_the_prompt_is_never_touched(options):
    for canvas, _ in watched(options).seen:
        for row, start in zip(canvas.tokens.tolist(), canvas.answer_start.tolist()):
            assert [token for token in row[:start] if token != PADDING] in PROMPTS
            assert PADDING not in row[start:]


@every_method
def test_forwards_never_exceed_tokens_and_equal_the_steps_under_a_quota(options):
    config = SamplerConfig(**options)
    for sample in watched(options).samples:
        blocks = -(-len(sample.answer) // config.block)
        if config.adaptive:
            assert (
                (blocks if config.blocks_at_once == 1 else 1)
                <= sample.num_forwards
                <= min(
                    len(sample.answer), blocks * (config.max_forwards or 12) // config.num_blocks
                )
            )
        elif config.may_idle:
            most = min(config.steps_per_block * blocks, len(sample.answer))
            assert blocks <= sample.num_forwards <= most
        elif config.last_block == "rest":
            assert sample.num_forwards == len(sample.answer)
        else:
            assert sample.num_forwards == config.steps_per_block * blocks
            assert sample.num_forwards <= len(sample.answer) or "remask_ratio" in options


@every_method
def test_only_the_active_block_changes_and_committed_tokens_stay_unless_revised(options):
    seen: list[tuple[Canvas, slice]] = []
    samples = run(options, PROMPTS[:1], seen=seen)
    start = len(PROMPTS[0])
    final = torch.tensor(PROMPTS[0] + samples[0].answer)
    for (canvas, window), after in zip(
        seen, [canvas.tokens[0] for canvas, _ in seen[1:]] + [final]
    ):
        before = canvas.tokens[0]
        end = min(len(before), len(after))
        changed = before[:end] != after[:end]
        assert not changed[: window.start].any() and not changed[window.stop :].any()
        # a token that is taken back leaves a mask, never another token
        if SamplerConfig(**options).revises:
            assert ((before[:end] == MASK) | (after[:end] == MASK))[changed].all()
        else:
            assert (before[:end][changed] == MASK).all()
    assert all(window.start >= start for _, window in seen)


@every_method
def test_steps_replay_to_the_answer(options):
    _, steps, samples = watched(options)
    answers: list[list[int]] = [[] for _ in PROMPTS]
    blocks: dict[int, torch.Tensor] = {}
    for number, step in enumerate(steps):
        if step.step == 0:
            blocks = {
                row: torch.full((step.proposal.shape[1],), MASK) for row in step.rows.tolist()
            }
        for at, row in enumerate(step.rows.tolist()):
            block = blocks[row]
            assert (block[step.kept[at]] == MASK).all() and (block[step.remasked[at]] != MASK).all()
            block[step.kept[at]] = step.proposal[at][step.kept[at]]
            block[step.remasked[at]] = MASK
            assert SamplerConfig(**options).revises or not step.remasked[at].any()
        if number + 1 == len(steps) or steps[number + 1].step == 0:
            for row, block in blocks.items():
                assert len(answers[row]) == step.block * SamplerConfig(**options).block
                answers[row] += block.tolist()
    assert answers == [sample.answer for sample in samples]


@every_method
def test_an_answer_does_not_depend_on_the_batch_around_it(options):
    together = watched(options).samples
    assert run(options, PROMPTS[::-1])[::-1] == together
    assert [run(options, [prompt])[0] for prompt in PROMPTS] == together
    assert run(options, PROMPTS[1:4]) == together[1:4]


@every_method
def test_an_answer_does_not_depend_on_who_takes_whose_place(options):
    prompts = [[*prompt, extra] for prompt in PROMPTS for extra in range(2)]
    keys = range(len(prompts))
    ends = dict(stop=lambda answer: sum(answer) % 3 == 0)
    together = run(options, prompts, **ends, keys=keys)
    for size, order in ((2, -1), (5, 1)):  # alone each is in the test of batches
        found = run(options, prompts[::order], **ends, keys=keys[::order], at_once=capacity(size))
        assert found[::order] == together


@every_method
def test_an_answer_does_not_depend_on_how_many_positions_are_judged_at_once(options, monkeypatch):
    _, steps, whole = watched(options)
    for num in (1, 17):  # one column of all rows, three columns
        monkeypatch.setattr(
            "llada_plugins.sampling.propose.positions_at_once", lambda device, num=num: num
        )
        parts, samples = steps_of(options)
        assert samples == whole
        for part, step in zip(parts, steps, strict=True):
            assert all(
                torch.equal(getattr(part, name), getattr(step, name))
                for name in ("proposal", "kept", "remasked")
            )
            # a sigmoid's last bit depends on a tensor's length
            torch.testing.assert_close(part.score, step.score, atol=rounding(2, 1.0), rtol=0)


@pytest.mark.parametrize(
    "more", [{}, dict(revise=True, confidence_source="ups"), dict(temperature=1.0)], ids=str
)
def test_logits_are_asked_for_at_few_positions_at_once_and_only_where_needed(more, monkeypatch):
    asked: list[tuple[int, int]] = []

    def watched(canvas: Canvas, window: slice) -> Prediction:
        prediction = toy_denoiser()(canvas, window)
        return prediction._replace(
            logits_at=lambda at: asked.append(tuple(at.shape)) or prediction.logits_at(at)
        )

    monkeypatch.setattr("llada_plugins.sampling.propose.positions_at_once", lambda device: 4)
    run(dict(gen_length=12, **more), PROMPTS[:2], watched)
    assert all(rows == 2 and columns <= 2 for rows, columns in asked)
    assert sum(columns for _, columns in asked) == (12 * 12 if "revise" in more else sum(range(13)))


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_denoisers_own_logits_are_left_as_they_are(temperature):
    own = torch.randn(1, 4, VOCAB, generator=torch.Generator().manual_seed(0))
    before = own.clone()
    run(
        dict(gen_length=4, temperature=temperature),
        [[5, 6]],
        lambda canvas, window: Prediction(lambda at: own[:, : at.shape[1]]),
    )
    assert torch.equal(own, before)


@every_method
def test_the_same_seed_repeats_the_answer_and_only_random_decoders_have_another(options):
    first = [sample.answer for sample in run({**options, "seed": 1})]
    assert [sample.answer for sample in run({**options, "seed": 1})] == first
    differs = [sample.answer for sample in run({**options, "seed": 2})] != first
    random_options = ("temperature", "alg_temp")
    assert differs == (
        any(name in options for name in random_options)
        or options.get("remasking") == "random"
        or options.get("confidence_source") == "random"
    )
    assert differs == SamplerConfig(**options).draws


# ---- how many tokens a step keeps


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 7, 12])
def test_quota_shares_evenly_with_the_remainder_on_the_first_steps(steps):
    num_masked = torch.arange(13)
    expected = [[m // steps + (1 if j < m % steps else 0) for j in range(steps)] for m in range(13)]
    assert quota(num_masked, steps).tolist() == expected


@pytest.mark.parametrize(
    "steps, expected",
    [(12, [1] * 12), (5, [3, 3, 2, 2, 2]), (8, [2, 2, 2, 2, 1, 1, 1, 1]), (1, [12])],
)
def test_each_step_keeps_its_quota(steps, expected):
    taken, _ = steps_of(dict(gen_length=12, steps=steps))
    assert [step.kept.sum(-1).tolist() for step in taken] == [
        [count] * len(PROMPTS) for count in expected
    ]


@pytest.mark.parametrize("ratio", [0.1, 0.25, 0.5, 0.9])
def test_remask_ratio_masks_that_fraction_after_every_step_but_the_last(ratio):
    seen: list[tuple[Canvas, slice]] = []
    run(dict(gen_length=12, block_length=6, steps=8, remask_ratio=ratio), PROMPTS[:1], seen=seen)
    masked = [int((canvas.tokens[0, window] == MASK).sum()) for canvas, window in seen]
    left = int(ratio * 6)
    # nothing left to refine ends the block
    assert masked == ([6, left, left, left] if left else [6]) * 2


def test_remask_ratio_takes_committed_tokens_back():
    steps, _ = steps_of(dict(gen_length=12, steps=6, remask_ratio=0.5))
    assert sum(int(step.remasked.sum()) for step in steps) > 0


def test_a_threshold_no_probability_reaches_keeps_one_token_a_step():
    steps, samples = steps_of(dict(gen_length=12, threshold=1.0))
    assert [sample.num_forwards for sample in samples] == [12] * len(PROMPTS)
    assert all((step.kept.sum(-1) == 1).all() for step in steps)


def test_a_threshold_every_probability_reaches_keeps_all_at_once():
    assert [
        sample.num_forwards for sample in run(dict(gen_length=12, block_length=4, threshold=1e-6))
    ] == [3] * len(PROMPTS)


def test_threshold_keeps_exactly_the_tokens_at_least_that_probable():
    steps, _ = steps_of(dict(gen_length=12, threshold=0.35))
    several = 0
    for step in steps:
        masked = step.score != float("inf")
        for score, kept, open_here in zip(step.score, step.kept, masked):
            passing = open_here & (score >= 0.35)
            if passing.any():
                assert torch.equal(kept, passing)
            elif open_here.any():
                assert kept.sum() == 1 and score[kept] == score[open_here].max()
            several += int(passing.sum()) > 1
    assert several > 3


@pytest.mark.parametrize(("strict", "number"), [(False, 3), (True, 1)])
def test_a_probability_equal_to_the_threshold_passes_unless_the_rule_is_strict(strict, number):
    score = torch.tensor([[0.25, 0.5, 0.75, 0.5]])  # exact in any float
    config = SamplerConfig(gen_length=4, threshold=0.5, strict=strict)
    assert num_passing(score, config).tolist() == [number]


@pytest.mark.parametrize(("strict", "number"), [(False, 3), (True, 1)])
def test_an_entropy_equal_to_the_threshold_passes_unless_the_rule_is_strict(strict, number):
    score = -torch.tensor([[0.25, 0.5, 0.75, 0.5]])  # exact in any float
    config = SamplerConfig(gen_length=4, threshold_entropy=0.5, strict=strict)
    assert num_passing(score, config).tolist() == [number]


def test_the_entropy_rule_keeps_exactly_the_tokens_of_at_most_that_entropy():
    steps, _ = steps_of(dict(gen_length=12, threshold_entropy=1.7))
    several = 0
    for step in steps:
        for score, kept, masked in zip(step.score, step.kept, step.masked):
            passing = masked & (score >= -1.7)
            best = masked & (score == score[masked].max()) if masked.any() else masked
            assert torch.equal(kept, passing if passing.any() else best)
            several += int(passing.sum()) > 1
    assert several > 3


@pytest.mark.parametrize("factor", [0.3, 1.0, 2.0, 5.0])
def test_factor_rule_equals_a_naive_loop(factor):
    generator = torch.Generator().manual_seed(3)
    score = torch.rand(200, 8, generator=generator) ** 0.2
    masked = torch.rand(200, 8, generator=generator) < 0.7
    passing = num_passing(
        score.masked_fill(~masked, -float("inf")), SamplerConfig(gen_length=8, factor=factor)
    )
    count = (~masked).sum(-1) + passing.clamp_min(1)
    for row in range(200):
        ordered = sorted(score[row][masked[row]].tolist(), reverse=True)
        accepted = 0
        while accepted < len(ordered) and (accepted + 2) * (1 - ordered[accepted]) < factor:
            accepted += 1
        assert int(count[row]) == int((~masked[row]).sum()) + max(accepted, 1)


def test_every_adaptive_option_has_a_rule():
    assert tuple(PASSING) == ADAPTIVE_RULES


@pytest.mark.parametrize("error_budget", [0.02, 0.2, 1.0, 3.0])
def test_error_budget_takes_the_largest_sum_of_errors_that_it_holds(error_budget):
    generator = torch.Generator().manual_seed(3)
    score = torch.rand(200, 8, generator=generator) ** 0.2
    masked = torch.rand(200, 8, generator=generator) < 0.7
    passing = num_passing(
        score.masked_fill(~masked, -float("inf")),
        SamplerConfig(gen_length=8, error_budget=error_budget),
    )
    for row in range(200):
        errors = sorted(1 - value for value in score[row][masked[row]].tolist())
        assert int(passing[row]) == max(
            count for count in range(len(errors) + 1) if sum(errors[:count]) <= error_budget
        )
    assert (passing > 1).sum() > 0


def test_error_budget_in_closed_form():
    score = torch.tensor([[0.75, 1.0, 0.5, 0.875], [0.25, 0.5, 0.5, 0.25], [1.0, 1.0, 1.0, 1.0]])
    at = [
        num_passing(score, SamplerConfig(gen_length=4, error_budget=value)).tolist()
        for value in (0.1, 0.125, 0.375, 0.874, 0.875, 2.5)
    ]
    assert at == [[1, 0, 4], [2, 0, 4], [3, 0, 4], [3, 1, 4], [4, 1, 4], [4, 4, 4]]


@pytest.mark.parametrize("error_budget", [0.05, 0.5, 2.0])
def test_error_budget_keeps_all_that_the_bound_behind_the_factor_rule_keeps(error_budget):
    generator = torch.Generator().manual_seed(4)
    score = torch.rand(500, 12, generator=generator) ** 0.1
    ours, fast = (
        num_passing(score, SamplerConfig(gen_length=12, **{rule: error_budget}))
        for rule in ("error_budget", "factor")
    )
    # n errors are at most n times the worst, less than (n + 1) times
    assert (ours >= fast).all() and (ours > fast).any()


def test_keep_top_takes_the_best_and_breaks_ties_to_the_left():
    score = torch.tensor(
        [
            [1.0, 3.0, 3.0, 2.0, 3.0],
            [0.0] * 5,
            [float("inf"), 0.0, -float("inf"), 0.0, float("inf")],
        ]
    )
    kept = [keep_top(score, torch.tensor([count] * 3)).int().tolist() for count in (0, 2, 3, 5, 9)]
    assert kept[0] == [[0] * 5] * 3
    assert kept[1] == [[0, 1, 1, 0, 0], [1, 1, 0, 0, 0], [1, 0, 0, 0, 1]]
    assert kept[2] == [[0, 1, 1, 0, 1], [1, 1, 1, 0, 0], [1, 1, 0, 0, 1]]
    assert kept[3] == kept[4] == [[1] * 5] * 3


# ---- tokens that are taken back


def masks_after_steps(steps: list[Step], block_length: int) -> dict[tuple[int, int], list[int]]:
    """(row, block) -> masks that remain after each of its steps, counted from what the
    steps report.
    """
    left: dict[tuple[int, int], list[int]] = {}
    for step in steps:
        for at, row in enumerate(step.rows.tolist()):
            counts = left.setdefault((row, step.block), [block_length])
            counts.append(counts[-1] - int(step.kept[at].sum()) + int(step.remasked[at].sum()))
    return {place: counts[1:] for place, counts in left.items()}


@pytest.mark.parametrize(
    "block, steps, expected",
    [
        (8, 4, [2, 4, 6, 8]),
        (8, 3, [2, 5, 8]),
        (7, 5, [1, 2, 3, 5, 7]),
        (12, 8, [1, 2, 3, 4, 6, 8, 10, 12]),
        (5, 1, [5]),
        (4, 4, [1, 2, 3, 4]),
        (32, 16, list(range(2, 33, 2))),
    ],
)
def test_revision_keeps_k_n_tokens_after_step_n_with_the_remainder_on_the_last_steps(
    block, steps, expected
):
    taken, samples = steps_of(dict(gen_length=block, steps=steps, revise=True))
    assert masks_after_steps(taken, block) == {
        (row, 0): [block - kept for kept in expected] for row in range(len(PROMPTS))
    }
    assert {sample.num_forwards for sample in samples} == {steps}


# from left to right nothing is ever taken back
@pytest.mark.parametrize("source", [source for source in CONFIDENCE if source != "leftmost"])
def test_exactly_b_minus_k_n_masks_remain_whatever_the_scores(source):
    remasked = 0
    for seed in range(25):
        choose = random.Random(f"{source} {seed}")
        num_blocks, block = choose.randint(1, 3), choose.randint(1, 9)
        per_block = choose.randint(1, block)
        options = dict(
            gen_length=num_blocks * block,
            block_length=block,
            steps=num_blocks * per_block,
            revise=True,
            confidence_source=source,
            temperature=choose.choice([0.0, 1.0]),
            cfg_scale=choose.choice([0.0, 1.3]),
            confidence_eos_eot_inf=choose.random() < 0.3,
        )
        steps, _ = steps_of(options, toy_denoiser(seed, favoured={EOS: choose.choice([0.0, 2.0])}))
        share, remainder = divmod(block, per_block)
        left = [
            block - n * share - max(0, n - (per_block - remainder)) for n in range(1, per_block + 1)
        ]
        places = itertools.product(range(len(PROMPTS)), range(num_blocks))
        assert masks_after_steps(steps, block) == dict.fromkeys(places, left), options
        remasked += sum(int(step.remasked.sum()) for step in steps)
    assert remasked > 20  # none would satisfy the counts as well


# raises the toy's best probability from about 0.3 to 0.7, so that rows finish at
# different steps
SURE = {7: 4.0}
ADAPTIVE = [
    dict(threshold=0.5, revise_below=0.1, confidence_source="ups"),
    dict(factor=1.5, revise_below=0.1, confidence_source="ups_all"),
    dict(threshold=0.7, revise_below=0.1),
    dict(threshold=0.5, revise_below=0.9, block_length=6, max_forwards=9, confidence_source="ups"),
    dict(factor=2.5, revise_below=0.45, confidence_source="margin", temperature=0.8),
    dict(threshold=0.99, max_forwards=4),
    dict(error_budget=0.9, revise_below=0.1, confidence_source="ups"),
]


@pytest.mark.parametrize("more", ADAPTIVE, ids=str)
def test_every_adaptive_forward_commits_a_token_of_every_row_that_has_masks(more):
    steps, samples = steps_of(dict(gen_length=12, **more), toy_denoiser(favoured=SURE))
    block = more.get("block_length", 12)
    for (row, number), left in masks_after_steps(steps, block).items():
        kept = [
            int(step.kept[step.rows.tolist().index(row)].sum())
            for step in steps
            if step.block == number and row in step.rows.tolist()
        ]
        assert all(count >= 1 for before, count in zip([block, *left], kept) if before)
        assert left[-1] == 0
    assert all(MASK not in sample.answer for sample in samples)


@pytest.mark.parametrize("more", ADAPTIVE[:3], ids=str)
def test_a_finished_row_takes_no_part_in_the_steps_that_its_neighbours_still_need(more):
    seen: list[tuple[Canvas, slice]] = []
    steps: list[Step] = []
    samples = run(
        dict(gen_length=12, **more),
        denoise=toy_denoiser(favoured=SURE),
        seen=seen,
        on_step=steps.append,
    )
    for row, sample in enumerate(samples):
        assert sum(row in step.rows for step in steps) == sample.num_forwards
    assert [len(step.rows) for step in steps] == [len(canvas.tokens) for canvas, _ in seen]
    assert all((canvas.tokens[:, window] == MASK).any(-1).all() for canvas, window in seen)
    # rows did finish at different steps
    assert len({sample.num_forwards for sample in samples}) > 1


NEVER_CONTENT = dict(gen_length=12, threshold=1.0, revise_below=1.0, confidence_source="ups")


@pytest.mark.parametrize("max_forwards", [1, 3, 7, 12, 40])
def test_the_last_allowed_forward_keeps_every_token(max_forwards):
    steps, samples = steps_of(dict(max_forwards=max_forwards, **NEVER_CONTENT))
    assert {sample.num_forwards for sample in samples} == {max_forwards}
    assert {left[-1] for left in masks_after_steps(steps, 12).values()} == {0}
    assert not steps[-1].remasked.any()
    assert all(left[-2] > 0 for left in masks_after_steps(steps, 12).values() if len(left) > 1)


@pytest.mark.parametrize("max_forwards, each", [(3, 1), (5, 1), (6, 2), (11, 3), (None, 4)])
def test_allowed_forwards_are_shared_equally_by_the_blocks(max_forwards, each):
    steps, samples = steps_of(dict(block_length=4, max_forwards=max_forwards, **NEVER_CONTENT))
    assert {len(left) for left in masks_after_steps(steps, 4).values()} == {each}
    assert {sample.num_forwards for sample in samples} == {3 * each}


# ---- what is trusted


@pytest.mark.parametrize("shape", [(1, 1, VOCAB), (3, 7, VOCAB), (20, VOCAB)])
def test_the_log_total_is_that_of_the_library_for_any_number_of_positions(shape):
    logits = 9 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(log_total(logits), logits.logsumexp(-1))


@pytest.mark.parametrize("source", CONFIDENCE)
def test_confidence_equals_its_definition(source):
    generator = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(2, 5, VOCAB, generator=generator)
    tokens = torch.randint(VOCAB, (2, 5), generator=generator)
    drawn = torch.rand(2, 5, generator=generator, dtype=torch.float64)
    policy = torch.randn(2, 5, generator=generator)
    masked = torch.rand(2, 5, generator=generator) < 0.5
    places = torch.rand(2, 5, generator=generator).argsort(-1)
    candidates = Candidates(logits, tokens, masked, policy, False, lambda: drawn, places)
    score = CONFIDENCE[source](candidates)
    for row in range(2):
        for column in range(5):
            weights = [math.exp(value) for value in logits[row, column].tolist()]
            probability = [weight / sum(weights) for weight in weights]
            best = sorted(probability)
            expected = {
                "tps_prob": probability[tokens[row, column]],
                "margin": best[-1] - best[-2],
                "entropy": -stats.entropy(probability),
                "random": float(drawn[row, column]),
                "leftmost": -float(places[row, column]),
                "tps_logit": float(logits[row, column, tokens[row, column]]),
                "ups_all": 1 / (1 + math.exp(-policy[row, column])),
            }
            expected["ups"] = expected["tps_prob"] if masked[row, column] else expected["ups_all"]
            expected = expected[source]
            bound = rounding(2 * VOCAB, 1.0, logits)  # an entropy sums VOCAB products
            assert float(score[row, column]) == pytest.approx(expected, abs=bound)


@pytest.mark.parametrize(
    "source, more",
    [
        *itertools.product(
            CONFIDENCE,
            [dict(steps=12), dict(steps=5), dict(steps=6, temperature=1.0), dict(block_length=4)],
        ),
        *itertools.product(PROBABILITIES, [dict(threshold=0.3, temperature=1.0)]),
    ],
    ids=str,
)
def test_ending_tokens_are_kept_only_after_all_others_when_their_confidence_is_nil(source, more):
    options = dict(gen_length=12, confidence_source=source, confidence_eos_eot_inf=True, **more)
    steps, _ = steps_of(options, toy_denoiser(favoured={EOS: 2.0, EOT: 2.0}))
    held_back = 0
    for step in steps:
        ending = (step.proposal == EOS) | (step.proposal == EOT)
        open_here = step.score != float("inf")
        waiting = open_here & ~ending & ~step.kept
        kept_ending = step.kept & ending
        assert not (kept_ending.any(-1) & waiting.any(-1)).any()
        held_back += int((open_here & ending & ~step.kept).sum())
    assert held_back > 0


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_eos_inf_never_yields_eos(temperature):
    options = dict(gen_length=12, logits_eos_inf=True, temperature=temperature)
    favour_eos = toy_denoiser(favoured={EOS: 9.0})
    assert any(
        EOS in sample.answer
        for sample in run({**options, "logits_eos_inf": False}, denoise=favour_eos)
    )
    assert not any(EOS in sample.answer for sample in run(options, denoise=favour_eos))


# ---- blocks


@pytest.mark.parametrize("more", [{}, dict(temperature=1.0), dict(threshold=0.4)], ids=str)
@pytest.mark.parametrize("favoured", [{EOS: 1.0}, {EOT: 1.0}], ids=["eos", "eot"])
def test_early_stop_cuts_at_the_block_that_ends_and_changes_nothing_before(more, favoured):
    options = dict(gen_length=24, block_length=4, **more)
    whole = run(options, denoise=toy_denoiser(favoured=favoured))
    stopped = run({**options, "early_stop": True}, denoise=toy_denoiser(favoured=favoured))
    for full, cut in zip(whole, stopped):
        ends = [place for place, token in enumerate(full.answer) if token in SPECIAL.ends]
        length = (ends[0] // 4 + 1) * 4 if ends else 24
        assert cut.answer == full.answer[:length]
        assert cut.num_forwards < full.num_forwards or length == 24
    assert any(len(sample.answer) < 24 for sample in stopped)


@pytest.mark.parametrize("method", [None, "semi_ar_origin"])
def test_an_end_that_a_review_writes_into_an_earlier_block_ends_the_row(method):
    def review(draft: Draft) -> Filled:
        filled = unreviewed(draft)
        if draft.number == 1:
            draft.tokens[:, draft.start + 1] = SPECIAL.eos
        return filled

    config = SamplerConfig(gen_length=16, block_length=4, early_stop=True, sampling_method=method)
    [sample] = decode(toy_denoiser(favoured={5: 9.0}), PROMPTS[:1], config, SPECIAL, review=review)
    assert len(sample.answer) == sample.num_forwards == 8


def test_a_stop_rule_ends_its_own_row_at_the_end_of_a_block():
    options = dict(gen_length=24, block_length=4)
    asked: list[list[int]] = []

    def stop(answer: list[int]) -> bool:
        asked.append(answer)
        return len(answer) == 8 and answer == whole[2].answer[:8]

    whole = run(options)
    samples = run(options, stop=stop)
    assert samples[2] == Sample(whole[2].answer[:8], 8)
    assert [*samples[:2], *samples[3:]] == [*whole[:2], *whole[3:]]
    assert all(len(answer) % 4 == 0 and MASK not in answer for answer in asked)


def test_semi_ar_padding_shows_every_later_mask_and_origin_shows_none():
    for method, grows in (("semi_ar_padding", False), ("semi_ar_origin", True)):
        seen: list[tuple[Canvas, slice]] = []
        never_ends = toy_denoiser(favoured={EOS: -50.0, EOT: -50.0})
        run(
            dict(gen_length=12, block_length=4, sampling_method=method),
            PROMPTS[:2],
            never_ends,
            seen=seen,
        )
        assert len(seen) == 12
        for number, (canvas, window) in enumerate(seen):
            block = number // 4
            assert window == slice(3 + 4 * block, 7 + 4 * block)
            assert canvas.tokens.shape[1] == (window.stop if grows else 15)
            assert (canvas.tokens[:, window.stop :] == MASK).all()
            assert MASK not in canvas.tokens[0, : window.start]


def test_origin_stops_at_eos_without_being_asked():
    samples = run(
        dict(gen_length=24, block_length=4, sampling_method="semi_ar_origin"),
        denoise=toy_denoiser(favoured={EOS: 2.0}),
    )
    for sample in samples:
        assert EOS in sample.answer[-4:] or EOT in sample.answer[-4:] or len(sample.answer) == 24
        assert not set(sample.answer[:-4]) & set(SPECIAL.ends)
    assert any(len(sample.answer) < 24 for sample in samples)


# ---- guidance


def test_guidance_equals_two_forwards_and_the_published_formula():
    denoise, scale, window = toy_denoiser(), 1.7, slice(4, 8)
    tokens = torch.tensor(
        [[PADDING, 5, MASK, 7, 4, MASK, MASK, 9], [8, 9, 10, 11, MASK, 4, MASK, MASK]]
    )
    start, at = torch.tensor([4, 4]), torch.tensor([[0, 3], [2, 1]])
    blank = tokens.clone()
    for row in range(2):
        for column in range(4):
            if tokens[row, column] != PADDING:
                blank[row, column] = MASK
    conditional, unconditional = (
        denoise(Canvas(both, start), window).logits_at(at) for both in (tokens, blank)
    )
    expected = unconditional + (scale + 1) * (conditional - unconditional)
    assert torch.equal(
        guided(denoise, scale, MASK)(Canvas(tokens, start), window).logits_at(at), expected
    )


@pytest.mark.parametrize(
    "wrap",
    [
        lambda inner: inner,
        lambda inner: guided(inner, 1.7, MASK),
        lambda inner: suppressed(inner, [5, 6]),
    ],
    ids=["plain", "guided", "suppressed"],
)
def test_logits_of_some_places_are_those_of_the_window(wrap):
    tokens = torch.tensor(
        [[PADDING, 5, MASK, 7, 4, MASK, MASK, 9], [8, 9, 10, 11, MASK, 4, MASK, MASK]]
    )
    prediction = wrap(toy_denoiser())(Canvas(tokens, torch.tensor([4, 4])), slice(4, 8))
    rows, at = torch.tensor([1, 0, 1, 1]), torch.tensor([2, 3, 2, 0])
    whole = prediction.logits_at(torch.arange(4).expand(2, -1))
    assert torch.equal(prediction.logits_at(at, rows), whole[rows, at])


def test_guidance_of_scale_zero_is_the_conditional_prediction():
    canvas = Canvas(torch.tensor([[5, 6, MASK, MASK]]), torch.tensor([2]))
    at = torch.tensor([[0, 1]])
    plain = toy_denoiser()(canvas, slice(2, 4)).logits_at(at)
    torch.testing.assert_close(
        guided(toy_denoiser(), 0.0, MASK)(canvas, slice(2, 4)).logits_at(at),
        plain,
        atol=rounding(2, plain),
        rtol=0,
    )


def test_guidance_keeps_the_conditional_policy_score():
    def denoise(canvas: Canvas, window: slice) -> Prediction:
        return Prediction.from_logits(
            torch.zeros(len(canvas.tokens), 2, VOCAB), canvas.tokens[:, :1].expand(-1, 2).float()
        )

    canvas = Canvas(torch.tensor([[5, 6, MASK, MASK], [7, 6, MASK, MASK]]), torch.tensor([2, 2]))
    assert guided(denoise, 1.0, MASK)(canvas, slice(2, 4)).confidence.tolist() == [[5, 5], [7, 7]]


# ---- proposals


def many_draws(num: int) -> torch.Tensor:
    return uniform(torch.tensor([17]), 0, torch.arange(num), 1)  # (num,)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_sampled_frequencies_are_the_softmax_at_that_temperature(temperature):
    num = 20_000
    logits = torch.linspace(-1.5, 1.5, VOCAB)
    drawn = propose(
        logits.expand(num, VOCAB), SamplerConfig(temperature=temperature), lambda: many_draws(num)
    )
    expected = (logits.double() / temperature).softmax(-1) * num
    # fixed draws
    assert (
        stats.chisquare(torch.bincount(drawn, minlength=VOCAB).numpy(), expected.numpy()).pvalue
        > 1e-3
    )


def test_a_sample_is_the_token_at_which_the_summed_probabilities_pass_the_drawn_number():
    generator = torch.Generator().manual_seed(4)
    logits = 5 * torch.randn(60, 200, generator=generator)
    logits[:, ::7] = -float("inf")
    drawn = torch.rand(60, generator=generator, dtype=torch.float64)
    found = sampled_tokens(logits, drawn, SamplerConfig(temperature=0.6)).tolist()
    for row, (values, point) in enumerate(zip(logits.tolist(), drawn.tolist())):
        weight = [math.exp(value / 0.6) for value in values]
        assert (
            math.fsum(weight[: found[row]])
            < point * math.fsum(weight)
            < math.fsum(weight[: found[row] + 1])
        )


@pytest.mark.parametrize(
    "drawn, token", [(2.0**-53, 1), (1 - 2.0**-53, VOCAB - 2), (1e-13, 1), (3e-13, 2), (0.5, 2)]
)
def test_the_tail_is_reached_and_what_has_no_probability_is_not(drawn, token):
    """The second and the last but one token have probability 2e-13 and stand beside
    tokens without any; float32 sums would end before.
    """
    logits = torch.full((1, VOCAB), -float("inf"))
    logits[0, 1], logits[0, 2], logits[0, VOCAB - 2] = math.log(2e-13), 0.0, math.log(2e-13)
    assert sampled_tokens(
        logits, torch.tensor([drawn], dtype=torch.float64), SamplerConfig(temperature=1.0)
    ).tolist() == [token]


def test_sampled_tokens_do_not_depend_on_the_rows_beside_them():
    logits = 3 * torch.randn(5, 30, 1000, generator=torch.Generator().manual_seed(6))
    drawn = uniform(torch.arange(5)[:, None], 0, torch.arange(30), 1)
    config = SamplerConfig(temperature=1.0)
    together = propose(logits, config, lambda: drawn)
    assert together.shape == (5, 30)
    for row in range(5):
        here = (slice(row, row + 1), slice(7, 9))
        alone = propose(logits[here], config, partial(drawn.__getitem__, here))
        assert torch.equal(alone, together[here])


@pytest.mark.parametrize(
    "options, support",
    [
        (dict(top_k=3), 3),
        (dict(top_k=1), 1),
        (dict(top_k=99), VOCAB),
        (dict(top_p=0.01), 1),
        (dict(top_p=0.39), 1),
        (dict(top_p=0.41), 2),
        # within the top 3: (0.4 + 0.25) / 0.75 > 0.8
        (dict(top_p=0.66), 3),
        (dict(top_p=1.0), VOCAB),
        (dict(top_k=3, top_p=0.8), 2),
    ],
    ids=str,
)
def test_top_k_and_top_p_sample_from_their_whole_support_and_nothing_else(options, support):
    probability = torch.tensor([0.4, 0.25, 0.1] + [0.25 / 13] * 13)
    order = torch.randperm(VOCAB, generator=torch.Generator().manual_seed(0))
    logits = torch.empty(VOCAB).scatter(0, order, probability.log())
    drawn = propose(
        logits.expand(5000, VOCAB),
        SamplerConfig(temperature=1.0, **options),
        lambda: many_draws(5000),
    )
    assert set(drawn.tolist()) == set(order[:support].tolist())


@pytest.mark.parametrize(
    "more",
    [{}, dict(block_length=4), dict(threshold=0.4), dict(remask_ratio=0.5, steps=6)],
    ids=str,
)
def test_sampling_from_the_best_token_alone_is_greedy(more):
    greedy = run(dict(gen_length=12, **more))
    assert run(dict(gen_length=12, temperature=1.0, top_k=1, **more)) == greedy
    assert run(dict(gen_length=12, temperature=1.0, top_p=1e-9, **more)) == greedy


# the first two have no normal float64
@pytest.mark.parametrize("temperature", [5e-324, 1e-310, 2.3e-308, 1e-30])
@pytest.mark.parametrize("more", [{}, dict(top_k=3), dict(top_p=0.9), dict(threshold=0.4)], ids=str)
def test_a_temperature_however_small_is_greedy(temperature, more):
    greedy = run(
        dict(gen_length=12, **{name: value for name, value in more.items() if name == "threshold"})
    )
    assert run(dict(gen_length=12, temperature=temperature, **more)) == greedy


@pytest.mark.parametrize("block_length, later", [(12, 1), (6, 6)], ids=["next step", "next block"])
def test_every_step_block_and_position_draws_anew(block_length, later):
    def indifferent(canvas: Canvas, window: slice) -> Prediction:
        """Uniform logits: proposals are the noise alone."""
        return Prediction.from_logits(
            torch.zeros(len(canvas.tokens), window.stop - window.start, VOCAB)
        )

    steps, _ = steps_of(
        dict(gen_length=12, block_length=block_length, temperature=1.0), indifferent
    )
    proposed = steps[later].score != float("inf")  # not pinned from before
    differs = (steps[0].proposal != steps[later].proposal)[proposed]
    # 15/16 are expected to; one stream for both would give none
    assert differs.float().mean() > 0.75
    assert all(len(set(row.tolist())) > 3 for row in steps[0].proposal)


# ---- the published samplers


def random_prompts(choose: random.Random) -> list[list[int]]:
    return [
        [
            choose.choice([token for token in range(VOCAB) if token != MASK])
            for _ in range(choose.randint(1, 6))
        ]
        for _ in range(3)
    ]


def naive_generate(
    denoise: Denoiser,
    prompt: list[int],
    gen_length: int,
    steps: int,
    block_length: int,
    cfg_scale: float = 0.0,
    logits_eos_inf: bool = False,
    confidence_eos_eot_inf: bool = False,
) -> list[int]:
    """LLaDA's sampler at temperature 0 (arXiv 2502.09992, Algorithm 5, and its
    generate.py), one token at a time in plain Python.
    """
    row, num_blocks = prompt + [MASK] * gen_length, gen_length // block_length

    def predict(tokens: list[int]) -> list[list[float]]:
        canvas = Canvas(torch.tensor([tokens]), torch.tensor([len(prompt)]))
        return (
            denoise(canvas, slice(0, len(tokens)))
            .logits_at(torch.arange(len(tokens))[None])[0]
            .tolist()
        )

    for block in range(num_blocks):
        first = len(prompt) + block * block_length
        end, num_steps = first + block_length, steps // num_blocks
        num_masked = row[first:end].count(MASK)
        for step in range(num_steps):
            logits = predict(row)
            if cfg_scale:
                blank = predict([MASK] * len(prompt) + row[len(prompt) :])
                logits = [
                    [u + (cfg_scale + 1) * (c - u) for c, u in zip(*pair)]
                    for pair in zip(logits, blank)
                ]
            found = []
            for place in range(first, end):
                if row[place] != MASK:
                    continue
                here = list(logits[place])
                if logits_eos_inf:
                    here[EOS] = -math.inf
                token = here.index(max(here))
                if confidence_eos_eot_inf:
                    here[EOS] = here[EOT] = -math.inf
                found.append(
                    (-math.exp(here[token]) / sum(math.exp(value) for value in here), place, token)
                )
            count = num_masked // num_steps + (1 if step < num_masked % num_steps else 0)
            for _, place, token in sorted(found)[:count]:
                row[place] = token
    return row[len(prompt) :]


@pytest.mark.parametrize("seed", range(40))
def test_answers_equal_a_naive_reimplementation_of_the_published_sampler(seed):
    choose = random.Random(seed)
    num_blocks, block_length = choose.choice([1, 2, 3]), choose.choice([2, 4, 5])
    options = dict(
        gen_length=num_blocks * block_length,
        block_length=block_length,
        steps=num_blocks * choose.randint(1, block_length + 2),
        cfg_scale=choose.choice([0.0, 0.0, 0.7, 2.0]),
        logits_eos_inf=choose.random() < 0.4,
        confidence_eos_eot_inf=choose.random() < 0.4,
    )
    prompts = random_prompts(choose)
    # upstream may propose the mask
    denoise = toy_denoiser(seed, favoured={MASK: -50.0, EOS: choose.choice([0.0, 1.5])})
    samples = run(options, prompts, denoise)
    assert [sample.answer for sample in samples] == [
        naive_generate(denoise, prompt, **options) for prompt in prompts
    ]
    # steps beyond the tokens unmask nothing, and cost no forward
    num_forwards = min(options["steps"], options["gen_length"])
    assert {sample.num_forwards for sample in samples} == {num_forwards}


def predicted(denoise: Denoiser, row: list[int], start: int) -> Prediction:
    """Of all places of one row."""
    return denoise(Canvas(torch.tensor([row]), torch.tensor([start])), slice(0, len(row)))


def scored(prediction: Prediction, row: list[int], place: int, source: str) -> tuple[int, float]:
    """The token that would stand at one place of one row, and its confidence, by the
    papers' words in plain Python.
    """
    logits = prediction.logits_at(torch.tensor([[place]]))[0, 0].tolist()
    token = logits.index(max(logits)) if row[place] == MASK else row[place]
    total = sum(math.exp(value) for value in logits)
    probability = math.exp(logits[token]) / total
    if source in ("ups", "ups_all"):
        policy = 1 / (1 + math.exp(-float(prediction.confidence[0, place])))
        only_visible = source == "ups" and not prediction.ranks_masked
        return token, probability if only_visible and row[place] == MASK else policy
    best, second = sorted(logits, reverse=True)[:2]
    return token, {
        "tps_prob": probability,
        "tps_logit": logits[token],
        "margin": (math.exp(best) - math.exp(second)) / total,
        "entropy": -stats.entropy([math.exp(value) for value in logits]),
    }[source]


def naive_remedi(
    denoise: Denoiser,
    prompt: list[int],
    gen_length: int,
    steps: int,
    block_length: int,
    confidence_source: str,
    sampling_method: str = "semi_ar_padding",
    cfg_scale: float = 0.0,
) -> list[int]:
    """RemeDi's loop (arXiv 2509.23653, Algorithm 1): after step n the K_n best of the
    whole block stand, all others are masked.
    """
    denoise = guided(denoise, cfg_scale, MASK) if cfg_scale else denoise
    row = prompt + [MASK] * gen_length * (sampling_method == "semi_ar_padding")
    per_block = steps * block_length // gen_length
    increments = [block_length // per_block] * per_block
    for last in range(block_length % per_block):
        increments[-1 - last] += 1
    for block in range(gen_length // block_length):
        first = len(prompt) + block * block_length
        row = row + [MASK] * (first + block_length - len(row))
        for step in range(per_block):
            places = range(first, first + block_length)
            prediction = predicted(denoise, row, len(prompt))
            candidates = [
                (scored(prediction, row, place, confidence_source), place) for place in places
            ]
            ranked = sorted(candidates, key=lambda candidate: -candidate[0][1])
            for number, ((token, _), place) in enumerate(ranked):
                row[place] = token if number < sum(increments[: step + 1]) else MASK
        if sampling_method == "semi_ar_origin" and {EOS, EOT} & set(row[first:]):
            break
    return row[len(prompt) :]


def policy_toy(seed: int, ranks_masked: bool, favoured: dict[int, float] | None = None) -> Denoiser:
    """The toy with a policy stream of either kind; the oracles would propose the mask,
    so it never wants to.
    """
    toy = toy_denoiser(seed, {MASK: -50.0, **(favoured or {})})
    return lambda canvas, window: toy(canvas, window)._replace(ranks_masked=ranks_masked)


@pytest.mark.parametrize("source", ["ups", "ups_all", "tps_prob", "tps_logit"])
@pytest.mark.parametrize("ranks_masked", [False, True], ids=["light head", "bi-tower"])
def test_revision_equals_a_naive_reimplementation_of_remedi(source, ranks_masked):
    for seed in range(10):
        choose = random.Random(seed)
        num_blocks, block_length = choose.choice([1, 2, 3]), choose.choice([2, 4, 5])
        options = dict(
            gen_length=num_blocks * block_length,
            block_length=block_length,
            steps=num_blocks * choose.randint(1, block_length + 2),
            confidence_source=source,
            sampling_method=choose.choice(["semi_ar_padding", "semi_ar_origin"]),
            cfg_scale=choose.choice([0.0, 0.0, 0.7]),
        )
        prompts = random_prompts(choose)
        denoise = policy_toy(seed, ranks_masked)
        samples = run({**options, "revise": True}, prompts, denoise)
        assert [sample.answer for sample in samples] == [
            naive_remedi(denoise, prompt, **options) for prompt in prompts
        ], options


def naive_adaptive(
    denoise: Denoiser,
    prompt: list[int],
    gen_length: int,
    block_length: int,
    confidence_source: str,
    revise_below: float,
    threshold: float | None = None,
    factor: float | None = None,
    error_budget: float | None = None,
    threshold_entropy: float | None = None,
    max_forwards: int | None = None,
) -> Sample:
    """Commit what passes, at least the best; mask what stands below revise_below; until
    nothing is masked or no forward is left.
    """
    row, forwards, num_blocks = prompt + [MASK] * gen_length, 0, gen_length // block_length
    for block in range(num_blocks):
        places = range(len(prompt) + block * block_length, len(prompt) + (block + 1) * block_length)
        left = max_forwards // num_blocks if max_forwards else block_length
        while any(row[place] == MASK for place in places):
            of_masked = confidence_source if threshold_entropy is None else "entropy"
            sources = {
                place: of_masked if row[place] == MASK else confidence_source for place in places
            }
            prediction = predicted(denoise, row, len(prompt))
            found = {
                place: scored(prediction, row, place, source) for place, source in sources.items()
            }
            forwards, left = forwards + 1, left - 1
            masked = sorted(
                (place for place in places if row[place] == MASK),
                key=lambda place: -found[place][1],
            )
            doubted = [
                place for place in places if row[place] != MASK and found[place][1] < revise_below
            ]
            accepted = 1
            while accepted < len(masked):
                score = found[masked[accepted]][1]
                spent = sum(1 - found[place][1] for place in masked[: accepted + 1])
                if not (
                    score >= threshold
                    if threshold
                    else (accepted + 2) * (1 - score) < factor
                    if factor
                    else -score <= threshold_entropy
                    if threshold_entropy
                    else spent <= error_budget
                ):
                    break
                accepted += 1
            if factor and not 2 * (1 - found[masked[0]][1]) < factor:
                # the rule stops at the first that fails; the best is kept nevertheless
                accepted = 1
            for place in masked if left == 0 else masked[:accepted]:
                row[place] = found[place][0]
            for place in doubted if left else []:
                row[place] = MASK
    return Sample(row[len(prompt) :], forwards)


@pytest.mark.parametrize(
    ("rule", "source"),
    [
        (rule, source)
        for rule in ADAPTIVE_RULES
        for source in (OF_VISIBLE if rule == "threshold_entropy" else PROBABILITIES)
    ],
)
def test_adaptive_revision_equals_a_naive_loop(rule, source):
    differ = 0
    for seed in range(16):
        choose = random.Random(seed)
        num_blocks, block_length = choose.choice([1, 2]), choose.choice([3, 6, 8])
        options = dict(
            gen_length=num_blocks * block_length,
            block_length=block_length,
            confidence_source=source,
            revise_below=choose.choice([0.02, 0.05, 0.2, 0.5]),
            max_forwards=choose.choice([None, num_blocks, 2 * num_blocks, 7, 20]),
        )
        options[rule] = choose.choice(
            {
                "threshold": [0.2, 0.4, 0.6, 0.8],
                "threshold_entropy": [0.8, 1.3, 1.7, 2.0],
                "factor": [0.7, 1.3, 1.6, 1.9],
                "error_budget": [0.3, 0.7, 1.1, 1.9],
            }[rule]
        )
        prompts = random_prompts(choose)
        denoise = policy_toy(seed, choose.random() < 0.3, SURE)
        samples = run(options, prompts, denoise)
        assert samples == [naive_adaptive(denoise, prompt, **options) for prompt in prompts], (
            options
        )
        differ += len({sample.num_forwards for sample in samples}) > 1
    assert differ > 0  # rows of one batch ended at different steps


@pytest.fixture(scope="module")
def recorded_model(golden):
    return load_model(golden / "llada" / "checkpoint", device="cpu", dtype="float32")


def test_a_mixed_batch_of_a_real_model_answers_like_single_rows(recorded_model):
    prompts = [[5, 6, 7], [8], [4, 4, 9, 10, 11, 12]]
    for options in ({}, dict(block_length=4, temperature=1.0), dict(threshold=0.2, cfg_scale=1.0)):
        config = SamplerConfig(gen_length=8, **options)
        assert generate(recorded_model, prompts, config) == [
            generate(recorded_model, [prompt], config)[0] for prompt in prompts
        ]


@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(steps=4),
        dict(temperature=1.0),
        dict(threshold=0.2),
        dict(revise=True, steps=4),
        dict(remask_ratio=0.5, steps=6),
        dict(sampling_method="semi_ar_origin"),
        dict(cache="dual"),
    ],
    ids=str,
)
@pytest.mark.parametrize(("length", "block", "whole"), [(7, 4, 8), (5, 4, 8), (3, 8, 8), (1, 2, 2)])
def test_an_answer_that_no_block_divides_is_the_beginning_of_the_one_in_whole_blocks(
    recorded_model, options, length, block, whole
):
    prompts, num_blocks = [[5, 6, 7], [8]], whole // block
    if "steps" in options:
        options = {**options, "steps": min(options["steps"] // num_blocks, block) * num_blocks}
    config = SamplerConfig(gen_length=length, block_length=block, **options)
    assert (config.decoded_length, config.num_blocks) == (whole, num_blocks)
    cut, long = (
        generate(recorded_model, prompts, replace(config, gen_length=number))
        for number in (length, whole)
    )
    assert [sample.answer for sample in cut] == [sample.answer[:length] for sample in long]
    assert [sample.num_forwards for sample in cut] == [sample.num_forwards for sample in long]


def test_a_last_block_that_would_leave_the_context_is_refused(make_model):
    with pytest.raises(
        ValueError,
        match=r"prompt 0 of 57 tokens and gen_length \(6, 8 in whole blocks\) exceed the model's "
        r"context of 64",
    ):
        generate(make_model(), [[1] * 57], SamplerConfig(gen_length=6, block_length=4))


# ---- mistakes

MISTAKES = [
    (dict(gen_length=0), r"gen_length must be at least 1, got 0"),
    (dict(steps=0), r"steps must be at least 1, got 0"),
    (dict(block_length=-1), r"block_length must be at least 1, got -1"),
    (dict(top_k=0, temperature=1.0), r"top_k must be at least 1, got 0"),
    (
        dict(gen_length=12, block_length=4, sampling_method="fixed_length"),
        r"fixed_length' decodes one block.*gen_length \(12\), got 4",
    ),
    (
        dict(gen_length=12, block_length=4, steps=10),
        r"steps \(10\) must be a multiple of the number of blocks \(3 = gen_length 12 / ",
    ),
    (
        dict(gen_length=10, block_length=4, steps=10),
        r"steps \(10\) must be a multiple of .* \(3 = gen_length 10 / block_length 4, rounded up\)",
    ),
    (
        dict(gen_length=10, block_length=4, sampling_method="fixed_length"),
        r"fixed_length' decodes one block.*gen_length \(10\), got 4",
    ),
    (
        dict(temperature=-1.0),
        r"temperature and cfg_scale must be numbers from 0 up, got -1.0 and 0.0",
    ),
    (
        dict(cfg_scale=-0.5),
        r"temperature and cfg_scale must be numbers from 0 up, got 0.0 and -0.5",
    ),
    (
        dict(temperature=float("nan")),
        r"temperature and cfg_scale must be numbers from 0 up, got nan",
    ),
    (
        dict(temperature=float("inf")),
        r"temperature and cfg_scale must be numbers from 0 up, got inf",
    ),
    (
        dict(cfg_scale=float("nan")),
        r"temperature and cfg_scale must be numbers from 0 up, got 0.0 and nan",
    ),
    (dict(top_p=0.0, temperature=1.0), r"top_p must be above 0 and at most 1, got 0.0"),
    (dict(top_p=1.5, temperature=1.0), r"top_p must be above 0 and at most 1, got 1.5"),
    (dict(top_p=0.9), r"top_k and top_p have no effect at temperature=0.*confidence_of=filtered"),
    (dict(top_k=5), r"top_k and top_p have no effect at temperature=0"),
    (
        dict(remasking="low"),
        r"remasking must be one of low_confidence, tps_prob, random, entropy, margin.*, got 'low'",
    ),
    (
        dict(confidence_source="logit"),
        r"confidence_source must be one of low_confidence, .*, got 'logit'",
    ),
    (
        dict(remasking="random", confidence_source="margin"),
        r"remasking='random' and confidence_source='margin' are two names of one",
    ),
    (dict(threshold=0.9, factor=1.0), r"threshold and factor are alternatives: give one"),
    (dict(threshold=0.9, remask_ratio=0.5), r"threshold and remask_ratio are alternatives"),
    (dict(factor=1.0, error_budget=0.1), r"factor and error_budget are alternatives: give one"),
    (dict(error_budget=0.0), r"error_budget must be above 0, got 0.0"),
    (dict(error_budget=float("nan")), r"error_budget must be above 0, got nan"),
    (
        dict(error_budget=0.1, confidence_source="entropy"),
        r"threshold, factor, error_budget compare probabilities: they need confidence_source",
    ),
    (dict(revise=True, error_budget=0.1), r"error_budget and revise are alternatives: give one"),
    (dict(factor=1.0, remask_ratio=0.5), r"factor and remask_ratio are alternatives"),
    (dict(threshold=0.0), r"threshold must be between 0 and 1, got 0.0"),
    (dict(threshold=1.1), r"threshold must be between 0 and 1, got 1.1"),
    (
        dict(threshold_entropy=float("nan")),
        r"threshold_entropy must be 0 or more \(nats\), got nan",
    ),
    (dict(threshold_entropy=-0.1), r"threshold_entropy must be 0 or more \(nats\), got -0.1"),
    (dict(threshold_entropy=0.4, threshold=0.9), r"threshold and threshold_entropy are altern"),
    (
        dict(threshold_entropy=0.4, confidence_source="margin"),
        r"threshold_entropy judges masked .* can be entropy here, got 'margin'",
    ),
    (
        dict(threshold_entropy=0.4, confidence_source="entropy", revise_below=0.5),
        r"threshold_entropy judges masked .* can be tps_prob, margin, ups here, got 'entropy'",
    ),
    (
        dict(threshold_entropy=0.4, edit_threshold=0.9),
        r"edit_threshold compares probabilities .* give threshold in its place",
    ),
    (dict(strict=True), r"strict has no effect without threshold or threshold_entropy"),
    (dict(factor=0.0), r"factor must be above 0, got 0.0"),
    (dict(factor=float("nan")), r"factor must be above 0, got nan"),
    (dict(remask_ratio=0.0), r"remask_ratio must be between 0 and 1, got 0.0"),
    (dict(remask_ratio=1.0), r"remask_ratio must be between 0 and 1, got 1.0"),
    (
        dict(threshold=0.9, remasking="random"),
        r"need confidence_source tps_prob, margin, ups, ups_all, got 'random'",
    ),
    (
        dict(factor=1.0, confidence_source="entropy"),
        r"need confidence_source tps_prob, margin, ups, ups_all, got 'entropy'",
    ),
    (
        dict(threshold=0.9, confidence_source="tps_logit"),
        r"need confidence_source tps_prob, margin, ups, ups_all, got 'tps_logit'",
    ),
    (dict(revise=True, threshold=0.9), r"threshold and revise are alternatives: give one"),
    (dict(revise=True, factor=1.0), r"factor and revise are alternatives: give one"),
    (dict(revise=True, remask_ratio=0.5), r"remask_ratio and revise are alternatives: give one"),
    (
        dict(revise_below=0.5),
        r"revise_below has no effect without threshold, .* or error_budget: set one of them, "
        r"or leave it out",
    ),
    (
        dict(revise_below=0.5, revise=True),
        r"revise_below has no effect without threshold, .* or error_budget",
    ),
    (dict(max_forwards=0, threshold=0.9), r"max_forwards must be at least 1, got 0"),
    (dict(revise_below=0.0, threshold=0.9), r"revise_below must be above 0 and at most 1, got 0.0"),
    (dict(revise_below=1.5, factor=1.0), r"revise_below must be above 0 and at most 1, got 1.5"),
    (
        dict(revise_below=float("nan"), factor=1.0),
        r"revise_below must be above 0 and at most 1, got nan",
    ),
    (dict(schedule="dream", threshold=0.9), r"schedule=dream has no effect with threshold"),
    (dict(schedule="mdlm", remask_ratio=0.5), r"schedule=mdlm has no effect with remask_ratio"),
    (dict(schedule_eps=0.1), r"schedule_eps has no effect with schedule=llada: .* dream or indep"),
    (dict(schedule="mdlm", schedule_eps=0.1), r"schedule_eps has no effect with schedule=mdlm"),
    (dict(schedule="dream", schedule_eps=0.0), r"schedule_eps must be between 0 and 1, got 0.0"),
    (dict(schedule="dream", schedule_eps=1.0), r"schedule_eps must be between 0 and 1, got 1.0"),
    (dict(schedule="independent"), r"needs confidence_source=random, and goes without revise"),
    (
        dict(schedule="independent", remasking="random", revise=True),
        r"needs confidence_source=random, and goes without revise",
    ),
    (dict(paced=True), r"paced has no effect without threshold"),
    (
        dict(gen_length=12, block_length=4, steps=10, threshold=0.9, paced=True),
        r"steps \(10\) must be a multiple of the number of blocks",
    ),
    (dict(alg_temp=-0.1), r"alg_temp must be a number from 0 up, got -0.1"),
    (dict(alg_temp=float("nan")), r"alg_temp must be a number from 0 up, got nan"),
    (dict(alg_temp=0.1, threshold=0.9), r"alg_temp draws .*, which adaptive rules cannot use"),
    (dict(alg_temp=0.1, remasking="random"), r"alg_temp draws .* confidence_source=random cannot"),
    (dict(shift_cache="published"), r"shift_cache has no effect with cache='auto'"),
    (
        dict(shift_cache="published", cache="dual", factor=1.0),
        r"shift_cache=published is Fast-dLLM's decoder for Dream, which has a threshold or",
    ),
    (
        dict(shift_cache="published", cache="dual", gen_length=8, block_length=4, steps=2),
        r"shift_cache=published spends .* it needs at least 2 steps a block",
    ),
    (
        dict(gen_length=12, block_length=4, threshold=0.9, max_forwards=2),
        r"max_forwards \(2\) must be at least the number of blocks \(3\)",
    ),
]
ALLOWED = [
    dict(gen_length=12, steps=24, remask_ratio=0.5),  # refinement may take more steps than tokens
    dict(gen_length=12, block_length=4, steps=7, threshold=0.9),  # steps are ignored there
    dict(remasking="low_confidence", confidence_source="tps_prob"),
    dict(gen_length=12, block_length=12, sampling_method="fixed_length"),
    dict(gen_length=10, block_length=4, steps=12),
    dict(gen_length=12, block_length=24, sampling_method="fixed_length"),
    dict(threshold=1.0),
    dict(threshold_entropy=0.0),
    dict(threshold_entropy=0.5, confidence_source="entropy", strict=True),
    dict(top_p=1.0, temperature=0.1),
    dict(threshold=0.9, revise=False),
    dict(threshold=0.9, revise_below=1.0),
    dict(gen_length=12, block_length=4, factor=1.0, max_forwards=3),
    dict(error_budget=5.0, revise_below=0.5),
    dict(error_budget=0.1, steps=7),
    dict(gen_length=8, steps=30, schedule="dream"),  # the steps that unmask nothing are skipped
    dict(gen_length=20, block_length=8, steps=20, schedule="mdlm"),  # rounded up in each block
    dict(top_p=0.9, confidence_of="filtered"),
    dict(alg_temp=0.0, threshold=0.9),
    dict(shift_cache="published", cache="prefix", threshold=0.9, block_length=8, gen_length=16),
]


def check_refused(options: dict[str, object], message: str) -> None:
    """A sampler of these options is refused in one line."""
    with pytest.raises(ValueError, match=message) as caught:
        SamplerConfig(**options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options, message", MISTAKES, ids=lambda value: str(value) if isinstance(value, dict) else ""
)
def test_a_wrong_option_is_told_with_what_was_given_and_what_is_allowed(options, message):
    check_refused(options, message)


@pytest.mark.parametrize("options", ALLOWED, ids=str)
def test_options_that_go_together_are_accepted(options):
    assert SamplerConfig(**options).num_blocks >= 1


def test_defaults_are_the_published_ones():
    config = SamplerConfig()
    assert (config.gen_length, config.block, config.num_blocks, config.steps_per_block) == (
        128,
        128,
        1,
        128,
    )
    assert (config.source, config.temperature, config.cfg_scale) == ("tps_prob", 0.0, 0.0)
    assert not (config.adaptive or config.revises or config.grows or config.early_stop)


def test_wrong_prompts_and_missing_tokens_are_told_before_a_forward(make_model):
    model, short = make_model(), SamplerConfig(gen_length=8)
    assert generate(model, [], short) == []
    with pytest.raises(ValueError, match="prompt 1 is empty: give at least one token"):
        generate(model, [[1], []], short)
    with pytest.raises(
        ValueError, match=r"prompt 1 holds the mask token \(id 39\) at position 1: .*take it out"
    ):
        generate(model, [[1], [1, 39]], short)
    with pytest.raises(
        ValueError,
        match=r"prompt 1 of 57 tokens and gen_length \(8\) exceed the model's context of 64 tokens",
    ):
        generate(model, [[1], [1] * 57], short)
    assert len(generate(model, [[1] * 56], short)[0].answer) == 8
    with pytest.raises(ValueError, match="names no mask token.*pass special=SpecialTokens"):
        generate(make_model(mask_token_id=None), [[1]], short)
    with pytest.raises(ValueError, match="logits_eos_inf needs an EOS token"):
        generate(
            make_model(eos_token_id=None), [[1]], SamplerConfig(gen_length=8, logits_eos_inf=True)
        )
    with pytest.raises(ValueError, match="confidence_eos_eot_inf needs an EOS or EoT token"):
        generate(
            make_model(eos_token_id=None),
            [[1]],
            SamplerConfig(gen_length=8, confidence_eos_eot_inf=True),
        )


@every_method
def test_a_step_says_what_was_masked_before_it_and_so_what_stands_after_it(options):
    before: dict[tuple[int, int], torch.Tensor] = {}
    for step in watched(options).steps:
        after = (step.masked & ~step.kept) | step.remasked
        assert not (step.kept & ~step.masked).any() and not (step.remasked & step.masked).any()
        for row, masked, left in zip(step.rows.tolist(), step.masked, after):
            expected = before.get((step.block, row), torch.ones_like(masked))
            assert torch.equal(masked, expected)
            before[step.block, row] = left
    assert not any(left.any() for left in before.values())
