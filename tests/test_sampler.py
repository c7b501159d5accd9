"""The decode loop: what holds for every decoder, a slow re-implementation of LLaDA's, and the published code's recorded answers."""
from __future__ import annotations

import itertools
import json
import math
import random

import pytest
import torch
from scipy import stats

from llada_plugins.checkpoint import load_model
from llada_plugins.confidence import CONFIDENCE, PROBABILITIES, Candidates
from llada_plugins.denoiser import PADDING, Canvas, Denoiser, Prediction, guided
from llada_plugins.generation import generate, with_options
from llada_plugins.model import SpecialTokens
from llada_plugins.noise import uniform
from llada_plugins.sampler import Sample, Step, adaptive_count, decode, keep_top, propose, quota
from llada_plugins.sampler_config import SamplerConfig

EOS, EOT, MASK, VOCAB = 1, 2, 3, 16
SPECIAL = SpecialTokens(MASK, EOS, EOT)
PROMPTS = [[5, 6, 7], [8], [4, 4, 9, 10, 3, 12], [14, 5], [11, 12, 13, 14, 15]]        # the third holds a mask token of its own
PRIME = 2_147_483_647

METHOD_OPTIONS = [dict(gen_length=12, **options) for options in (
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
    dict(factor=1.0, block_length=6),
    dict(factor=3.0, confidence_source="margin", temperature=0.7),
    dict(cfg_scale=1.5, steps=6),
    dict(remask_ratio=0.5, steps=4),
    dict(remask_ratio=0.34, block_length=6, steps=10, temperature=1.0, top_k=5),
    dict(remask_ratio=0.75, steps=20, confidence_source="random", cfg_scale=0.5),
    dict(sampling_method="semi_ar_origin", block_length=4),
    dict(sampling_method="semi_ar_origin", block_length=3, steps=8, temperature=0.7, top_p=0.8),
    dict(logits_eos_inf=True, temperature=1.0, block_length=4),
    dict(confidence_eos_eot_inf=True, steps=6),
    dict(early_stop=True, block_length=3),
    dict(early_stop=True, confidence_eos_eot_inf=True, block_length=4, threshold=0.4, temperature=1.0),
)]
every_method = pytest.mark.parametrize("options", METHOD_OPTIONS, ids=lambda options: ",".join(f"{k}={v}" for k, v in options.items()))


def toy_denoiser(seed: int = 0, favoured: dict[int, float] | None = None) -> Denoiser:
    """Logits in [0, 6) hashed from the row's tokens and the position, in integers: exact whatever the batch and its padding.

    favoured: token -> added to its logit everywhere.
    """
    added = torch.zeros(VOCAB, dtype=torch.float64)
    for token, value in (favoured or {}).items():
        added[token] = value

    def denoise(canvas: Canvas, window: slice) -> Prediction:
        position = torch.arange(canvas.tokens.shape[1]) - canvas.answer_start[:, None]                    # (B, L)
        each = ((canvas.tokens + 11) * 7919 + (position + 97) * 104_729) % PRIME
        context = ((each * each) % PRIME * (canvas.tokens != PADDING)).sum(1) % PRIME                     # (B,)
        mixed = (context[:, None, None] + position[:, window, None] * 15_485_863 + torch.arange(VOCAB) * 32_452_843 + seed) % PRIME
        for _ in range(3):
            mixed = (mixed * mixed + 12_345) % PRIME
        return Prediction.from_logits((mixed.double() / PRIME * 6 + added).float())
    return denoise


def record(denoise: Denoiser, seen: list[tuple[Canvas, slice]]) -> Denoiser:
    """The same denoiser; `seen` collects what it is asked."""
    def denoise_recorded(canvas: Canvas, window: slice) -> Prediction:
        seen.append((canvas._replace(tokens=canvas.tokens.clone()), window))
        return denoise(canvas, window)
    return denoise_recorded


def run(options: dict, prompts: list[list[int]] = PROMPTS, denoise: Denoiser | None = None, *,
        seen: list[tuple[Canvas, slice]] | None = None, **given) -> list[Sample]:
    """Decode with the toy, or another denoiser, wrapped as the options ask; `seen` collects what it is asked."""
    config = SamplerConfig(**options)
    denoise = with_options(denoise or toy_denoiser(), config, SPECIAL)
    return decode(denoise if seen is None else record(denoise, seen), prompts, config, SPECIAL, **given)


def steps_of(options: dict, denoise: Denoiser | None = None, prompts: list[list[int]] = PROMPTS) -> tuple[list[Step], list[Sample]]:
    steps: list[Step] = []
    return steps, run(options, prompts, denoise, on_step=steps.append)


# ---- properties of every decoder

@every_method
def test_no_mask_survives_and_the_length_is_right(options):
    for sample in run(options):
        assert MASK not in sample.answer
        assert all(0 <= token < VOCAB for token in sample.answer)
        stops = options.get("early_stop") or options.get("sampling_method") == "semi_ar_origin"
        assert len(sample.answer) == options["gen_length"] or stops and len(sample.answer) % options["block_length"] == 0


@every_method
def test_the_mask_token_is_never_produced_even_if_the_model_favours_it(options):
    assert all(MASK not in sample.answer for sample in run(options, denoise=toy_denoiser(favoured={MASK: 20.0})))


@every_method
def test_the_prompt_is_never_touched(options):
    seen: list[tuple[Canvas, slice]] = []
    run(options, seen=seen)
    for canvas, _ in seen:
        for row, start in zip(canvas.tokens.tolist(), canvas.answer_start.tolist()):
            assert [token for token in row[:start] if token != PADDING] in PROMPTS
            assert PADDING not in row[start:]


@every_method
def test_forwards_never_exceed_tokens_and_equal_the_steps_under_a_quota(options):
    config = SamplerConfig(**options)
    for sample in run(options):
        if config.revise:
            assert sample.num_forwards == config.steps_per_block * len(sample.answer) // config.block
        elif config.adaptive:
            assert len(sample.answer) // config.block <= sample.num_forwards <= len(sample.answer)
        else:
            assert sample.num_forwards == config.steps_per_block * len(sample.answer) // config.block <= len(sample.answer)


@every_method
def test_only_the_active_block_changes_and_committed_tokens_stay_unless_revised(options):
    seen: list[tuple[Canvas, slice]] = []
    samples = run(options, PROMPTS[:1], seen=seen)
    start = len(PROMPTS[0])
    final = torch.tensor(PROMPTS[0] + samples[0].answer)
    for (canvas, window), after in zip(seen, [canvas.tokens[0] for canvas, _ in seen[1:]] + [final]):
        before = canvas.tokens[0]
        end = min(len(before), len(after))
        changed = before[:end] != after[:end]
        assert not changed[:window.start].any() and not changed[window.stop:].any()
        if "remask_ratio" not in options:
            assert (before[:end][changed] == MASK).all()
    assert all(window.start >= start for _, window in seen)


@every_method
def test_steps_replay_to_the_answer(options):
    steps, samples = steps_of(options)
    answers: list[list[int]] = [[] for _ in PROMPTS]
    blocks: dict[int, torch.Tensor] = {}
    for number, step in enumerate(steps):
        if step.step == 0:
            blocks = {row: torch.full((step.proposal.shape[1],), MASK) for row in step.rows.tolist()}
        for at, row in enumerate(step.rows.tolist()):
            block = blocks[row]
            assert (block[step.kept[at]] == MASK).all() and (block[step.remasked[at]] != MASK).all()
            block[step.kept[at]] = step.proposal[at][step.kept[at]]
            block[step.remasked[at]] = MASK
            assert "remask_ratio" in options or not step.remasked[at].any()
        if number + 1 == len(steps) or steps[number + 1].step == 0:
            for row, block in blocks.items():
                assert len(answers[row]) == step.block * len(block)
                answers[row] += block.tolist()
    assert answers == [sample.answer for sample in samples]


@every_method
def test_an_answer_does_not_depend_on_the_batch_around_it(options):
    together = run(options)
    assert run(options, PROMPTS[::-1])[::-1] == together
    assert [run(options, [prompt])[0] for prompt in PROMPTS] == together
    assert run(options, PROMPTS[1:4]) == together[1:4]


@every_method
def test_the_same_seed_repeats_the_answer_and_only_random_decoders_have_another(options):
    first = [sample.answer for sample in run({**options, "seed": 1})]
    assert [sample.answer for sample in run({**options, "seed": 1})] == first
    config = SamplerConfig(**options)
    differs = [sample.answer for sample in run({**options, "seed": 2})] != first
    assert differs == (config.temperature > 0 or config.source == "random")


# ---- how many tokens a step keeps

@pytest.mark.parametrize("steps", [1, 2, 3, 5, 7, 12])
def test_quota_shares_evenly_with_the_remainder_on_the_first_steps(steps):
    num_masked = torch.arange(13)
    expected = [[m // steps + (1 if j < m % steps else 0) for j in range(steps)] for m in range(13)]
    assert quota(num_masked, steps).tolist() == expected


@pytest.mark.parametrize("steps, expected", [(12, [1] * 12), (5, [3, 3, 2, 2, 2]), (8, [2, 2, 2, 2, 1, 1, 1, 1]), (1, [12])])
def test_each_step_keeps_its_quota(steps, expected):
    taken, _ = steps_of(dict(gen_length=12, steps=steps))
    assert [step.kept.sum(-1).tolist() for step in taken] == [[count] * len(PROMPTS) for count in expected]


@pytest.mark.parametrize("ratio", [0.1, 0.25, 0.5, 0.9])
def test_remask_ratio_masks_that_fraction_after_every_step_but_the_last(ratio):
    seen: list[tuple[Canvas, slice]] = []
    run(dict(gen_length=12, block_length=6, steps=8, remask_ratio=ratio), PROMPTS[:1], seen=seen)
    masked = [int((canvas.tokens[0, window] == MASK).sum()) for canvas, window in seen]
    left = int(ratio * 6)
    assert masked == ([6, left, left, left] if left else [6]) * 2        # nothing left to refine ends the block


def test_remask_ratio_takes_committed_tokens_back():
    steps, _ = steps_of(dict(gen_length=12, steps=6, remask_ratio=0.5))
    assert sum(int(step.remasked.sum()) for step in steps) > 0


def test_a_threshold_no_probability_reaches_keeps_one_token_a_step():
    steps, samples = steps_of(dict(gen_length=12, threshold=1.0))
    assert [sample.num_forwards for sample in samples] == [12] * len(PROMPTS)
    assert all((step.kept.sum(-1) == 1).all() for step in steps)


def test_a_threshold_every_probability_reaches_keeps_all_at_once():
    assert [sample.num_forwards for sample in run(dict(gen_length=12, block_length=4, threshold=1e-6))] == [3] * len(PROMPTS)


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


@pytest.mark.parametrize("factor", [0.3, 1.0, 2.0, 5.0])
def test_factor_rule_equals_a_naive_loop(factor):
    generator = torch.Generator().manual_seed(3)
    score = torch.rand(200, 8, generator=generator) ** 0.2
    masked = torch.rand(200, 8, generator=generator) < 0.7
    count = adaptive_count(score.masked_fill(~masked, float("inf")), masked, SamplerConfig(gen_length=8, factor=factor))
    for row in range(200):
        ordered = sorted(score[row][masked[row]].tolist(), reverse=True)
        accepted = 0
        while accepted < len(ordered) and (accepted + 2) * (1 - ordered[accepted]) < factor:
            accepted += 1
        assert int(count[row]) == int((~masked[row]).sum()) + max(accepted, 1)


def test_keep_top_takes_the_best_and_breaks_ties_to_the_left():
    score = torch.tensor([[1.0, 3.0, 3.0, 2.0, 3.0], [0.0] * 5, [float("inf"), 0.0, -float("inf"), 0.0, float("inf")]])
    kept = [keep_top(score, torch.tensor([count] * 3)).int().tolist() for count in (0, 2, 3, 5, 9)]
    assert kept[0] == [[0] * 5] * 3
    assert kept[1] == [[0, 1, 1, 0, 0], [1, 1, 0, 0, 0], [1, 0, 0, 0, 1]]
    assert kept[2] == [[0, 1, 1, 0, 1], [1, 1, 1, 0, 0], [1, 1, 0, 0, 1]]
    assert kept[3] == kept[4] == [[1] * 5] * 3


# ---- what is trusted

@pytest.mark.parametrize("source", CONFIDENCE)
def test_confidence_equals_its_definition(source):
    generator = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(2, 5, VOCAB, generator=generator)
    tokens = torch.randint(VOCAB, (2, 5), generator=generator)
    drawn = torch.rand(2, 5, generator=generator, dtype=torch.float64)
    score = CONFIDENCE[source](Candidates(logits, tokens, torch.ones(2, 5, dtype=torch.bool), None, lambda: drawn))
    for row in range(2):
        for column in range(5):
            weights = [math.exp(value) for value in logits[row, column].tolist()]
            probability = [weight / sum(weights) for weight in weights]
            best = sorted(probability)
            expected = {"tps_prob": probability[tokens[row, column]], "margin": best[-1] - best[-2],
                        "entropy": -stats.entropy(probability), "random": float(drawn[row, column])}[source]
            assert float(score[row, column]) == pytest.approx(expected, abs=1e-5)        # fp32 softmax


@pytest.mark.parametrize("source, more", [
    *itertools.product(CONFIDENCE, [dict(steps=12), dict(steps=5), dict(steps=6, temperature=1.0), dict(block_length=4)]),
    *itertools.product(PROBABILITIES, [dict(threshold=0.3, temperature=1.0)]),
], ids=str)
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
    assert any(EOS in sample.answer for sample in run({**options, "logits_eos_inf": False}, denoise=favour_eos))
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
        run(dict(gen_length=12, block_length=4, sampling_method=method), PROMPTS[:2], never_ends, seen=seen)
        assert len(seen) == 12
        for number, (canvas, window) in enumerate(seen):
            block = number // 4
            assert window == slice(3 + 4 * block, 7 + 4 * block)
            assert canvas.tokens.shape[1] == (window.stop if grows else 15)
            assert (canvas.tokens[:, window.stop:] == MASK).all()
            assert MASK not in canvas.tokens[0, :window.start]


def test_origin_stops_at_eos_without_being_asked():
    samples = run(dict(gen_length=24, block_length=4, sampling_method="semi_ar_origin"), denoise=toy_denoiser(favoured={EOS: 2.0}))
    for sample in samples:
        assert EOS in sample.answer[-4:] or EOT in sample.answer[-4:] or len(sample.answer) == 24
        assert not set(sample.answer[:-4]) & set(SPECIAL.ends)
    assert any(len(sample.answer) < 24 for sample in samples)


# ---- guidance

def test_guidance_equals_two_forwards_and_the_published_formula():
    denoise, scale, window = toy_denoiser(), 1.7, slice(4, 8)
    tokens = torch.tensor([[PADDING, 5, MASK, 7, 4, MASK, MASK, 9], [8, 9, 10, 11, MASK, 4, MASK, MASK]])
    start, at = torch.tensor([4, 4]), torch.tensor([[0, 3], [2, 1]])
    blank = tokens.clone()
    for row in range(2):
        for column in range(4):
            if tokens[row, column] != PADDING:
                blank[row, column] = MASK
    conditional, unconditional = (denoise(Canvas(both, start), window).logits_at(at) for both in (tokens, blank))
    expected = unconditional + (scale + 1) * (conditional - unconditional)
    assert torch.equal(guided(denoise, scale, MASK)(Canvas(tokens, start), window).logits_at(at), expected)


def test_guidance_of_scale_zero_is_the_conditional_prediction():
    canvas, at = Canvas(torch.tensor([[5, 6, MASK, MASK]]), torch.tensor([2])), torch.tensor([[0, 1]])
    plain = toy_denoiser()(canvas, slice(2, 4)).logits_at(at)
    torch.testing.assert_close(guided(toy_denoiser(), 0.0, MASK)(canvas, slice(2, 4)).logits_at(at), plain, atol=1e-6, rtol=0)


def test_guidance_keeps_the_conditional_policy_score():
    def denoise(canvas: Canvas, window: slice) -> Prediction:
        return Prediction.from_logits(torch.zeros(len(canvas.tokens), 2, VOCAB), canvas.tokens[:, :1].expand(-1, 2).float())
    canvas = Canvas(torch.tensor([[5, 6, MASK, MASK], [7, 6, MASK, MASK]]), torch.tensor([2, 2]))
    assert guided(denoise, 1.0, MASK)(canvas, slice(2, 4)).confidence.tolist() == [[5, 5], [7, 7]]


# ---- proposals

def many_draws(num: int) -> torch.Tensor:
    return uniform(torch.tensor([[17]]), 0, torch.arange(num)[:, None], torch.arange(VOCAB) + 1)        # (num, V)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_sampled_frequencies_are_the_softmax_at_that_temperature(temperature):
    num = 20_000
    logits = torch.linspace(-1.5, 1.5, VOCAB)
    drawn = propose(logits.expand(num, VOCAB), SamplerConfig(temperature=temperature), lambda: many_draws(num))
    expected = (logits.double() / temperature).softmax(-1) * num
    assert stats.chisquare(torch.bincount(drawn, minlength=VOCAB).numpy(), expected.numpy()).pvalue > 1e-3        # fixed draws


@pytest.mark.parametrize("options, support", [
    (dict(top_k=3), 3), (dict(top_k=1), 1), (dict(top_k=99), VOCAB), (dict(top_p=0.01), 1), (dict(top_p=0.39), 1), (dict(top_p=0.41), 2),
    (dict(top_p=0.66), 3), (dict(top_p=1.0), VOCAB), (dict(top_k=3, top_p=0.8), 2),        # within the top 3: (0.4 + 0.25) / 0.75 > 0.8
], ids=str)
def test_top_k_and_top_p_sample_from_their_whole_support_and_nothing_else(options, support):
    probability = torch.tensor([0.4, 0.25, 0.1] + [0.25 / 13] * 13)
    order = torch.randperm(VOCAB, generator=torch.Generator().manual_seed(0))
    logits = torch.empty(VOCAB).scatter(0, order, probability.log())
    drawn = propose(logits.expand(5000, VOCAB), SamplerConfig(temperature=1.0, **options), lambda: many_draws(5000))
    assert set(drawn.tolist()) == set(order[:support].tolist())


@pytest.mark.parametrize("more", [{}, dict(block_length=4), dict(threshold=0.4), dict(remask_ratio=0.5, steps=6)], ids=str)
def test_sampling_from_the_best_token_alone_is_greedy(more):
    greedy = run(dict(gen_length=12, **more))
    assert run(dict(gen_length=12, temperature=1.0, top_k=1, **more)) == greedy
    assert run(dict(gen_length=12, temperature=1.0, top_p=1e-9, **more)) == greedy


@pytest.mark.parametrize("block_length, later", [(12, 1), (6, 6)], ids=["next step", "next block"])
def test_every_step_block_and_position_draws_anew(block_length, later):
    def indifferent(canvas: Canvas, window: slice) -> Prediction:
        return Prediction.from_logits(torch.zeros(len(canvas.tokens), window.stop - window.start, VOCAB))        # proposals are the noise alone

    steps, _ = steps_of(dict(gen_length=12, block_length=block_length, temperature=1.0), indifferent)
    proposed = steps[later].score != float("inf")        # not pinned from before
    differs = (steps[0].proposal != steps[later].proposal)[proposed]
    assert differs.float().mean() > 0.75        # 15/16 are expected to; one stream for both would give none
    assert all(len(set(row.tolist())) > 3 for row in steps[0].proposal)


# ---- the published samplers

def naive_generate(denoise: Denoiser, prompt: list[int], gen_length: int, steps: int, block_length: int, cfg_scale: float = 0.0,
                   logits_eos_inf: bool = False, confidence_eos_eot_inf: bool = False) -> list[int]:
    """LLaDA's sampler at temperature 0 (arXiv 2502.09992, Algorithm 5, and its generate.py), one token at a time in plain Python."""
    row, num_blocks = prompt + [MASK] * gen_length, gen_length // block_length

    def predict(tokens: list[int]) -> list[list[float]]:
        canvas = Canvas(torch.tensor([tokens]), torch.tensor([len(prompt)]))
        return denoise(canvas, slice(0, len(tokens))).logits_at(torch.arange(len(tokens))[None])[0].tolist()

    for block in range(num_blocks):
        first = len(prompt) + block * block_length
        end, num_steps = first + block_length, steps // num_blocks
        num_masked = row[first:end].count(MASK)
        for step in range(num_steps):
            logits = predict(row)
            if cfg_scale:
                blank = predict([MASK] * len(prompt) + row[len(prompt):])
                logits = [[u + (cfg_scale + 1) * (c - u) for c, u in zip(*pair)] for pair in zip(logits, blank)]
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
                found.append((-math.exp(here[token]) / sum(math.exp(value) for value in here), place, token))
            count = num_masked // num_steps + (1 if step < num_masked % num_steps else 0)
            for _, place, token in sorted(found)[:count]:
                row[place] = token
    return row[len(prompt):]


@pytest.mark.parametrize("seed", range(40))
def test_answers_equal_a_naive_reimplementation_of_the_published_sampler(seed):
    choose = random.Random(seed)
    num_blocks, block_length = choose.choice([1, 2, 3]), choose.choice([2, 4, 5])
    options = dict(gen_length=num_blocks * block_length, block_length=block_length, steps=num_blocks * choose.randint(1, block_length),
                   cfg_scale=choose.choice([0.0, 0.0, 0.7, 2.0]), logits_eos_inf=choose.random() < 0.4,
                   confidence_eos_eot_inf=choose.random() < 0.4)
    prompts = [[choose.choice([token for token in range(VOCAB) if token != MASK]) for _ in range(choose.randint(1, 6))] for _ in range(3)]
    denoise = toy_denoiser(seed, favoured={MASK: -50.0, EOS: choose.choice([0.0, 1.5])})        # upstream may propose the mask
    samples = run(options, prompts, denoise)
    assert [sample.answer for sample in samples] == [naive_generate(denoise, prompt, **options) for prompt in prompts]
    assert {sample.num_forwards for sample in samples} == {options["steps"]}


@pytest.fixture(scope="module")
def recorded_model(golden):
    return load_model(golden / "checkpoint", device="cpu", dtype="float32")


def test_answers_and_forwards_equal_the_60_recorded_runs_of_llada(golden, recorded_model):
    cases = json.loads((golden / "generate.json").read_text())["cases"]
    assert len(cases) == 60
    for number, case in enumerate(cases):
        samples = generate(recorded_model, case["prompts"], SamplerConfig(**case["options"]))
        assert [sample.answer for sample in samples] == case["answers"], f"case {number}: {case['options']}"
        assert {sample.num_forwards for sample in samples} == {case["num_forwards"]}, f"case {number}"


def test_answers_and_forwards_equal_the_recorded_runs_of_fast_dllm_without_a_cache(golden, recorded_model):
    cases = [case for case in json.loads((golden / "parallel.json").read_text())["cases"] if case["options"].pop("cache") == "none"]
    assert len(cases) >= 10
    for number, case in enumerate(cases):
        sample, = generate(recorded_model, [case["prompt"]], SamplerConfig(**case["options"]))
        assert sample == Sample(case["answer"], case["num_forwards"]), f"case {number}: {case['options']}"


def test_a_mixed_batch_of_a_real_model_answers_like_single_rows(recorded_model):
    prompts = [[5, 6, 7], [8], [4, 4, 9, 10, 11, 12]]
    for options in ({}, dict(block_length=4, temperature=1.0), dict(threshold=0.2, cfg_scale=1.0)):
        config = SamplerConfig(gen_length=8, **options)
        assert generate(recorded_model, prompts, config) == [generate(recorded_model, [prompt], config)[0] for prompt in prompts]


# ---- mistakes

MISTAKES = [
    (dict(gen_length=0), r"gen_length must be at least 1, got 0"),
    (dict(steps=0), r"steps must be at least 1, got 0"),
    (dict(block_length=-1), r"block_length must be at least 1, got -1"),
    (dict(top_k=0, temperature=1.0), r"top_k must be at least 1, got 0"),
    (dict(gen_length=12, block_length=5), r"gen_length \(12\) must be a multiple of block_length \(5\)"),
    (dict(gen_length=12, block_length=24), r"gen_length \(12\) must be a multiple of block_length \(24\)"),
    (dict(gen_length=12, block_length=4, sampling_method="fixed_length"), r"fixed_length' decodes one block.*gen_length \(12\), got 4"),
    (dict(gen_length=12, block_length=4, steps=10), r"steps \(10\) must be a multiple of the number of blocks \(3 = gen_length 12 / "),
    (dict(gen_length=12, steps=13), r"steps \(13\) must not exceed gen_length \(12\)"),
    (dict(temperature=-1.0), r"temperature and cfg_scale must not be negative, got -1.0 and 0.0"),
    (dict(cfg_scale=-0.5), r"temperature and cfg_scale must not be negative, got 0.0 and -0.5"),
    (dict(temperature=float("nan")), r"temperature and cfg_scale must not be negative, got nan"),
    (dict(cfg_scale=float("nan")), r"temperature and cfg_scale must not be negative, got 0.0 and nan"),
    (dict(top_p=0.0, temperature=1.0), r"top_p must be above 0 and at most 1, got 0.0"),
    (dict(top_p=1.5, temperature=1.0), r"top_p must be above 0 and at most 1, got 1.5"),
    (dict(top_p=0.9), r"top_k and top_p have no effect at temperature=0"),
    (dict(top_k=5), r"top_k and top_p have no effect at temperature=0"),
    (dict(remasking="low"), r"remasking must be one of low_confidence, tps_prob, random, entropy, margin.*, got 'low'"),
    (dict(confidence_source="logit"), r"confidence_source must be one of low_confidence, .*, got 'logit'"),
    (dict(remasking="random", confidence_source="margin"), r"remasking='random' and confidence_source='margin' are two names of one"),
    (dict(threshold=0.9, factor=1.0), r"threshold and factor are alternatives: give one"),
    (dict(threshold=0.9, remask_ratio=0.5), r"threshold and remask_ratio are alternatives"),
    (dict(factor=1.0, remask_ratio=0.5), r"factor and remask_ratio are alternatives"),
    (dict(threshold=0.0), r"threshold must be between 0 and 1, got 0.0"),
    (dict(threshold=1.1), r"threshold must be between 0 and 1, got 1.1"),
    (dict(factor=0.0), r"factor must be above 0, got 0.0"),
    (dict(factor=float("nan")), r"factor must be above 0, got nan"),
    (dict(remask_ratio=0.0), r"remask_ratio must be between 0 and 1, got 0.0"),
    (dict(remask_ratio=1.0), r"remask_ratio must be between 0 and 1, got 1.0"),
    (dict(threshold=0.9, remasking="random"), r"need confidence_source tps_prob or margin, got 'random'"),
    (dict(factor=1.0, confidence_source="entropy"), r"need confidence_source tps_prob or margin, got 'entropy'"),
]
ALLOWED = [
    dict(gen_length=12, steps=24, remask_ratio=0.5),        # refinement may take more steps than tokens
    dict(gen_length=12, block_length=4, steps=7, threshold=0.9),        # steps are ignored there
    dict(remasking="low_confidence", confidence_source="tps_prob"),
    dict(gen_length=12, block_length=12, sampling_method="fixed_length"),
    dict(threshold=1.0), dict(top_p=1.0, temperature=0.1),
]


@pytest.mark.parametrize("options, message", MISTAKES, ids=lambda value: str(value) if isinstance(value, dict) else "")
def test_a_wrong_option_is_told_with_what_was_given_and_what_is_allowed(options, message):
    with pytest.raises(ValueError, match=message) as caught:
        SamplerConfig(**options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("options", ALLOWED, ids=str)
def test_options_that_go_together_are_accepted(options):
    assert SamplerConfig(**options).num_blocks >= 1


def test_defaults_are_the_published_ones():
    config = SamplerConfig()
    assert (config.gen_length, config.block, config.num_blocks, config.steps_per_block) == (128, 128, 1, 128)
    assert (config.source, config.temperature, config.cfg_scale) == ("tps_prob", 0.0, 0.0)
    assert not (config.adaptive or config.revise or config.grows or config.early_stop)


def test_wrong_prompts_and_missing_tokens_are_told_before_a_forward(make_model):
    model, short = make_model(), SamplerConfig(gen_length=8)
    assert generate(model, [], short) == []
    with pytest.raises(ValueError, match="prompt 1 is empty: give at least one token"):
        generate(model, [[1], []], short)
    with pytest.raises(ValueError, match=r"prompt 1 of 57 tokens and gen_length=8 exceed the model's context of 64 tokens"):
        generate(model, [[1], [1] * 57], short)
    assert len(generate(model, [[1] * 56], short)[0].answer) == 8
    with pytest.raises(ValueError, match="names no mask token.*pass special=SpecialTokens"):
        generate(make_model(mask_token_id=None), [[1]], short)
    with pytest.raises(ValueError, match="logits_eos_inf needs an EOS token"):
        generate(make_model(eos_token_id=None), [[1]], SamplerConfig(gen_length=8, logits_eos_inf=True))
    with pytest.raises(ValueError, match="confidence_eos_eot_inf needs an EOS or EoT token"):
        generate(make_model(eos_token_id=None), [[1]], SamplerConfig(gen_length=8, confidence_eos_eot_inf=True))
