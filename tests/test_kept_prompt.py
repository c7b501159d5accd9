"""Caches that keep prompts and compute columns near the block: the definition computed slowly,
and where theory says that they change nothing.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from llada_plugins.diffusion.denoiser import PADDING, Canvas, Denoiser, Prediction
from llada_plugins.diffusion.kept_prompt import KeptPrompts, PromptRefresh
from llada_plugins.diffusion.memory import Rows
from llada_plugins.engine.engine import Engine, Request
from llada_plugins.models.block import Block
from llada_plugins.models.llada import LLaDA
from llada_plugins.rewards.block_review import BlockReview
from llada_plugins.rewards.review_config import ReviewConfig
from llada_plugins.sampling.config import SamplerConfig
from llada_plugins.sampling.decode import decode
from llada_plugins.sampling.generate import generate, with_options
from tests.test_cache import (
    MASK,
    MODES,
    PROMPTS,
    SPECIAL,
    Inputs,
    both,
    check_any_batch,
    check_leaving_rows,
    every_decoder,
    hooked,
    run,
    subject,  # noqa: F401  (a fixture)
    with_head,
    with_router,
)
from tests.test_review import Judge

pytestmark = pytest.mark.floats

every_mode = pytest.mark.parametrize("mode", MODES)
LENGTH, WIDTH = 12, 4


class Computed:
    """The token that each column was last computed from."""

    tokens: torch.Tensor | None = None

    def keep_rows(self, rows: Rows) -> None:
        self.tokens = rows.of(self.tokens)


def both_at_masks(first: Denoiser, second: Denoiser, bound: float) -> Denoiser:
    """The first, after checking that the second says the same of masked columns."""

    def denoise_both(canvas: Canvas, window: slice) -> Prediction:
        one, other = first(canvas, window), second(canvas, window)
        masked = canvas.tokens[:, window] == MASK
        at = torch.arange(masked.shape[1]).expand_as(masked)
        found, expected = (each.logits_at(at)[masked] for each in (one, other))
        torch.testing.assert_close(found, expected, atol=bound, rtol=0)
        scores, expected = (each.confidence[masked] for each in (one, other))
        torch.testing.assert_close(scores, expected, atol=bound, rtol=0)
        return one

    return denoise_both


class Slowly:
    """Whole forwards in which each layer reads its former inputs, but at the columns in work.

    Those of prompts are kept by row from block to block, where they are not due.
    """

    def __init__(
        self, denoise: Denoiser, model: LLaDA, config: SamplerConfig, num_left: int
    ) -> None:
        self.denoise, self.model, self.config, self.num_left = denoise, model, config, num_left
        self.prompts: dict[int, tuple[int, dict[Block, torch.Tensor]]] = {}

    def is_due(self, row: int, number: int) -> bool:
        every = self.config.cache_prompt_refresh
        if every is None or row not in self.prompts:
            return True
        return every > 0 and number % every == 0 and self.prompts[row][0] < number

    def in_work(self, step: int, canvas: Canvas, window: slice) -> torch.Tensor:
        """The columns that are computed, (B, L) bool, before prompts are left out."""
        config, length = self.config, canvas.tokens.shape[1]
        column = torch.arange(length)
        if step % (config.cache_refresh or 1000) == 0:
            return torch.ones_like(canvas.tokens, dtype=torch.bool)
        first = window.start - max(self.num_left, config.cache_vicinity)
        stop = window.stop + config.cache_vicinity if config.cache == "dual" else length
        near = ((column >= first) & (column < stop)).expand_as(canvas.tokens)
        if not config.cache_delayed:
            return near
        masked = canvas.tokens == MASK
        fresh = masked | (canvas.tokens != canvas.memory.of(Computed).tokens)
        if self.num_left:  # logits come from the left
            fresh = fresh | torch.cat([masked[:, 1:], masked[:, :1]], 1)
        beside = (column < window.start) | (column >= window.stop)
        return near & (fresh | (beside & (config.cache_vicinity > 0)))

    def __call__(self, canvas: Canvas, window: slice) -> Prediction:
        kept = canvas.memory.of(Inputs)
        first, kept.num_steps = kept.num_steps == 0, kept.num_steps + 1
        start = int(canvas.answer_start[0])
        number = (window.start - start) // self.config.block
        due = [self.is_due(row, number) for row in canvas.ids.tolist()]
        work = self.in_work(kept.num_steps - 1, canvas, window).clone()
        refreshes = bool(work.all())
        if self.config.cache_prompt_refresh is not None and refreshes:
            for row, is_due in enumerate(due):
                if not (is_due and first):
                    work[row, : start - self.num_left] = False
        lengths = (canvas.tokens[:, :start] != PADDING).sum(1).tolist()

        def hook(block: Block, arguments: tuple) -> tuple:
            x, *others = arguments
            if first:
                kept.by_block[block] = x.clone()
                for row, number in enumerate(canvas.ids.tolist()):
                    if not due[row]:
                        former = self.prompts[number][1][block]
                        kept.by_block[block][row, start - lengths[row] : start] = former
            merged = torch.where(work[..., None], x, kept.by_block[block])
            if refreshes or self.config.cache_delayed:
                kept.by_block[block] = merged
            return merged, *others

        with hooked(self.model, hook):
            prediction = self.denoise(canvas, window)
        computed = canvas.memory.of(Computed)
        former = canvas.tokens if computed.tokens is None else computed.tokens
        computed.tokens = torch.where(work, canvas.tokens, former)
        for row, (each, length) in enumerate(zip(canvas.ids.tolist(), lengths)):
            if first and due[row]:
                self.prompts[each] = (
                    number,
                    {block: x[row, start - length : start] for block, x in kept.by_block.items()},
                )
        return prediction


@every_mode
@pytest.mark.parametrize(
    "options",
    [
        dict(cache_prompt_refresh=0),
        dict(cache_prompt_refresh=2, cache_refresh=3),
        dict(cache_prompt_refresh=0, cache_vicinity=2),
        dict(cache_vicinity=3, sampling_method="semi_ar_origin"),
        dict(cache_prompt_refresh=0, revise=True, confidence_source="ups", steps=6),
    ],
    ids=str,
)
def test_every_step_predicts_what_the_definition_says(subject, mode, options):
    model, denoise, prompts, error, num_left = subject
    config = SamplerConfig(gen_length=LENGTH, block_length=WIDTH, cache=mode, **options)
    slow = Slowly(denoise, model, config, num_left)
    decode(both(with_options(denoise, config, SPECIAL), slow, error), prompts, config, SPECIAL)


@every_mode
@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(threshold=0.15),
        dict(cache_refresh=3, cache_prompt_refresh=0, cache_vicinity=2),
        dict(revise=True, confidence_source="ups", steps=6),
    ],
    ids=str,
)
def test_delayed_columns_are_those_whose_tokens_stood_before_the_last_step(subject, mode, options):
    model, denoise, prompts, error, num_left = subject
    options = {"temperature": 1.0, **options, "cache_delayed": True}
    config = SamplerConfig(gen_length=LENGTH, block_length=WIDTH, cache=mode, **options)
    slow, fast = Slowly(denoise, model, config, num_left), with_options(denoise, config, SPECIAL)
    decode(both_at_masks(fast, slow, error), prompts, config, SPECIAL)


@pytest.mark.parametrize(
    "options",
    [dict(cache_prompt_refresh=0), dict(cache_vicinity=2), dict(cache_delayed=True)],
    ids=str,
)
def test_the_options_change_what_is_predicted(subject, options):
    """Else nothing above could tell them from a cache without them."""
    model, denoise, prompts, error, num_left = subject
    plain = SamplerConfig(gen_length=LENGTH, block_length=WIDTH, cache="dual")
    config = replace(plain, **options)
    slow = Slowly(denoise, model, plain, num_left)
    changed = with_options(denoise, config, SPECIAL)
    with pytest.raises(AssertionError, match="not close"):
        decode(both(changed, slow, 20 * error), prompts, config, SPECIAL)


# ---- where theory says that nothing changes


@every_decoder
def test_a_prompt_that_every_block_computes_is_not_kept(make_model, options):
    denoise = with_router(make_model())
    kept = {"cache_prompt_refresh": 1, **options, "cache": "dual"}
    kept.pop("cache_refresh", None)
    expected = {name: value for name, value in kept.items() if name != "cache_prompt_refresh"}
    assert run(denoise, PROMPTS, kept) == run(denoise, PROMPTS, expected)


@every_decoder
def test_prompts_of_one_layer_are_kept_exactly(make_model, options):
    """Keys and values of the only layer depend on each column's own token."""
    denoise = with_head(make_model(n_layers=1))
    kept = {**options, "cache": "dual", "cache_prompt_refresh": 0}
    plain = {name: value for name, value in options.items() if name != "cache_refresh"}
    assert run(denoise, PROMPTS, kept) == run(denoise, PROMPTS, plain)


@every_decoder
def test_a_vicinity_of_the_whole_canvas_is_no_cache(make_model, options):
    denoise = with_router(make_model())
    plain = {name: value for name, value in options.items() if name != "cache_refresh"}
    near = {**plain, "cache": "dual", "cache_vicinity": 50}
    assert run(denoise, PROMPTS, near) == run(denoise, PROMPTS, plain)


PLAIN = [
    dict(block_length=4),
    dict(block_length=6, threshold=0.2),
    dict(block_length=4, cfg_scale=1.0),
]


@pytest.mark.parametrize("options", PLAIN, ids=str)
def test_tokens_of_one_layer_are_frozen_exactly(make_model, options):
    denoise = with_head(make_model(n_layers=1))
    plain = dict(gen_length=LENGTH, **options)
    delayed = {**plain, "cache": "dual", "cache_delayed": True}
    assert run(denoise, PROMPTS, delayed) == run(denoise, PROMPTS, plain)


def test_a_block_that_is_the_whole_answer_keeps_nothing_that_counts(subject):
    _, denoise, prompts, *_ = subject
    options = dict(gen_length=LENGTH, cache="dual", temperature=1.0)
    assert run(denoise, prompts, {**options, "cache_prompt_refresh": 0}) == run(
        denoise, prompts, options
    )


# ---- batches, and nothing stale

KEPT = [
    dict(cache_prompt_refresh=0, cache_vicinity=1),
    dict(cache_prompt_refresh=2),
    dict(cache_delayed=True),
]


@every_decoder
def test_an_answer_does_not_depend_on_the_batch_around_it(make_model, options):
    check_any_batch(with_router(make_model()), {**options, "cache": "dual", **KEPT[0]})


@pytest.mark.parametrize("kept", KEPT, ids=str)
def test_rows_that_leave_and_join_batches_take_their_prompts_along(make_model, kept):
    options = dict(gen_length=LENGTH, block_length=3, temperature=1.0, cache="dual", **kept)
    check_leaving_rows(with_router(make_model()), options)


@pytest.mark.parametrize("kept", KEPT, ids=str)
def test_candidates_and_refills_of_a_row_use_what_its_block_has_computed(make_model, kept):
    denoise = with_head(make_model())
    sampler = SamplerConfig(gen_length=LENGTH, block_length=WIDTH, cache="dual", **kept)
    review = ReviewConfig(num_candidates_per_block=2, max_retry_attempts=2, backmasking_frequency=2)

    def judged(prompts):
        judge = BlockReview(review, sampler, Judge(WIDTH), MASK)
        return decode(
            with_options(denoise, sampler, SPECIAL), prompts, sampler, SPECIAL, review=judge
        )

    together = judged(PROMPTS)
    assert [judged([prompt])[0] for prompt in PROMPTS] == together
    assert max(sample.num_forwards for sample in together) > LENGTH  # something was tried again


def test_nothing_is_kept_of_rows_that_have_ended(make_model):
    denoise, seen = with_head(make_model()), []
    config = SamplerConfig(
        gen_length=LENGTH, block_length=WIDTH, cache="dual", cache_prompt_refresh=0, cfg_scale=1.0
    )
    inner = with_options(denoise, config, SPECIAL)

    def watch(canvas: Canvas, window: slice) -> Prediction:
        found = inner(canvas, window)
        seen.append((canvas.lasting, len(canvas.lasting.of(KeptPrompts).by_id)))
        return found

    decode(watch, PROMPTS, config, SPECIAL)
    assert {number for _, number in seen} == {2 * len(PROMPTS)}  # a guided branch has its own
    assert {len(lasting.of(KeptPrompts).by_id) for lasting, _ in seen} == {0}


def test_candidates_do_not_refresh_a_prompt_once_more():
    kept = KeptPrompts()
    assert kept.is_due(3, 0, 0)
    kept.by_id[3] = type("Prompt", (), dict(number=2))
    assert [kept.is_due(3, number, 2) for number in (1, 2, 3, 4)] == [False, False, False, True]
    assert not any(kept.is_due(3, number, 0) for number in range(9))


@pytest.mark.parametrize(
    "options, columns",
    [
        (dict(cache_prompt_refresh=0), [15, 4, 4, 4, 12, 4, 4, 4, 12, 4, 4, 4]),
        (dict(cache_prompt_refresh=1), [15, 4, 4, 4] * 3),
        (dict(cache_prompt_refresh=2), [15, 4, 4, 4, 12, 4, 4, 4, 15, 4, 4, 4]),
        (dict(cache_prompt_refresh=0, cache_refresh=2), [15, 4, 12, 4, 12, 4, 12, 4, 12, 4, 12, 4]),
        (dict(cache_vicinity=1), [15, 6, 6, 6, 15, 6, 6, 6, 15, 5, 5, 5]),
        # the token of the step before, and masks that are left
        (dict(cache_delayed=True), [15, 4, 3, 2] * 3),
    ],
    ids=str,
)
def test_only_the_columns_in_work_are_computed(make_model, options, columns):
    model, seen = make_model(), []
    config = SamplerConfig(gen_length=LENGTH, block_length=WIDTH, cache="dual", **options)
    with hooked(model, lambda block, arguments: seen.append(arguments[0].shape[1])):
        generate(model, [[5, 6, 7]], config)
    assert seen[:: model.config.n_layers] == columns


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(cache_vicinity=4), "cache_vicinity has no effect with cache='auto'"),
        (
            dict(cache="dual", shift_cache="published", cache_delayed=True),
            "shift_cache=published is",
        ),
        (
            dict(cache="dual", threshold=0.9, edit_threshold=0.9, cache_delayed=True),
            "edit_threshold judges tokens that stand",
        ),
        (dict(cache_delayed=True), "cache_delayed has no effect with cache='auto'"),
        (dict(cache_prompt_refresh=0), "cache_prompt_refresh has no effect with cache='auto'"),
        (dict(cache="dual", cache_vicinity=-1), "cache_vicinity must be 0 or more, got -1"),
        (dict(cache="dual", cache_prompt_refresh=-2), "cache_prompt_refresh must be 0 or more"),
    ],
    ids=str,
)
def test_a_wrong_option_is_told_with_what_was_given_and_what_is_allowed(options, message):
    with pytest.raises(ValueError, match=message):
        SamplerConfig(**options)


def test_an_engine_keeps_prompts_as_its_options_say(tiny_checkpoint):
    options = dict(gen_length=16, block_length=4, cache="dual", cache_prompt_refresh=0)
    answers = []
    for batch_size in (1, 4):
        engine = Engine(
            pretrained=str(tiny_checkpoint), device="cpu", batch_size=batch_size, **options
        )
        requests = [Request(prompt, engine.sampler) for prompt in ("a", "a longer one", "bcd", "e")]
        found = dict(engine.generate(requests))
        answers.append([found[number].text for number in range(4)])
    assert answers[0] == answers[1]


def test_a_rule_says_how_often_and_how_wide():
    config = SamplerConfig(gen_length=8, block_length=4, cache="dual", cache_prompt_refresh=3)
    assert config.prompt_refresh == PromptRefresh(3, 4)
    assert SamplerConfig(cache="dual").prompt_refresh is None
