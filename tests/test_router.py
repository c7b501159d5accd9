"""The ALA router: the identity at initialisation, what its seeds depend on, prompts of
any length, every sampler, and training.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llada_plugins.diffusion.denoiser import (
    PADDING,
    Canvas,
    Denoiser,
    Prediction,
    model_denoiser,
)
from llada_plugins.diffusion.guidance import guided
from llada_plugins.diffusion.known_states import KnownStates
from llada_plugins.diffusion.memory import Memory
from llada_plugins.diffusion.token_rows import align
from llada_plugins.likelihood.estimate import log_likelihood
from llada_plugins.methods.policy_head import PolicyHead, policy_denoiser
from llada_plugins.methods.router import Router, RouterConfig
from llada_plugins.methods.routing import (
    RoutedLLaDA,
    routed,
    seeded_embeddings,
    seeded_inputs,
)
from llada_plugins.models.llada import LLaDA
from llada_plugins.models.past import Past
from llada_plugins.sampling.confidence import CONFIDENCE
from llada_plugins.sampling.config import SamplerConfig
from llada_plugins.sampling.generate import generate
from tests.tolerance import measured

pytestmark = pytest.mark.floats

MASK, D = 39, 32  # of make_model's models
PROMPTS = [[5, 6, 7], [8], [4, 4, 9, 10, 31, 12], [14, 5], [11, 12, 13, 14, 15]]

ROUTERS = {
    "replace": dict(mode="replace"),
    "residual": dict(mode="residual"),  # its output weights are not zero here: as after training
    "deep": dict(mode="residual", layers=2, mlp=24),
    "one head": dict(mode="replace", heads=1),
    "no prompt": dict(mode="replace", use_prompt=False, mlp=8),
    "both blocks": dict(mode="residual", blocks=2, scale=0.5),
}
every_router = pytest.mark.parametrize("kind", ROUTERS)

SAMPLERS = [
    dict(gen_length=12, **options)
    for options in (
        {},
        dict(steps=5, temperature=0.8),
        dict(block_length=4, steps=9),
        dict(sampling_method="semi_ar_origin", block_length=4),
        dict(cfg_scale=1.5, steps=6),
        dict(cfg_scale=0.5, block_length=6, threshold=0.05),
        dict(threshold=0.05, block_length=4),
        dict(factor=1.0),
        dict(remask_ratio=0.5, steps=4),
        dict(threshold=0.04, revise_below=0.5, confidence_source="ups"),
        dict(logits_eos_inf=True, confidence_eos_eot_inf=True, early_stop=True, block_length=3),
        *(
            dict(steps=6, confidence_source=source, revise=revise)
            for source in CONFIDENCE
            for revise in (False, True)
        ),
    )
]
every_sampler = pytest.mark.parametrize(
    "options", SAMPLERS, ids=lambda options: ",".join(f"{k}={v}" for k, v in options.items())
)


def random_router(kind: str = "replace", seed: int = 0, **fields) -> Router:
    """A router of ROUTERS with every parameter random, ready for inference."""
    router = Router(
        RouterConfig(**{**dict(d_model=D, max_positions=64), **ROUTERS[kind], **fields})
    )
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in router.named_parameters():
        around = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        parameter.data = around + 0.3 * torch.randn(parameter.shape, generator=generator)
    return router.eval().requires_grad_(False)


def fresh_router(mode: str, **fields) -> Router:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Router(RouterConfig(d_model=D, mode=mode, **fields)).eval().requires_grad_(False)


def blocks_of(model: LLaDA) -> nn.ModuleList:
    return model.model["transformer"]["blocks"]


@pytest.fixture(scope="module")
def model(make_model) -> LLaDA:
    return make_model()


@pytest.fixture(scope="module")
def policy(model) -> Denoiser:
    """The model's denoiser with a random policy head, so that every confidence source
    has what it ranks by.
    """
    head, generator = PolicyHead(D, 8), torch.Generator().manual_seed(3)
    for parameter in head.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return policy_denoiser(model, head.requires_grad_(False))


def ragged() -> tuple[Tensor, Tensor]:
    """Rows (6, 16) with padding on either side, text and masks in their answers, one
    mask inside a prompt; and where answers start.
    """
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, MASK, (6, 16), generator=generator)
    start = torch.tensor([4, 9, 6, 0, 2, 16])
    column = torch.arange(16)
    tokens[(torch.rand(6, 16, generator=generator) < 0.6) & (column >= start[:, None])] = MASK
    tokens[0, :2] = PADDING
    tokens[2, 3] = MASK
    tokens[4, 9:] = PADDING
    tokens[4, :2] = PADDING  # this row has no prompt either
    return tokens, start


def seed_error(
    router: Router, model: LLaDA, tokens: Tensor | None = None, start: Tensor | None = None
) -> float:
    """Bound of how much two float32 seeds of these tokens differ; without tokens, of
    ragged ones.
    """
    tokens, start = ragged() if tokens is None else (tokens, start)
    return measured(
        lambda router, model: seeded_inputs(router, model.embedding, tokens, start, MASK),
        router,
        model,
    )


def routed_error(module: RoutedLLaDA) -> float:
    """Bound of how much two float32 logits of the module differ: of rows together, and
    of each alone.
    """
    tokens = torch.randint(0, MASK, (6, 16), generator=torch.Generator().manual_seed(2))
    lengths = torch.tensor([4, 9, 6, 1, 2, 5])
    tokens[torch.arange(16) >= lengths[:, None]] = MASK

    def compute(of: RoutedLLaDA) -> Tensor:
        alone = (
            of(tokens[row : row + 1], prompt_lengths=lengths[row : row + 1]) for row in range(6)
        )
        return torch.cat([of(tokens, prompt_lengths=lengths), *alone])

    return measured(compute, module)


# ---- what the seeds are


def seed_by_hand(router: Router, prompt: Tensor, mask_embedding: Tensor, place: int) -> Tensor:
    """One answer position's seeds (blocks, D) from one row's prompt embeddings (P, D):
    attention head by head, no batch, no padding.
    """

    def normed(norm: nn.LayerNorm, x: Tensor) -> Tensor:
        return F.layer_norm(x, (D,), norm.weight, norm.bias)

    static = torch.stack([mask_embedding] + [torch.zeros(D)] * (router.config.blocks - 1))
    if not len(prompt):
        return static
    last = router.config.max_positions - 1
    keys = torch.stack(
        [
            normed(
                router.prompt_norm,
                token + router.prompt_position.weight[min(len(prompt) - 1 - number, last)],
            )
            for number, token in enumerate(prompt)
        ]
    )
    x = mask_embedding + router.query_position.weight[place]
    for layer in router.stack:
        if layer.attention is not None:
            w, b = layer.attention.in_proj_weight.chunk(3), layer.attention.in_proj_bias.chunk(3)
            q = w[0] @ normed(layer.norm, x) + b[0]
            k = keys @ w[1].T + b[1]
            v = keys @ w[2].T + b[2]
            width = D // router.config.heads
            heads = []
            for first in range(0, D, width):
                part = slice(first, first + width)
                heads.append((k[:, part] @ q[part] / math.sqrt(width)).softmax(0) @ v[:, part])
            x = x + layer.attention.out_proj(torch.cat(heads))
        if layer.mlp is not None:
            x = x + layer.mlp[3](F.gelu(layer.mlp[1](normed(layer.mlp[0], x))))
    seed = router.out(normed(router.norm, x)).view(router.config.blocks, D)
    seed = torch.cat([router.config.scale * seed[:1], seed[1:]])
    return static + seed if router.config.mode == "residual" else seed


@every_router
def test_route_equals_a_row_by_row_position_by_position_implementation(model, kind):
    router, (tokens, start) = random_router(kind, max_positions=8), ragged()
    # as long as the router knows; a prompt of 9 exceeds its reach
    tokens[torch.arange(16) >= start[:, None] + 8] = PADDING
    seeds = seeded_inputs(router, model.embedding, tokens, start, MASK)
    bound = seed_error(router, model, tokens, start)
    for row, first, routed_row in zip(tokens, start.tolist(), seeds):
        prompt = model.embedding(
            torch.tensor(
                [token for token in row[:first].tolist() if token != PADDING], dtype=torch.long
            )
        )
        for column, token in enumerate(row.tolist()):
            if token == MASK and column >= first:
                expected = seed_by_hand(
                    router, prompt, model.embedding.weight[MASK], column - first
                )
                torch.testing.assert_close(routed_row[column], expected, atol=bound, rtol=0)
            elif token != PADDING:
                assert torch.equal(routed_row[column, 0], model.embedding.weight[token])
                assert not routed_row[column, 1:].any()


def test_prompt_places_beyond_the_routers_reach_share_one_position(model):
    router = random_router(max_positions=4)
    long = torch.tensor([[*range(1, 11), *[MASK] * 4]])
    swapped = long.clone()
    swapped[0, [1, 3]] = long[0, [3, 1]]
    start = torch.tensor([10])
    first, second = (
        seeded_embeddings(router, model.embedding, tokens, start, MASK)[0, 10:]
        for tokens in (long, swapped)
    )
    torch.testing.assert_close(first, second, atol=seed_error(router, model, long, start), rtol=0)


@every_router
def test_seeds_differ_between_answer_positions_and_do_not_depend_on_the_answers_length(model, kind):
    router = random_router(kind)
    tokens = torch.tensor([[5, 6, 7, *[MASK] * 8]])
    seeds = seeded_inputs(router, model.embedding, tokens, torch.tensor([3]), MASK)[0, 3:]
    for each in seeds.unbind(1):
        assert torch.cdist(each, each).fill_diagonal_(1).min() > 0.1
    shorter = seeded_inputs(router, model.embedding, tokens[:, :6], torch.tensor([3]), MASK)[0, 3:]
    torch.testing.assert_close(
        shorter, seeds[:3], atol=seed_error(router, model, tokens, torch.tensor([3])), rtol=0
    )


@every_router
def test_seeds_depend_on_the_prompts_tokens_and_their_order_unless_the_prompt_is_off(model, kind):
    router = random_router(kind)
    rows = torch.tensor([[*prompt, *[MASK] * 5] for prompt in ([5, 6, 7], [7, 6, 5], [5, 6, 8])])
    first, *others = seeded_inputs(router, model.embedding, rows, torch.full((3,), 3), MASK)[:, 3:]
    # a product's rows may go to different kernels
    bound = seed_error(router, model, rows, torch.full((3,), 3))
    for other in others:
        changed = (other - first).abs()
        assert changed.max() <= bound if kind == "no prompt" else changed.amax((0, 2)).min() > 0.01


def test_tokens_of_the_answer_do_not_change_the_seeds_beside_them(model):
    router = random_router()
    rows = torch.tensor([[5, 6, *[MASK] * 4], [5, 6, 9, MASK, 30, MASK]])
    start = torch.tensor([2, 2])
    masked, partly = seeded_embeddings(router, model.embedding, rows, start, MASK)
    bound = seed_error(router, model, rows, start)  # a product's rows may go to different kernels
    torch.testing.assert_close(partly[[3, 5]], masked[[3, 5]], atol=bound, rtol=0)


# ---- what stays as it was


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "fields", [dict(), dict(layers=2, mlp=16), dict(use_prompt=False), dict(blocks=2)], ids=str
)
def test_a_fresh_residual_router_is_the_identity_to_the_bit(make_model, dtype, fields):
    model, router, (tokens, start) = (
        make_model().to(dtype),
        fresh_router("residual", **fields),
        ragged(),
    )
    plain = model.embedding(tokens.clamp(min=0))
    seeds = seeded_inputs(router, model.embedding, tokens, start, MASK)
    assert torch.equal(seeds[:, :, 0], plain) and not seeds[:, :, 1:].any()
    rows, length = tokens[[1, 3]], torch.tensor([9, 0])
    assert torch.equal(
        RoutedLLaDA(model, router, MASK)(rows, prompt_lengths=length),
        model(None, inputs_embeds=plain[[1, 3]]),
    )
    assert torch.equal(model(None, inputs_embeds=plain[[1, 3]]), model(rows))


@every_sampler
def test_a_fresh_residual_router_decodes_the_baselines_answers(model, policy, options):
    with_router = routed(
        policy, fresh_router("residual", blocks=2), model.embedding, MASK, blocks_of(model)
    )
    config = SamplerConfig(**options)
    assert generate(model, PROMPTS, config, denoise=with_router) == generate(
        model, PROMPTS, config, denoise=policy
    )


@every_router
def test_without_a_masked_answer_position_the_output_is_the_baselines_to_the_bit(model, kind):
    module = RoutedLLaDA(model, random_router(kind), MASK)
    tokens = torch.tensor([[5, 6, 7, 8], [MASK, 6, MASK, 8]])  # the masks belong to a prompt
    for lengths in ([4, 4], [2, 3], [0, 3]):
        assert torch.equal(
            module(tokens[: len(lengths)], prompt_lengths=torch.tensor(lengths)), model(tokens)
        )


def test_a_replacing_router_changes_seeds_logits_and_answers(model):
    router = fresh_router("replace")
    tokens = torch.tensor([[5, 6, MASK, 9, MASK]])
    lengths = torch.tensor([2])
    changed = (
        seeded_embeddings(router, model.embedding, tokens, lengths, MASK) != model.embedding(tokens)
    ).any(-1)
    assert changed.tolist() == [[False, False, True, False, True]]
    assert (
        RoutedLLaDA(model, router, MASK)(tokens, prompt_lengths=lengths) - model(tokens)
    ).abs().max() > 0.01
    config = SamplerConfig(gen_length=12)
    with_router = routed(model_denoiser(model), router, model.embedding, MASK)
    assert generate(model, PROMPTS, config, denoise=with_router) != generate(model, PROMPTS, config)


def test_guidances_blank_prompt_keeps_the_static_embedding_and_its_answer_is_routed(model):
    seen: list[Canvas] = []

    def record(canvas: Canvas, window: slice) -> Prediction:
        seen.append(canvas)
        return model_denoiser(model)(canvas, window)

    tokens, padded = align([[5, 6, 7, *[MASK] * 4], [8, *[MASK] * 4]], torch.device("cpu"))
    guided(routed(record, random_router(), model.embedding, MASK), 1.0, MASK)(
        Canvas(tokens, torch.tensor([3, 3]), padded), slice(3, 7)
    )
    static = model.embedding.weight[MASK]
    blank = seen[0].embeds[2:]
    assert torch.equal(blank[0, :3], static.expand(3, -1)) and torch.equal(blank[1, 2], static)
    assert (blank[:, 3:] != static).any(-1).all()
    assert (blank[:, 3:] != seen[0].embeds[:2, 3:]).any(-1).all()


# ---- seeds before several blocks


def test_each_block_reads_its_input_plus_its_seeds_whichever_way_the_model_is_called(make_model):
    model = make_model(n_layers=3)
    router = random_router("residual", blocks=3)
    start = torch.tensor([2])
    tokens = torch.tensor([[5, 6, MASK, 9, MASK]])
    seeds = seeded_inputs(router, model.embedding, tokens, start, MASK)
    seen: list[Tensor] = []
    handles = [
        block.register_forward_hook(lambda _, inputs, output: seen.extend((inputs[0], output)))
        for block in blocks_of(model)
    ]
    routed(model_denoiser(model), router, model.embedding, MASK, blocks_of(model))(
        Canvas(tokens, start), slice(2, 5)
    )
    RoutedLLaDA(model, router, MASK)(tokens, prompt_lengths=start)
    for handle in handles:
        handle.remove()
    first, after_first, second, after_second, third, _ = seen[:6]
    assert torch.equal(first, seeds[:, :, 0])
    assert torch.equal(second, after_first + seeds[:, :, 1])
    assert torch.equal(third, after_second + seeds[:, :, 2])
    assert seeds[0, [2, 4], 1:].abs().amax(-1).min() > 0.01 and not seeds[0, [0, 1, 3], 1:].any()
    assert all(torch.equal(one, other) for one, other in zip(seen[:6], seen[6:]))
    assert not any(block._forward_pre_hooks for block in blocks_of(model))


@pytest.mark.parametrize("columns", [slice(3, 5), [[3, 4], [4, 4]]], ids=["slice", "of each row"])
def test_with_keys_and_values_at_hand_some_columns_get_what_they_get_among_all(model, columns):
    denoise = routed(
        model_denoiser(model), random_router("both blocks"), model.embedding, MASK, blocks_of(model)
    )
    tokens = torch.tensor([[5, 6, MASK, 9, MASK, MASK], [7, 8, MASK, MASK, 11, MASK]])
    canvas, at = Canvas(tokens, torch.tensor([2, 1]), past=Past()), torch.tensor([[0, 1]] * 2)
    if isinstance(columns, list):
        columns, canvas = torch.tensor(columns), canvas._replace(known=KnownStates())
    whole = denoise(canvas, slice(3, 5)).logits_at(at)
    bound = routed_error(RoutedLLaDA(model, random_router("both blocks"), MASK))
    torch.testing.assert_close(
        denoise(canvas._replace(columns=columns), slice(3, 5)).logits_at(at),
        whole,
        atol=bound,
        rtol=0,
    )


def test_blocks_are_left_as_they_were_even_where_a_forward_fails(model):
    router = random_router("both blocks")
    tokens = torch.tensor([[5, MASK]])
    start = torch.tensor([1])

    def fail(canvas: Canvas, window: slice) -> Prediction:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        routed(fail, router, model.embedding, MASK, blocks_of(model))(
            Canvas(tokens, start), slice(1, 2)
        )
    assert not any(block._forward_pre_hooks for block in blocks_of(model))


def test_a_router_of_more_blocks_than_are_given_is_refused_in_one_line(model):
    router = random_router("residual", blocks=3)
    for give in (
        lambda: routed(model_denoiser(model), router, model.embedding, MASK, blocks_of(model)),
        lambda: RoutedLLaDA(model, router, MASK),
    ):
        with pytest.raises(
            ValueError,
            match="this router seeds 3 blocks, and there are 2: give the model's blocks, or "
            "another router$",
        ):
            give()
    with pytest.raises(
        ValueError,
        match="this router seeds 3 blocks, and embeddings alone were asked for: give one with "
        "blocks=1$",
    ):
        seeded_embeddings(router, model.embedding, torch.tensor([[MASK]]), torch.tensor([0]), MASK)


@every_router
def test_seeds_that_a_block_remembers_are_those_of_its_later_steps(model, kind):
    """Of a step that masks more of the window than its first had masked, too; and of a
    later block, masked or not there yet.
    """
    router, start, window = random_router(kind), torch.tensor([2, 2]), slice(3, 6)
    seen: list[Canvas] = []
    bound = seed_error(router, model)
    first = torch.tensor([[5, 6, 7, MASK, 8, 9], [PADDING, 4, 7, 9, MASK, 9]])
    later = torch.tensor([[5, 6, 7, 8, MASK, MASK], [PADDING, 4, 7, MASK, 9, MASK]])
    for grown in (first[:, :0], torch.full((2, 2), MASK)):
        memory = Memory()
        denoise = routed(
            lambda canvas, window: seen.append(canvas),
            router,
            model.embedding,
            MASK,
            blocks_of(model),
        )
        for tokens in (torch.cat([first, grown], 1), torch.cat([later, grown], 1)):
            denoise(Canvas(tokens, start, memory=memory), window)
            expected = seeded_inputs(router, model.embedding, tokens, start, MASK)[:, :, 0]
            torch.testing.assert_close(seen[-1].embeds, expected, atol=bound, rtol=0)


def test_the_router_runs_once_a_block(model):
    router = random_router("both blocks")
    config = SamplerConfig(gen_length=12, block_length=4, cfg_scale=1.0, cache="dual")
    ran: list[int] = []
    handle = router.register_forward_hook(lambda module, inputs, output: ran.append(len(output)))
    denoise = routed(model_denoiser(model), router, model.embedding, MASK, blocks_of(model))
    generate(model, PROMPTS, config, denoise=denoise)
    handle.remove()
    assert ran == [2 * len(PROMPTS)] * 3


# ---- prompts of any length


@pytest.mark.parametrize(
    "lengths, shown",
    [
        ([1, 2], r"prompt_lengths must be \(3,\) whole numbers from 0 to 5, got \[1, 2\]"),
        ([[1], [2], [3]], r"must be \(3,\)"),
        ([1, -1, 2], r"from 0 to 5, got \[1, -1, 2\]"),
        ([1, 6, 2], r"from 0 to 5, got \[1, 6, 2\]"),
        ([1.0, 2.0, 2.5], r"whole numbers .* got \[1.0, 2.0, 2.5\]"),
    ],
    ids=str,
)
def test_prompt_lengths_of_another_shape_range_or_type_are_refused(model, lengths, shown):
    with pytest.raises(ValueError, match=shown) as error:
        RoutedLLaDA(model, random_router(), MASK)(
            torch.full((3, 5), MASK), prompt_lengths=torch.tensor(lengths)
        )
    assert "\n" not in str(error.value)


@every_router
def test_a_padded_batch_gives_each_rows_own_logits(model, kind):
    module = RoutedLLaDA(model, random_router(kind, max_positions=16), MASK)
    rows = [
        [*prompt, *[MASK] * answer] for prompt, answer in zip([*PROMPTS, []], (4, 12, 3, 6, 1, 5))
    ]
    lengths = torch.tensor([len(prompt) for prompt in [*PROMPTS, []]])
    width = max(map(len, rows))
    tokens = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    real = torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in rows])
    together, bound = module(tokens, real, prompt_lengths=lengths), routed_error(module)
    for row, length, logits in zip(rows, lengths, together):
        torch.testing.assert_close(
            logits[: len(row)],
            module(torch.tensor([row]), prompt_lengths=length[None])[0],
            atol=bound,
            rtol=0,
        )


def test_padding_behind_a_short_row_is_no_part_of_its_answer(model):
    module = RoutedLLaDA(model, random_router(max_positions=4), MASK)
    tokens = torch.tensor([[*range(1, 11), *[MASK] * 4], [5, *[MASK] * 4, *[0] * 9]])
    module(
        tokens, torch.tensor([[1] * 14, [1] * 5 + [0] * 9]), prompt_lengths=torch.tensor([10, 1])
    )


@every_sampler
def test_an_answer_does_not_depend_on_the_batch_around_it(model, policy, options):
    with_router = routed(
        policy, random_router("deep", blocks=2), model.embedding, MASK, blocks_of(model)
    )
    config = SamplerConfig(**options)
    together = generate(model, PROMPTS, config, denoise=with_router)
    assert [
        generate(model, [prompt], config, denoise=with_router)[0] for prompt in PROMPTS
    ] == together
    assert all(MASK not in sample.answer for sample in together)


@pytest.mark.parametrize("cfg_scale", [0.0, 1.0])
@every_router
def test_likelihoods_of_ragged_answers_do_not_depend_on_the_batch_and_are_another_models(
    model, kind, cfg_scale
):
    with_router = routed(
        model_denoiser(model), random_router(kind), model.embedding, MASK, blocks_of(model)
    )
    pairs = list(
        zip(PROMPTS, ([7], [8, 9, 10, 11], [12, 13], [14, 15, 16, 17, 18, 19, 20], [21, 22, 23]))
    )
    options = dict(mc_num=8, cfg_scale=cfg_scale, denoise=with_router)
    together = log_likelihood(model, pairs, batch_size=16, **options)
    alone = [log_likelihood(model, [pair], batch_size=1, **options)[0] for pair in pairs]
    # a log-probability errs by at most twice its logits' error, and guidance weighs
    # logits by 2 x scale + 1 of at most 7 tokens
    bound = (
        7 * 2 * (2 * cfg_scale + 1) * routed_error(RoutedLLaDA(model, random_router(kind), MASK))
    )
    assert [value.value for value in together] == pytest.approx(
        [value.value for value in alone], abs=bound
    )
    plain = log_likelihood(model, pairs, mc_num=8, cfg_scale=cfg_scale)
    assert all(abs(ours.value - theirs.value) > 10 * bound for ours, theirs in zip(together, plain))


@every_router
def test_a_row_without_prompt_is_the_baselines(model, kind):
    router = random_router(kind)
    module, tokens = RoutedLLaDA(model, router, MASK), torch.full((2, 5), MASK)
    assert torch.equal(module(tokens, prompt_lengths=torch.tensor([0, 0])), model(tokens))
    seeds = seeded_inputs(router, model.embedding, tokens, torch.tensor([2, 0]), MASK)[1]
    assert torch.equal(seeds[:, 0], model.embedding(tokens[1])) and not seeds[:, 1:].any()
    with_router = routed(model_denoiser(model), router, model.embedding, MASK, blocks_of(model))
    assert log_likelihood(model, [([], [5, 6, 7])], denoise=with_router) == log_likelihood(
        model, [([], [5, 6, 7])]
    )


def test_an_answer_longer_than_the_router_knows_is_refused_in_one_line(model):
    with_router = routed(
        model_denoiser(model), random_router(max_positions=8), model.embedding, MASK
    )
    assert generate(model, PROMPTS, SamplerConfig(gen_length=8), denoise=with_router)
    with pytest.raises(
        ValueError, match=r"knows answers of 8 tokens \(max_positions\), got 12: train a longer one"
    ) as error:
        generate(model, PROMPTS, SamplerConfig(gen_length=12), denoise=with_router)
    assert "\n" not in str(error.value)


# ---- training


@pytest.mark.parametrize(
    "fields",
    [dict(mode="replace"), dict(mode="residual"), dict(mode="residual", layers=2, mlp=8, blocks=2)],
    ids=str,
)
def test_the_gradient_reaches_the_router_and_nothing_else(make_model, fields):
    module = RoutedLLaDA(
        make_model().requires_grad_(True), Router(RouterConfig(d_model=D, **fields)), MASK
    )
    tokens = torch.tensor([[5, 6, MASK, MASK], [MASK] * 4, [7, MASK, 8, MASK]])
    lengths = torch.tensor([2, 0, 1])
    F.cross_entropy(
        module(tokens, prompt_lengths=lengths).flatten(0, 1), torch.arange(12)
    ).backward()
    assert all(parameter.grad is None for parameter in module.backbone.parameters())
    assert all(parameter.grad.isfinite().all() for parameter in module.router.parameters())
    # of every block
    assert all(grad.abs().max() > 0 for grad in module.router.out.weight.grad.split(D))
    reached = [
        name
        for name, parameter in module.router.named_parameters()
        if parameter.grad.abs().max() > 0
    ]
    # zero output weights: only they move at first
    assert ("query_position.weight" in reached) == (fields["mode"] == "replace")


def test_a_batch_without_any_prompt_leaves_finite_gradients(make_model):
    module = RoutedLLaDA(make_model(), Router(RouterConfig(d_model=D, mode="replace")), MASK)
    module(torch.full((2, 3), MASK), prompt_lengths=torch.tensor([0, 0])).sum().backward()
    assert all(
        parameter.grad is None or parameter.grad.isfinite().all()
        for parameter in module.router.parameters()
    )


def test_a_module_refuses_a_router_of_another_width(model):
    with pytest.raises(ValueError, match="the router's width is 64, the model's 32"):
        RoutedLLaDA(model, Router(RouterConfig(d_model=64)), MASK)
