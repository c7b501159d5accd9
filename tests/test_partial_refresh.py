"""Partial refresh (dLLM-Cache): a naive loop written from its formulas, and where theory says that
it is another cache or none.
"""

from __future__ import annotations

import random
from collections import deque
from fractions import Fraction
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from llada_plugins.diffusion.denoiser import PADDING, Canvas, Denoiser, Prediction, model_denoiser
from llada_plugins.diffusion.guidance import guided
from llada_plugins.diffusion.kept_prompt import PromptRefresh
from llada_plugins.diffusion.memory import Memory, Rows
from llada_plugins.diffusion.partial_refresh import PartialRefresh, num_columns, partly_refreshed
from llada_plugins.engine.engine import Engine, Request
from llada_plugins.models import compiling, features
from llada_plugins.models.llada import LLaDA
from llada_plugins.models.rotary import rotary_table, rotate
from llada_plugins.options.fields import build
from llada_plugins.rewards.block_review import BlockReview
from llada_plugins.rewards.review_config import ReviewConfig
from llada_plugins.sampling.config import SamplerConfig
from llada_plugins.sampling.decode import decode
from llada_plugins.sampling.generate import generate, with_options
from tests.test_cache import (
    MASK,
    PROMPTS,
    SPECIAL,
    both,
    check_any_batch,
    check_leaving_rows,
    every_decoder,
    run,
    subject,  # noqa: F401  (a fixture)
    with_head,
    with_router,
)
from tests.test_replay import replaying
from tests.test_review import Judge
from tests.tolerance import EPS, EPS64, float64_casts, forward_error, in_float64

pytestmark = pytest.mark.floats

PARTIAL: dict[str, Any] = dict(cache="partial", transfer_ratio=0.5)


# ---- the formulas, one row and one layer at a time


class Kept(NamedTuple):
    """Of one layer: keys, values, and what attention and the MLP added, of all columns of a row."""

    k: Tensor  # (L, H, head_dim)
    v: Tensor
    attended: Tensor  # (L, D)
    fed: Tensor


class OfBlock:
    """What each row of a canvas has kept in this block."""

    def __init__(self) -> None:
        self.num_steps = 0
        self.rows: list[list[Kept]] = []

    def keep_rows(self, rows: Rows) -> None:
        self.rows = [self.rows[row] for row in rows.of(torch.arange(len(self.rows))).tolist()]


class Naive:
    """The denoiser of a dense model under a partial refresh, written from the paper.

    Each row alone, without padding, its positions from 0. chosen: of each row of the last
    call, the columns that each layer chose, counted from the first that may be chosen.
    """

    def __init__(
        self, model: LLaDA, rule: PartialRefresh, blocks: PromptRefresh | None, shift: bool
    ) -> None:
        self.model, self.rule, self.blocks, self.shift = model, rule, blocks, shift
        self.share = Fraction(str(rule.share))
        self.prompts: dict[int, tuple[int, list[Kept]]] = {}
        self.chosen: list[list[list[int]]] = []

    def __call__(self, canvas: Canvas, window: slice) -> Prediction:
        kept = canvas.memory.of(OfBlock)
        step, kept.num_steps = kept.num_steps, kept.num_steps + 1
        start = int(canvas.answer_start[0])
        number = (window.start - start) // self.blocks.block if self.blocks else 0
        kept.rows = kept.rows or [[] for _ in canvas.tokens]
        self.chosen, logits = [], []
        for row, (tokens, each) in enumerate(zip(canvas.tokens, canvas.ids.tolist())):
            left = int((tokens == PADDING).sum())
            layers = kept.rows[row]
            is_new = self.is_new(each, number)
            if step == 0:
                length = len(tokens) - left
                layers += self.empty(length)
                if not is_new:
                    for layer, former in zip(layers, self.prompts[each][1]):
                        for values, old in zip(layer, former):
                            values[: start - left] = old[: start - left]
            of_prompt = is_new if step == 0 else is_due(step, self.rule.prompt_every)
            of_all = step == 0 or is_due(step, self.rule.every)
            shift = int(self.shift)
            wanted = [
                column - left - shift
                for column in range(window.start, window.stop)
                if tokens[column] == MASK
            ]
            first, length = start - left - shift, len(tokens) - left
            turn = deque(range(first, length))
            turn.rotate(-(step - 1) * int(self.share * len(turn)))
            order = sorted(turn, key=lambda column: column not in wanted)
            hidden = self.step(tokens[left:], first, layers, order, of_prompt, of_all)
            if step == 0 and is_new:
                self.prompts[each] = number, [Kept(*map(Tensor.clone, each)) for each in layers]
            columns = torch.arange(window.start, window.stop) - left - int(self.shift)
            logits.append(self.model.head(hidden[columns]))
        return Prediction.from_logits(torch.stack(logits))

    def is_new(self, each: int, number: int) -> bool:
        """Does a block's first step compute the prompt?"""
        if self.blocks is None or each not in self.prompts:
            return True
        every = self.blocks.every
        return every > 0 and number % every == 0 and self.prompts[each][0] < number

    def empty(self, length: int) -> list[Kept]:
        config = self.model.config
        heads = (length, config.num_kv_heads, config.head_dim)
        shapes = (heads, heads, (length, config.d_model), (length, config.d_model))
        nan = float("nan")  # what is read before it was computed would be seen
        return [
            Kept(*(torch.full(shape, nan, dtype=torch.float64) for shape in shapes))
            for _ in self.model.blocks
        ]

    def step(
        self,
        tokens: Tensor,
        first: int,
        layers: list[Kept],
        order: list[int],
        of_prompt: bool,
        of_all: bool,
    ) -> Tensor:
        """The final hidden states (L, D); those of a prompt that is not computed mean nothing."""
        length, moving = len(tokens), sorted(order)
        number = int(self.share * len(moving))
        x = self.model.embedding(tokens)
        self.chosen.append([])
        for block, kept in zip(self.model.blocks, layers):
            values = block.v_proj(block.attn_norm(x)).view(length, -1, kept.v.shape[-1])
            chosen, fresh = moving, moving
            if not of_all:
                ranked = sorted(order, key=lambda c: cosine(values[c], kept.v[c]))
                chosen = sorted(ranked[:number])
                fresh = moving if number else []
                self.chosen[-1].append([column - first for column in chosen])
            prompt = list(range(first)) if of_prompt else []
            kept.v[prompt + fresh] = values[prompt + fresh]
            x = self.layer(block, x, kept, prompt + chosen)
        return self.model.transformer["ln_f"](x)

    def layer(self, block: Any, x: Tensor, kept: Kept, columns: list[int]) -> Tensor:
        """The output for x (L, D), which computes these columns with what is kept of the others."""
        config, (length, _, width) = self.model.config, kept.k.shape
        h = block.attn_norm(x)[columns]
        cos, sin = (table[columns] for table in rotary_table(length, width, config.rope_theta))

        def heads(projected: Tensor) -> Tensor:
            turned = projected.unflatten(-1, (-1, width)).transpose(0, 1)
            return rotate(turned, cos, sin, True).transpose(0, 1)

        kept.k[columns] = heads(block.k_proj(h))
        q = heads(block.q_proj(h))
        served = config.n_heads // config.num_kv_heads
        k, v = (each.repeat_interleave(served, 1) for each in (kept.k, kept.v))
        weights = (torch.einsum("nhd,lhd->hnl", q, k) / width**0.5).softmax(-1)
        kept.attended[columns] = block.attn_out(torch.einsum("hnl,lhd->nhd", weights, v).flatten(1))
        x = x + kept.attended
        h = block.ff_norm(x[columns])
        gate = block.ff_proj(h)
        kept.fed[columns] = block.ff_out(gate * gate.sigmoid() * block.up_proj(h))
        return x + kept.fed


def is_due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


def cosine(new: Tensor, old: Tensor) -> float:
    """Of values in all heads; one is one up to the distance that counts as none."""
    new, old = new.flatten(), old.flatten()
    found = float(new @ old / (new.norm() * old.norm()))
    return 1.0 if 2 - 2 * found < features.UNMOVED else found


def compared(fast: Denoiser, naive: Naive, monkeypatch, error: float) -> Denoiser:
    """The first, after checking that the naive one says and chooses the same.

    error: bound of a forward of float64. Results go through all layers again at every step.
    """
    found: list[Tensor] = []
    choose = features.moved_most

    def watched(*given: Any) -> Tensor:
        found.append(choose(*given))
        return found[-1]

    monkeypatch.setattr(features, "moved_most", watched)

    def denoise_both(canvas: Canvas, window: slice) -> Prediction:
        found.clear()
        at = torch.arange(window.stop - window.start).expand(len(canvas.tokens), -1)
        with float64_casts():
            logits = fast(canvas, window).logits_at(at)
            expected = naive(canvas, window).logits_at(at)
        bound = canvas.memory.of(OfBlock).num_steps * error
        torch.testing.assert_close(logits, expected, atol=bound, rtol=0)
        by_row = torch.stack(found, 1).tolist() if found else []
        assert by_row == [row for row in naive.chosen if any(row)]
        return Prediction.from_logits(logits.to(torch.float32))

    return denoise_both


# options of a cache and of decoding, whether logits are shifted, and prompts
Drawn = tuple[dict[str, Any], dict[str, Any], bool, list[list[int]]]


def drawn(seed: int) -> Drawn:
    choose = random.Random(seed)
    block = choose.choice([3, 4, 8])
    cache = dict(
        cache="partial",
        transfer_ratio=choose.choice([0.0, 0.1, 0.25, 0.29, 0.5, 0.75, 1.0]),
        gen_interval_steps=choose.choice([None, 2, 3, 5]),
    )
    prompt = choose.choice(["prompt_interval_steps", "cache_prompt_refresh", None])
    if prompt is not None:
        cache[prompt] = choose.choice([2, 3])
    if prompt == "cache_prompt_refresh" and choose.random() < 0.5:
        cache[prompt] = 0
    decoding = choose.choice(
        [
            dict(),
            dict(threshold=0.15),
            dict(factor=1.7),
            dict(steps=12, remask_ratio=0.4),
            dict(temperature=1.0),
            dict(threshold=0.1, revise_below=0.05),
        ]
    )
    length = block * choose.choice([1, 2, 3])
    if "steps" in decoding:
        decoding["steps"] = length
    if choose.random() < 0.3:
        decoding["cfg_scale"] = 1.5
    if choose.random() < 0.3 and length > block:
        decoding["sampling_method"] = "semi_ar_origin"
    prompts = [
        [choose.randrange(MASK - 2) for _ in range(choose.randint(1, 7))]
        for _ in range(choose.randint(1, 3))
    ]
    decoding |= dict(gen_length=length, block_length=block, seed=seed)
    return cache, decoding, choose.random() < 0.4, prompts


def drawn_of_several_blocks(seed: int) -> Drawn:
    """The same, with a rule that works on several blocks at once."""
    choose = random.Random(seed)
    cache, decoding, shift, prompts = drawn(seed)
    cache.pop("cache_prompt_refresh", None)  # of one block after another
    several = choose.choice(
        [
            dict(threshold=0.15),
            dict(threshold=0.4, decoded_token_threshold=0.5),
            dict(threshold_entropy=2.5, floor_in="first_and_best"),
            dict(threshold=0.1, revise_below=0.05, floor_in="first"),
            dict(factor=1.7, temperature=1.0),
        ]
    )
    block = decoding["block_length"]
    several |= dict(gen_length=block * choose.choice([2, 3]), block_length=block, seed=seed)
    if "cfg_scale" in decoding:
        several["cfg_scale"] = decoding["cfg_scale"]
    several["block_add_threshold"] = choose.choice([0.0, 0.25, 0.5, 1.0])
    return cache, several, shift, prompts


# make test takes the first, make test-slow all others
SEEDS = [
    pytest.param(range(3)),
    *(
        pytest.param(range(first, first + 12), marks=pytest.mark.slow)
        for first in range(3, 147, 12)
    ),
]
SEVERAL_SEEDS = [
    pytest.param(range(2)),
    *(pytest.param(range(first, first + 12), marks=pytest.mark.slow) for first in range(2, 62, 12)),
]


@pytest.mark.parametrize("seeds", SEEDS, ids=str)
def test_choices_and_logits_equal_a_naive_loop_over_random_settings(make_model, monkeypatch, seeds):
    for seed in seeds:
        check_against_naive(seed, drawn(seed), make_model, monkeypatch)


@pytest.mark.parametrize("seeds", SEVERAL_SEEDS, ids=str)
def test_several_blocks_at_once_equal_a_naive_loop_over_random_settings(
    make_model, monkeypatch, seeds
):
    for seed in seeds:
        check_against_naive(seed, drawn_of_several_blocks(seed), make_model, monkeypatch)


def check_against_naive(seed: int, setting: Drawn, make_model, monkeypatch) -> None:
    cache, decoding, shift, prompts = setting
    model = make_model(seed=seed, d_model=16, n_heads=4, n_kv_heads=[2, 4][seed % 2])
    error = forward_error(model) * EPS64 / EPS
    config = SamplerConfig(**cache, **decoding)
    exact, rules = in_float64(model), (config.partial_refresh(MASK), config.prompt_refresh)
    fast = partly_refreshed(model_denoiser(exact, shift=shift), *rules)
    denoise = compared(fast, Naive(exact, *rules, shift), monkeypatch, error)
    if config.cfg_scale:
        denoise = guided(denoise, config.cfg_scale, MASK)
    decode(denoise, prompts, config, SPECIAL)
    monkeypatch.undo()


def test_rows_choose_different_columns(make_model, monkeypatch):
    """Else nothing above could tell a choice by row from one for all."""
    seen, choose = [], features.moved_most

    def watched(*given: Any) -> Tensor:
        seen.append(choose(*given))
        return seen[-1]

    monkeypatch.setattr(features, "moved_most", watched)
    run(with_head(make_model()), PROMPTS, dict(gen_length=12, **PARTIAL))
    assert any(len({tuple(row) for row in each.tolist()}) > 1 for each in seen)


def test_columns_that_hardly_move_are_ties_which_the_order_decides():
    old = torch.randn(1, 2, 6, 4, generator=torch.Generator().manual_seed(0))
    new = old * (1 + EPS)
    new[:, :, 4] = old[:, :, 3]
    for order, chosen in (([0, 1, 2, 3, 4, 5], [0, 1, 4]), ([5, 2, 0, 1, 3, 4], [2, 4, 5])):
        places = torch.tensor([order])
        assert features.moved_most(new, old, places, 3).tolist() == [chosen]
        assert features.moved_most(new, 7 * old, places, 3).tolist() == [chosen]  # no lengths


def test_ties_go_to_what_predicts_masks_of_the_window_and_then_round():
    rule = PartialRefresh(MASK, 0.25, None, None)
    tokens = torch.tensor([[5, 6, 7, MASK, 8, MASK, MASK, MASK, 9, MASK]])
    # an answer of 8, the window is its second to fifth column: 3 to 6
    orders = [rule.order(tokens, slice(3, 7), 8, 0, step)[0].tolist() for step in (1, 2, 5)]
    assert orders == [
        [1, 3, 4, 0, 2, 5, 6, 7],
        [3, 4, 1, 2, 5, 6, 7, 0],
        [1, 3, 4, 0, 2, 5, 6, 7],
    ]
    # shifted, one column more: of 9 columns each is predicted by the one before
    shifted = rule.order(tokens, slice(3, 7), 9, 1, 1)[0].tolist()
    assert shifted == [1, 3, 4, 0, 2, 5, 6, 7, 8]


# ---- where theory says that it is none, or another cache

ALL = [
    dict(gen_interval_steps=1, prompt_interval_steps=1),
    dict(transfer_ratio=1.0, prompt_interval_steps=1),
]


@pytest.mark.slow
@pytest.mark.parametrize("everything", ALL, ids=str)
@every_decoder
def test_all_columns_at_every_step_are_no_cache(make_model, everything, options):
    denoise = with_router(make_model())
    plain = {name: value for name, value in options.items() if name != "cache_refresh"}
    found = run(denoise, PROMPTS, {**plain, "cache": "partial", **everything})
    assert found == run(denoise, PROMPTS, plain)


@pytest.mark.parametrize("everything", [pytest.param(ALL[0], marks=pytest.mark.slow), ALL[1]])
def test_all_columns_at_every_step_are_the_plain_prediction(subject, everything):
    _, denoise, prompts, error, _ = subject
    config = SamplerConfig(gen_length=12, block_length=4, cache="partial", **everything)
    decode(both(with_options(denoise, config, SPECIAL), denoise, error), prompts, config, SPECIAL)


@pytest.mark.slow
@pytest.mark.parametrize("kept", [dict(), dict(cache_prompt_refresh=0)], ids=str)
def test_a_share_of_all_freezes_the_prompt_alone(subject, kept):
    """Which a prefix cache of one block does, or one that keeps the prompt for good."""
    _, denoise, prompts, error, _ = subject
    blocks = dict(gen_length=12, block_length=4 if kept else 12)
    partial = SamplerConfig(cache="partial", transfer_ratio=1.0, **blocks, **kept)
    other = dict(cache="dual", cache_refresh=1) if kept else dict(cache="prefix")
    frozen = SamplerConfig(**other, **blocks, **kept)
    one, two = (with_options(denoise, each, SPECIAL) for each in (partial, frozen))

    def apart(canvas: Canvas, window: slice) -> Prediction:
        return two(canvas._replace(memory=canvas.memory.of(Apart).memory), window)

    if kept:  # both keep prompts by the ids of rows, so each has a decode of its own
        assert run(denoise, prompts, vars(partial)) == run(denoise, prompts, vars(frozen))
    else:
        decode(both(one, apart, error), prompts, partial, SPECIAL)


class Apart:
    """A second memory for the same block."""

    def __init__(self) -> None:
        self.memory = Memory()

    def keep_rows(self, rows: Rows) -> None:
        self.memory.keep_rows(rows)


@pytest.mark.slow
def test_it_is_an_approximation(subject):
    """Else nothing above could tell it from no cache."""
    _, denoise, prompts, error, _ = subject
    config = SamplerConfig(gen_length=12, block_length=6, **PARTIAL, prompt_interval_steps=1)
    cached = with_options(denoise, config, SPECIAL)
    with pytest.raises(AssertionError, match="not close"):
        decode(both(cached, denoise, 20 * error), prompts, config, SPECIAL)


# ---- batches, candidates, several blocks

KINDS = [
    dict(PARTIAL),
    dict(PARTIAL, gen_interval_steps=3, prompt_interval_steps=2),
    dict(PARTIAL, cache_prompt_refresh=0),
]


@pytest.mark.slow
@every_decoder
def test_an_answer_does_not_depend_on_the_batch_around_it(make_model, options):
    plain = {name: value for name, value in options.items() if name != "cache_refresh"}
    check_any_batch(with_router(make_model()), {**plain, **KINDS[1]})


@pytest.mark.parametrize("kind", [pytest.param(KINDS[0], marks=pytest.mark.slow), *KINDS[1:]])
def test_rows_that_leave_and_join_batches_take_nothing_from_others(make_model, kind):
    options = dict(gen_length=12, block_length=3, temperature=1.0, **kind)
    check_leaving_rows(with_router(make_model()), options)


@pytest.mark.slow
def test_a_bi_towers_streams_choose_for_themselves_in_any_batch(subject):
    options = dict(gen_length=12, block_length=6, threshold=0.2, **PARTIAL)
    together = run(subject.denoise, subject.prompts, options)
    assert [run(subject.denoise, [each], options)[0] for each in subject.prompts] == together


@pytest.mark.parametrize(
    "kind", [*(pytest.param(each, marks=pytest.mark.slow) for each in KINDS[:2]), KINDS[2]]
)
def test_candidates_and_refills_of_a_row_are_those_of_the_row_alone(make_model, kind):
    denoise = with_head(make_model())
    sampler = SamplerConfig(gen_length=12, block_length=4, **kind)
    review = ReviewConfig(num_candidates_per_block=2, max_retry_attempts=2, backmasking_frequency=2)

    def judged(prompts: list[list[int]]) -> list:
        judge = BlockReview(review, sampler, Judge(4), MASK)
        return decode(
            with_options(denoise, sampler, SPECIAL), prompts, sampler, SPECIAL, review=judge
        )

    together = judged(PROMPTS)
    assert [judged([prompt])[0] for prompt in PROMPTS] == together
    assert max(sample.num_forwards for sample in together) > 12  # something was tried again


def test_several_blocks_at_once_keep_features_of_the_whole_answer(make_model):
    """Steps count over the answer there, as they do in published code."""
    several = dict(threshold=0.2, block_add_threshold=0.1, block_length=4)
    options = dict(gen_length=12, **several, **KINDS[1])
    check_any_batch(with_head(make_model()), options)
    exact = {**options, "transfer_ratio": 1.0, "prompt_interval_steps": 1}
    plain = dict(gen_length=12, **several)
    denoise = with_head(make_model())
    assert run(denoise, PROMPTS, exact) == run(denoise, PROMPTS, plain)


# ---- what is computed


@pytest.mark.parametrize(
    "options, columns",
    [
        # the prompt of 3 and an answer of 8, then a quarter of 8
        (dict(), [11, 2, 2, 2] * 2),
        (dict(gen_interval_steps=2), [11, 2, 8, 2] * 2),
        (dict(prompt_interval_steps=3), [11, 2, 2, 5] * 2),
        (dict(gen_interval_steps=2, cache_prompt_refresh=0), [11, 2, 8, 2, 8, 2, 8, 2]),
        (dict(transfer_ratio=0.0), [11, 0, 0, 0] * 2),
    ],
    ids=str,
)
def test_queries_are_of_the_columns_in_work_and_values_of_all_that_may_be(
    make_model, options, columns
):
    model, queries, values = make_model(), [], []
    for block in model.blocks:
        block.q_proj.register_forward_hook(lambda _, given, out: queries.append(given[0].shape[1]))
        block.v_proj.register_forward_hook(lambda _, given, out: values.append(given[0].shape[1]))
    config = SamplerConfig(gen_length=8, block_length=4, cache="partial", **options)
    generate(model, [[5, 6, 7]], config)
    assert [each for each in queries[::2] if each] == [each for each in columns if each]
    if options.get("transfer_ratio") == 0:
        assert values == queries
    else:
        assert all(8 <= each <= 11 for each in values)


def test_a_share_is_rounded_down_as_written():
    assert num_columns(0.29, 100) == 29  # 28.999999999999996 in floats
    assert [num_columns(0.25, each) for each in (3, 4, 7, 8)] == [0, 1, 1, 2]


# ---- compiled and replayed


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.name == compiling.__name__]


def test_its_layers_run_eager_and_without_graphs_and_the_log_says_so_once(make_model, caplog):
    config = SamplerConfig(gen_length=12, block_length=4, **PARTIAL)
    model = make_model()
    expected = generate(model, PROMPTS, config)
    assert generate(replaying(model), PROMPTS, config) == expected
    assert not model.replays.forwards.kept
    model.compile_layers("on")
    assert generate(model, PROMPTS, config) == expected
    assert told(caplog) == [
        "forwards run without CUDA graphs: with cache=partial each layer chooses its columns",
        "layers run eager: with cache=partial each chooses its columns",
    ]


# ---- options


@pytest.mark.parametrize(
    "options, message",
    [
        (
            dict(transfer_ratio=0.5),
            "transfer_ratio has no effect with cache='auto': set cache to partial, or leave it out",
        ),
        (dict(cache="dual", gen_interval_steps=2), "gen_interval_steps has no effect with"),
        (dict(cache="partial", cache_refresh=2), "set cache to prefix or dual, or leave it out"),
        (dict(cache="partial", cache_delayed=True), "cache_delayed has no effect with"),
        (dict(cache="partial", transfer_ratio=1.5), "transfer_ratio must be from 0 to 1, got 1.5"),
        (
            dict(cache="partial", transfer_ratio=float("nan")),
            "transfer_ratio must be a number, got nan",
        ),
        (dict(cache="partial", gen_interval_steps=-1), "gen_interval_steps must be at least 1"),
        (
            dict(cache="partial", gen_interval_steps=1, transfer_ratio=0.5),
            "transfer_ratio has no effect with gen_interval_steps=1",
        ),
        (
            dict(cache="partial", prompt_interval_steps=9, cache_prompt_refresh=2),
            "prompt_interval_steps and cache_prompt_refresh are alternatives",
        ),
        (dict(cache="partial", shift_cache="published"), "shift_cache has no effect with"),
        (
            dict(cache="partial", threshold=0.9, branches="0.6:0.02"),
            "branches and cache do not go together: leave one of them out",
        ),
    ],
    ids=str,
)
def test_a_wrong_option_is_told_with_what_was_given_and_what_is_allowed(options, message):
    with pytest.raises(ValueError, match=message):
        build(SamplerConfig, options)


def test_an_engine_refreshes_as_its_options_say_whatever_the_batch(tiny_checkpoint):
    options = dict(gen_length=16, block_length=8, **KINDS[1])
    answers = []
    for batch_size in (1, 4):
        engine = Engine(
            pretrained=str(tiny_checkpoint), device="cpu", batch_size=batch_size, **options
        )
        requests = [Request(prompt, engine.sampler) for prompt in ("a", "a longer one", "bcd", "e")]
        found = dict(engine.generate(requests))
        answers.append([found[number].text for number in range(4)])
    assert answers[0] == answers[1]
    assert engine.sampler.partial_refresh(9) == PartialRefresh(9, 0.5, 3, 2)


def test_models_of_causal_blocks_refuse_it_in_a_line(make_model):
    config = SamplerConfig(gen_length=8, block_length=4, cache="partial")
    with pytest.raises(ValueError, match="cache=partial freezes what later blocks change"):
        generate(make_model(attention="block_causal", block_length=4), [[5]], config)
