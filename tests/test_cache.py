"""Cached denoisers: the definition computed slowly, and where theory says they change
nothing. For recorded answers see test_golden.py.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest
import torch

from llada_plugins.diffusion.cache import cached
from llada_plugins.diffusion.denoiser import PADDING, Canvas, Denoiser, Prediction, model_denoiser
from llada_plugins.diffusion.guidance import guided
from llada_plugins.diffusion.memory import Memory, Rows
from llada_plugins.engine.engine import Engine, Request
from llada_plugins.methods.policy_head import PolicyHead, policy_denoiser
from llada_plugins.methods.router import Router, RouterConfig
from llada_plugins.methods.routing import routed
from llada_plugins.models.bitower import BiTowerLLaDA
from llada_plugins.models.block import Block
from llada_plugins.models.initial import initialise
from llada_plugins.models.llada import LLaDA
from llada_plugins.models.special_tokens import SpecialTokens
from llada_plugins.options.fields import build
from llada_plugins.sampling.config import SamplerConfig
from llada_plugins.sampling.decode import decode
from llada_plugins.sampling.draft import Sample
from llada_plugins.sampling.generate import generate, with_options
from tests.tolerance import measured

pytestmark = pytest.mark.floats

MASK, EOS, VOCAB = 39, 38, 40
SPECIAL = SpecialTokens(MASK, EOS)
MODES = ("prefix", "dual")
PROMPTS = [[5, 6, 7], [8], [4, 4, 9, 10, 11, 12], [14, 5]]

OPTIONS = [
    dict(gen_length=12, **options)
    for options in (
        {},
        dict(block_length=4),
        dict(block_length=6, steps=6, temperature=1.0),
        dict(block_length=6, threshold=0.2),
        dict(block_length=4, factor=1.7, temperature=0.6),
        dict(block_length=4, error_budget=1.5, temperature=0.6),
        dict(block_length=6, steps=8, remask_ratio=0.5),
        dict(block_length=6, steps=8, revise=True, confidence_source="ups"),
        dict(block_length=6, threshold=0.3, revise_below=0.1, confidence_source="ups_all"),
        dict(block_length=4, cfg_scale=1.0),
        dict(block_length=6, threshold=0.2, cfg_scale=1.0),
        dict(block_length=4, sampling_method="semi_ar_origin", temperature=0.5),
        dict(block_length=4, cache_refresh=2),
    )
]
every_mode = pytest.mark.parametrize("mode", MODES)
every_decoder = pytest.mark.parametrize(
    "options", OPTIONS, ids=lambda options: ",".join(f"{k}={v}" for k, v in options.items())
)


def randomised(module: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        parameter.data = (parameter.dim() == 1) + 0.3 * torch.randn(
            parameter.shape, generator=generator
        )
    return module.eval().requires_grad_(False)


def bi_tower(make_model) -> BiTowerLLaDA:
    config = make_model(d_model=16, n_heads=2, n_layers=31, mlp_hidden_size=24).config
    model = BiTowerLLaDA(config)
    initialise(model, torch.Generator().manual_seed(2))
    return model.eval().requires_grad_(False)


def random_head(model: LLaDA) -> PolicyHead:
    return randomised(PolicyHead(model.config.d_model, 8))


def random_router(model: LLaDA) -> Router:
    return randomised(
        Router(RouterConfig(d_model=model.config.d_model, mode="replace", max_positions=64))
    )


def routed_denoiser(model: LLaDA, head: PolicyHead, router: Router) -> Denoiser:
    return routed(policy_denoiser(model, head), router, model.embedding, MASK)


def shifted_denoiser(model: LLaDA, head: PolicyHead) -> Denoiser:
    return model_denoiser(model, head, shift=True)


def with_head(model: LLaDA) -> Denoiser:
    return policy_denoiser(model, random_head(model))


def with_router(model: LLaDA) -> Denoiser:
    return routed_denoiser(model, random_head(model), random_router(model))


class Subject(NamedTuple):
    """A model, its denoiser with a policy stream, prompts, and by how much two float32
    predictions of it differ.
    """

    model: LLaDA
    denoise: Denoiser
    prompts: list[list[int]]
    error: float
    num_left: int  # columns left of a window that its logits need


def predicted(build: Callable[..., Denoiser], *modules: torch.nn.Module) -> torch.Tensor:
    """Logits and scores of a canvas, of all rows together and of each alone."""
    denoise, start = build(*modules), torch.tensor([2, 5, 1, 3])
    tokens = torch.randint(0, MASK, (4, 18), generator=torch.Generator().manual_seed(4))
    tokens[:, 9:] = MASK
    found = []
    for rows in (slice(None), *(slice(row, row + 1) for row in range(4))):
        prediction = denoise(Canvas(tokens[rows], start[rows]), slice(6, 18))
        found += [
            prediction.logits_at(torch.arange(12).expand(len(start[rows]), -1)),
            prediction.confidence,
        ]
    return torch.cat([each.flatten() for each in found])


@pytest.fixture(
    scope="module",
    params=["plain", "grouped_query", "bi_tower", "routed", "no_padding", "shifted"],
)
def subject(request, make_model) -> Subject:
    """Every kind of model that a cache has to do with."""
    if request.param == "bi_tower":
        build, modules = model_denoiser, [bi_tower(make_model)]
    else:
        model = (
            make_model(n_kv_heads=2, include_bias=True)
            if request.param == "grouped_query"
            else make_model()
        )
        build, modules = policy_denoiser, [model, random_head(model)]
    if request.param == "routed":
        build, modules = routed_denoiser, [*modules, random_router(model)]
    if request.param == "shifted":
        build = shifted_denoiser
    error = measured(functools.partial(predicted, build), *modules)
    return Subject(
        modules[0],
        build(*modules),
        PROMPTS[:1] if request.param == "no_padding" else PROMPTS,
        error,
        num_left=int(request.param == "shifted"),
    )


def run(denoise: Denoiser, prompts: list[list[int]], options: dict, **given) -> list[Sample]:
    config = SamplerConfig(**options)
    return decode(with_options(denoise, config, SPECIAL), prompts, config, SPECIAL, **given)


@contextmanager
def hooked(model: LLaDA, hook) -> Iterator[None]:
    handles = [
        module.register_forward_pre_hook(hook)
        for module in model.modules()
        if isinstance(module, Block)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Inputs:
    """What each layer reads, and the steps of this block so far."""

    def __init__(self) -> None:
        self.num_steps = 0
        self.by_block: dict[Block, torch.Tensor] = {}

    def keep_rows(self, rows: Rows) -> None:
        self.by_block = {block: rows.of(values) for block, values in self.by_block.items()}


class Branches:
    """A memory for each branch of guidance."""

    def __init__(self) -> None:
        self.each = (Memory(), Memory())

    def keep_rows(self, rows: Rows) -> None:
        for memory in self.each:
            memory.keep_rows(rows)


def frozen(
    denoise: Denoiser, model: LLaDA, mode: str, refresh: int | None = None, num_left: int = 0
) -> Denoiser:
    """What a cache is, slowly: whole forwards in which each layer reads its former
    inputs, but at the columns in work.
    """

    def denoise_frozen(canvas: Canvas, window: slice) -> Prediction:
        kept = canvas.memory.of(Inputs)
        inputs = kept.by_block
        whole = kept.num_steps % (refresh or 1000) == 0
        kept.num_steps += 1
        end = window.stop if mode == "dual" else canvas.tokens.shape[1]
        columns = slice(window.start - num_left, end)

        def hook(block: Block, arguments: tuple) -> tuple:
            x, *others = arguments
            if whole:
                inputs[block] = x
            merged = inputs[block].clone()
            merged[:, columns] = x[:, columns]
            return merged, *others

        with hooked(model, hook):
            return denoise(canvas, window)

    return denoise_frozen


def both(first: Denoiser, second: Denoiser, bound: float) -> Denoiser:
    """The first, after checking that the second says the same of every column of the
    window, within the bound.
    """

    def denoise_both(canvas: Canvas, window: slice) -> Prediction:
        one, other = first(canvas, window), second(canvas, window)
        at = torch.arange(window.stop - window.start).expand(len(canvas.tokens), -1)
        torch.testing.assert_close(one.logits_at(at), other.logits_at(at), atol=bound, rtol=0)
        torch.testing.assert_close(one.confidence, other.confidence, atol=bound, rtol=0)
        assert one.ranks_masked == other.ranks_masked
        return one

    return denoise_both


# ---- against the definition


@every_mode
@pytest.mark.parametrize(
    "options",
    [
        dict(block_length=4),
        dict(block_length=6, steps=8, revise=True, confidence_source="ups"),
        dict(block_length=12, cache_refresh=3),
        dict(block_length=4, sampling_method="semi_ar_origin"),
    ],
    ids=str,
)
def test_every_step_predicts_what_the_definition_says(subject, mode, options):
    model, denoise, prompts, error, num_left = subject
    config = SamplerConfig(gen_length=12, cache=mode, **options)
    slow = frozen(denoise, model, mode, config.cache_refresh, num_left)
    decode(both(cached(denoise, mode, config.cache_refresh), slow, error), prompts, config, SPECIAL)


@every_mode
def test_a_cache_is_an_approximation_where_other_columns_would_have_changed(subject, mode):
    """Else nothing above could tell a cache from none."""
    _, denoise, prompts, error, _ = subject
    config = SamplerConfig(gen_length=12, block_length=4)
    with pytest.raises(AssertionError, match="not close"):
        decode(both(cached(denoise, mode), denoise, 100 * error), prompts, config, SPECIAL)


@every_mode
@pytest.mark.parametrize("refresh", [None, 2])
def test_each_branch_of_guidance_has_its_own_cache(subject, mode, refresh):
    _, denoise, prompts, error, _ = subject
    scale = 1.5

    def separately(canvas: Canvas, window: slice) -> Prediction:
        blank = canvas.tokens.clone()
        for row, start in zip(blank, canvas.answer_start):
            row[:start][row[:start] != PADDING] = MASK
        own = canvas.memory.of(Branches).each
        one, other = (
            cached(denoise, mode, refresh)(canvas._replace(tokens=tokens, memory=memory), window)
            for tokens, memory in zip((canvas.tokens, blank), own)
        )
        return one._replace(
            logits_at=lambda at: (
                other.logits_at(at) + (scale + 1) * (one.logits_at(at) - other.logits_at(at))
            )
        )

    config = SamplerConfig(gen_length=12, block_length=6)
    decode(
        both(
            guided(cached(denoise, mode, refresh), scale, MASK), separately, (2 * scale + 1) * error
        ),
        prompts,
        config,
        SPECIAL,
    )


# ---- where theory says that nothing changes


@every_mode
@every_decoder
def test_a_refresh_at_every_step_is_no_cache(make_model, mode, options):
    denoise = with_router(make_model())
    plain = {name: value for name, value in options.items() if name != "cache_refresh"}
    assert run(denoise, PROMPTS, {**plain, "cache": mode, "cache_refresh": 1}) == run(
        denoise, PROMPTS, plain
    )


@every_mode
def test_blocks_of_one_step_are_decoded_without_a_cache(subject, mode):
    _, denoise, prompts, *_ = subject
    options = dict(gen_length=12, block_length=3, steps=4, temperature=1.0)
    assert run(denoise, prompts, {**options, "cache": mode}) == run(denoise, prompts, options)


@every_mode
@every_decoder
def test_one_layer_is_cached_exactly(make_model, mode, options):
    """Keys and values of the only layer depend on each column's own token, and outside
    the block none changes.
    """
    denoise = with_head(make_model(n_layers=1))
    plain = {name: value for name, value in options.items() if name != "cache_refresh"}
    assert run(denoise, PROMPTS, {**options, "cache": mode}) == run(denoise, PROMPTS, plain)


@pytest.mark.parametrize(
    "options", [dict(), dict(block_length=4, sampling_method="semi_ar_origin")], ids=str
)
def test_with_no_column_after_the_block_both_modes_are_one(subject, options):
    _, denoise, prompts, *_ = subject
    prefix, dual = (
        run(denoise, prompts, dict(gen_length=12, temperature=1.0, cache=mode, **options))
        for mode in MODES
    )
    assert prefix == dual


# ---- batches, and nothing stale


def check_any_batch(denoise: Denoiser, options: dict) -> None:
    """An answer is the same whatever rows are decoded beside it."""
    together = run(denoise, PROMPTS, options)
    assert [run(denoise, [prompt], options)[0] for prompt in PROMPTS] == together
    assert run(denoise, PROMPTS[::-1], options)[::-1] == together
    assert all(MASK not in sample.answer for sample in together)


def check_leaving_rows(denoise: Denoiser, options: dict) -> None:
    """Rows that end early, and those that take their places, are answered as alone."""

    def stop(answer: list[int]) -> bool:
        return sum(answer) % 3 == 0

    together = run(denoise, PROMPTS * 2, options, stop=stop, keys=range(8))
    assert len({len(sample.answer) for sample in together}) > 1
    assert [
        run(denoise, [prompt], options, stop=stop, keys=[key])[0]
        for key, prompt in enumerate(PROMPTS * 2)
    ] == together


@every_mode
@every_decoder
def test_an_answer_does_not_depend_on_the_batch_around_it(make_model, mode, options):
    check_any_batch(with_router(make_model()), {**options, "cache": mode})


@every_mode
def test_rows_that_leave_the_batch_take_nothing_from_the_others(subject, mode):
    check_leaving_rows(
        subject.denoise, dict(gen_length=12, block_length=3, temperature=1.0, cache=mode)
    )


@every_mode
def test_one_denoiser_decodes_batch_after_batch_of_one_shape(subject, mode):
    denoise = subject.denoise
    config = SamplerConfig(gen_length=12, block_length=4)
    batches = [[[5, 6, 7], [8, 9, 10]], [[30, 2, 2], [4, 4, 9]], [[5, 6, 7], [8, 9, 10]]]
    shared = cached(denoise, mode)
    answers = [decode(shared, batch, config, SPECIAL) for batch in batches]
    assert answers == [decode(cached(denoise, mode), batch, config, SPECIAL) for batch in batches]
    assert answers[0] == answers[2] != answers[1]


@every_mode
def test_a_call_outside_a_block_keeps_nothing_and_uses_nothing(make_model, mode):
    model = make_model()
    denoise, at = cached(model_denoiser(model), mode), torch.tensor([[0, 1]])
    for first in (5, 6, 7):
        canvas = Canvas(torch.tensor([[first, 8, MASK, MASK]]), torch.tensor([2]))
        expected = model_denoiser(model)(canvas, slice(2, 4)).logits_at(at)
        assert torch.equal(denoise(canvas, slice(2, 4)).logits_at(at), expected)


@pytest.mark.parametrize(
    "mode, refresh, columns",
    [
        ("none", None, [15] * 8),
        ("dual", None, [15, 4, 4, 4] * 2),
        ("prefix", None, [15, 12, 12, 12, 15, 8, 8, 8]),
        ("dual", 3, [15, 4, 4, 15] * 2),
        ("prefix", 2, [15, 12, 15, 12, 15, 8, 15, 8]),
    ],
)
def test_only_the_columns_in_work_are_computed(make_model, mode, refresh, columns):
    model, seen = make_model(), []
    config = SamplerConfig(gen_length=12, block_length=4, cache=mode, cache_refresh=refresh)
    with hooked(model, lambda block, arguments: seen.append(arguments[0].shape[1])):
        generate(model, [[5, 6, 7]], config, stop=lambda answer: len(answer) == 8)
    assert seen[:: model.config.n_layers] == columns


# ---- options


@pytest.mark.parametrize(
    "options, message",
    [
        (
            dict(cache="both"),
            "cache must be one of 'auto', 'none', 'prefix', 'dual', 'partial', got 'both'",
        ),
        (dict(cache="dual", cache_refresh=0), "cache_refresh must be at least 1, got 0"),
        (
            dict(cache_refresh=4),
            "cache_refresh has no effect with cache='auto': set cache to prefix or dual, or leave "
            "it out",
        ),
    ],
    ids=str,
)
def test_a_wrong_option_is_told_with_what_was_given_and_what_is_allowed(options, message):
    with pytest.raises(ValueError, match=message):
        build(SamplerConfig, options)


@every_mode
def test_an_engine_caches_as_its_options_or_its_request_say(tiny_checkpoint, mode):
    options = dict(gen_length=16, block_length=8)
    engine = Engine(pretrained=str(tiny_checkpoint), device="cpu", cache=mode, **options)
    plain = Engine(pretrained=str(tiny_checkpoint), device="cpu", **options)
    prompts = ["2 + 2 =", "once"]

    def answers(of: Engine, **given) -> list[str]:
        found = dict(
            of.generate(
                [Request(prompt, of.sampler_for(given)) for prompt in prompts], batch_size=2
            )
        )
        return [found[number].text for number in range(len(prompts))]

    assert answers(engine) == answers(plain, cache=mode) != answers(plain)
    assert answers(engine, cache="none") == answers(plain)


# ---- logits that are shifted by one


def test_shifted_logits_are_those_of_the_column_to_the_left(make_model):
    """Of a window anywhere, and at column 0, which keeps its own."""
    model = randomised(make_model())
    tokens = torch.randint(0, MASK, (3, 10), generator=torch.Generator().manual_seed(5))
    canvas, at = (
        Canvas(tokens, torch.tensor([2, 2, 2]), padded=False),
        torch.arange(10).expand(3, -1),
    )
    own = model_denoiser(model)(canvas, slice(0, 10)).logits_at(at)
    expected = torch.cat([own[:, :1], own[:, :-1]], 1)
    for start, stop in ((0, 10), (0, 4), (1, 2), (3, 8), (9, 10)):
        window = slice(start, stop)
        shifted = model_denoiser(model, shift=True)(canvas, window)
        found = shifted.logits_at(at[:, : stop - start])
        bound = measured(lambda of: of(tokens), model)
        torch.testing.assert_close(found, expected[:, window], atol=bound, rtol=0)
        assert shifted.shifted and not model_denoiser(model)(canvas, window).shifted


def test_a_policy_stream_of_a_shifted_model_judges_its_own_column(make_model):
    model = randomised(make_model())
    head = random_head(model)
    canvas = Canvas(torch.arange(12).view(1, 12), torch.tensor([3]), padded=False)
    plain, shifted = (
        model_denoiser(model, head, shift=shift)(canvas, slice(3, 9)) for shift in (False, True)
    )
    assert torch.equal(plain.confidence, shifted.confidence)


@every_mode
def test_without_the_left_neighbour_only_the_windows_first_logits_differ_in_one_layer(
    make_model, mode
):
    """One layer is cached exactly, so that what differs is the column that is not computed."""
    model = randomised(make_model(n_layers=1))
    tokens = torch.randint(0, MASK, (2, 12), generator=torch.Generator().manual_seed(6))
    at, found = torch.arange(4).expand(2, -1), []
    for left_neighbour in (True, False):
        canvas = Canvas(tokens, torch.tensor([4, 4]), padded=False, memory=Memory())
        denoise = cached(model_denoiser(model, shift=True), mode, left_neighbour=left_neighbour)
        denoise(canvas, slice(4, 8))
        found.append(denoise(canvas, slice(4, 8)).logits_at(at))
    bound = measured(lambda of: of(tokens), model)
    torch.testing.assert_close(found[0][:, 1:], found[1][:, 1:], atol=bound, rtol=0)
    assert float((found[0][:, 0] - found[1][:, 0]).abs().max()) > 100 * bound
