"""The exact cache of block-causal models: the answers of forwards of the whole canvas, and
of what it spares the columns that were computed.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llada_plugins.diffusion import finished_blocks
from llada_plugins.diffusion.batch_limit import BatchLimit, OutOfMemory
from llada_plugins.diffusion.denoiser import Canvas, Denoiser, Prediction, model_denoiser
from llada_plugins.diffusion.finished_blocks import keeping_finished_blocks, neighbours
from llada_plugins.diffusion.kept_prompt import KeptPrompts
from llada_plugins.diffusion.kept_rows import KeptRows
from llada_plugins.diffusion.memory import Lasting, Memory
from llada_plugins.engine.probes import decoding_step
from llada_plugins.methods.policy_head import PolicyHead, policy_denoiser
from llada_plugins.methods.router import Router, RouterConfig
from llada_plugins.methods.routing import routed
from llada_plugins.models.llada import LLaDA
from llada_plugins.models.past import LayerPast
from llada_plugins.models.quantization import quantised
from llada_plugins.models.slots import NO_TOKEN, Slots
from llada_plugins.models.special_tokens import SpecialTokens
from llada_plugins.rewards.block_review import BlockReview
from llada_plugins.rewards.review_config import ReviewConfig
from llada_plugins.sampling.config import SamplerConfig
from llada_plugins.sampling.decode import decode
from llada_plugins.sampling.draft import Sample, unreviewed
from llada_plugins.sampling.generate import generate, with_options
from tests.tolerance import measured

pytestmark = pytest.mark.floats

MASK, EOS = 39, 38  # of make_model's models
SPECIAL = SpecialTokens(MASK, EOS)
RULES: list[dict[str, Any]] = [
    dict(),
    dict(block_steps=2),
    dict(threshold=0.06),
    dict(threshold=0.1, temperature=1.0),
    dict(revise=True, confidence_source="ups"),
    dict(threshold=0.2, revise_below=0.1),
    dict(threshold=0.06, early_stop=True),
    dict(threshold=0.06, edit_threshold=0.03, max_post_steps=3),
    dict(threshold=0.06, strict=True, at_least=2),
    dict(threshold=0.06, sub_block_length=1, first_token_alone=True),
    dict(threshold=0.06, stop_at="eos"),
]


@pytest.fixture(scope="module")
def model(make_model) -> LLaDA:
    """Its tokens see their own block and earlier ones alone."""
    return make_model(attention="block_causal", block_length=4, n_kv_heads=2)


def prompts_of(draw: random.Random, num: int, longest: int = 13) -> list[list[int]]:
    return [[draw.randrange(38) for _ in range(draw.randint(1, longest))] for _ in range(num)]


def with_head(model: LLaDA, shift: bool | None = None) -> Denoiser:
    torch.manual_seed(5)
    head = PolicyHead(model.config.d_model, 8).eval().requires_grad_(False)
    return (
        policy_denoiser(model, head) if shift is None else model_denoiser(model, head, shift=shift)
    )


def with_router(model: LLaDA, blocks: int = 2) -> Denoiser:
    torch.manual_seed(4)
    config = RouterConfig(
        d_model=model.config.d_model, mode="residual", max_positions=64, blocks=blocks
    )
    router = Router(config).eval().requires_grad_(False)
    nn.init.normal_(router.out.weight)
    return routed(with_head(model), router, model.embedding, MASK, model.blocks)


DENOISERS: dict[str, Callable[[LLaDA], Denoiser]] = {
    "plain": with_head,
    "shifted": functools.partial(with_head, shift=True),
    "routed": with_router,
}


def causal(**options: Any) -> SamplerConfig:
    return SamplerConfig(**{"sampling_method": "block_causal", "block_length": 4, **options})


@contextmanager
def columns_of(model: LLaDA) -> Iterator[list[tuple[int, int]]]:
    """Rows and columns of every forward within it."""
    seen: list[tuple[int, int]] = []
    hook = model.blocks[0].register_forward_pre_hook(
        lambda block, given: seen.append((given[0].shape[0], given[0].shape[1]))
    )
    try:
        yield seen
    finally:
        hook.remove()


# ---- the same answers


def drawn_decode(model: LLaDA, kind: str, seed: int) -> Callable[[str], list[Sample]]:
    """A decode of random prompts, rules, batches; from the option `cache` to its answers."""
    draw = random.Random(seed)
    config = dict(
        gen_length=draw.randint(1, 18),
        block_length=draw.choice([1, 2, 4, 5, 8]),
        blocks_from=draw.choice(["row", "answer"]),
        cfg_scale=draw.choice([0.0, 0.0, 0.7]),
        seed=seed,
        **draw.choice(RULES),
    )
    if config["blocks_from"] == "row" and draw.random() < 0.2:
        config["last_block"] = "rest"
    prompts = prompts_of(draw, draw.choice([1, 3, 8]))
    rows_at_once, modulus = draw.randint(1, len(prompts)), draw.randint(2, 6)
    in_step = draw.random() < 0.3

    def decoded(cache: str) -> list[Sample]:
        sampler = causal(cache=cache, **config)
        return decode(
            with_options(DENOISERS[kind](model), sampler, SPECIAL),
            prompts,
            sampler,
            SPECIAL,
            stop=lambda answer: sum(answer) % modulus == 0,
            at_once=BatchLimit(lambda longest: rows_at_once),
            in_step=in_step,
        )

    return decoded


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("kind", DENOISERS)
def test_answers_and_forwards_are_those_of_no_cache(model, kind, seed):
    decoded = drawn_decode(model, kind, seed)
    assert decoded("auto") == decoded("none")


@pytest.mark.slow
@pytest.mark.parametrize("kind", DENOISERS)
def test_many_random_decodes_have_the_answers_of_no_cache(model, kind):
    for seed in range(100, 300):
        decoded = drawn_decode(model, kind, seed)
        assert decoded("auto") == decoded("none"), seed


@pytest.mark.parametrize("quantize", ["int8", "int8_dynamic"])
def test_answers_of_weights_in_8_bits_are_those_of_no_cache(make_model, quantize):
    model = make_model(attention="block_causal", block_length=4)
    for block in model.blocks:
        for name, module in list(block.named_children()):
            if isinstance(module, nn.Linear):
                setattr(block, name, quantised(module, quantize))
    decoded = drawn_decode(model, "plain", 4)
    assert decoded("auto") == decoded("none")


def both(first: Denoiser, second: Denoiser, bound: float) -> Denoiser:
    """The first, after checking that the second says the same of every column of the
    window, within the bound.
    """

    def denoise_both(canvas: Canvas, window: slice) -> Prediction:
        one, other = first(canvas, window), second(canvas._replace(memory=None), window)
        at = torch.arange(window.stop - window.start).expand(len(canvas.tokens), -1)
        torch.testing.assert_close(one.logits_at(at), other.logits_at(at), atol=bound, rtol=0)
        rows = torch.arange(len(at)).flip(0)
        torch.testing.assert_close(
            one.logits_at(at[rows, 0], rows), other.logits_at(at[rows, 0], rows), atol=bound, rtol=0
        )
        torch.testing.assert_close(one.confidence, other.confidence, atol=bound, rtol=0)
        return one

    return denoise_both


def of_row(model: LLaDA) -> Tensor:
    """Logits of eight rows, all together and each alone."""
    ids = torch.randint(0, MASK, (8, 30), generator=torch.Generator().manual_seed(4))
    return torch.cat([model(ids), *map(model, ids.split(1))])


@pytest.mark.parametrize("kind", ["plain", "routed"])
def test_every_step_predicts_what_a_forward_of_the_whole_canvas_does(model, kind):
    """Rows join, leave for good and leave for the rest of a block."""
    config = causal(gen_length=14, threshold=0.06)
    plain = DENOISERS[kind](model)
    bound = measured(of_row, model)
    if kind == "routed":  # seeds as large as the embeddings of a token, and the policy's scores
        bound *= 4
    decode(
        both(keeping_finished_blocks(plain, config.blocks), plain, bound),
        prompts_of(random.Random(3), 9),
        config,
        SPECIAL,
        stop=lambda answer: sum(answer) % 4 == 0,
        at_once=BatchLimit(lambda longest: 4),
    )


def score_by_sums(rows: Any, answers: list[list[int]]) -> list[list[float]]:
    """Scores that tell candidates apart."""
    return [
        [(sum(answer[start : start + 4]) % 7) / 7 for start in range(0, len(answer), 4)]
        for answer in answers
    ]


def reviewed(model: LLaDA, kind: str, seed: int, **options: Any) -> Callable[[str], list[Sample]]:
    """A decode under a review with candidates, from the option `cache` to its answers."""
    draw = random.Random(seed)
    config = dict(
        gen_length=draw.randint(9, 14),
        temperature=0.7,
        seed=seed,
        cfg_scale=draw.choice([0.0, 0.0, 0.7]),
        **draw.choice([dict(block_steps=2), dict(threshold=0.06), dict(threshold=0.1)]),
    )
    prompts = prompts_of(draw, draw.choice([1, 3]))

    def decoded(cache: str) -> list[Sample]:
        sampler = causal(cache=cache, **config)
        review = BlockReview(ReviewConfig(**options), sampler, score_by_sums, MASK)
        denoise = with_options(DENOISERS[kind](model), sampler, SPECIAL)
        return decode(denoise, prompts, sampler, SPECIAL, review=review)

    return decoded


REVIEWS = [
    dict(method="vanilla", num_candidates_per_block=3),
    dict(method="backmask", num_candidates_per_block=2, backmasking_threshold=0.6),
    dict(method="window", backmasking_frequency=2, num_refinement_samples=3),
    dict(method="backmask", backmasking_rule="legacy", num_candidates_per_block=2),
]


@pytest.mark.parametrize("kind", DENOISERS)
@pytest.mark.parametrize("options", REVIEWS, ids=str)
def test_answers_under_a_review_are_those_of_no_cache(model, kind, options):
    """Candidates of a request share a slot; some are done in fewer steps than others."""
    decoded = reviewed(model, kind, seed=1, **options)
    assert decoded("auto") == decoded("none")


@pytest.mark.slow
@pytest.mark.parametrize("kind", DENOISERS)
@pytest.mark.parametrize("options", REVIEWS, ids=str)
def test_many_random_answers_under_a_review_are_those_of_no_cache(model, kind, options):
    for seed in range(100, 106):
        decoded = reviewed(model, kind, seed, **options)
        assert decoded("auto") == decoded("none"), seed


# ---- what it spares


def columns_while(model: LLaDA, decode: Callable[[], Any]) -> list[tuple[int, int]]:
    with columns_of(model) as seen:
        decode()
    return seen


@pytest.mark.parametrize(
    "shift, later, first", [(False, (1, 4), (1, 8)), (True, (1, 5), (1, 8))], ids=str
)
def test_a_blocks_first_forward_has_the_block_before_and_later_ones_the_block(
    model, shift, later, first
):
    """Shifted logits need the column before the block at every step."""
    config, denoise = causal(gen_length=12, block_steps=3), model_denoiser(model, shift=shift)
    prompt = [5] * 8
    seen = columns_while(
        model, lambda: generate(model, [prompt], config, special=SPECIAL, denoise=denoise)
    )
    assert seen == [(1, 12), later, later] + [first, later, later] * 2


def test_a_block_that_a_forward_has_verified_is_not_computed_again(model):
    """Editing ends a block with a forward of its final tokens."""
    config = causal(gen_length=12, threshold=0.01, edit_threshold=1.0)
    seen = columns_while(model, lambda: generate(model, [[5] * 8], config, special=SPECIAL))
    assert seen == [(1, 12)] + [(1, 4)] * 5


def test_without_a_cache_everything_is_computed_at_every_step(model):
    config = causal(gen_length=8, block_steps=2, cache="none")
    seen = columns_while(model, lambda: generate(model, [[5] * 8], config, special=SPECIAL))
    assert seen == [(1, 12)] * 2 + [(1, 16)] * 2


def run(model: LLaDA, prompts: list[list[int]], config: SamplerConfig, **options: Any) -> Any:
    denoise = with_options(model_denoiser(model), config, SPECIAL)
    return decode(denoise, prompts, config, SPECIAL, **options)


def test_a_row_that_joins_has_its_prompt_computed_and_no_other_row_a_column_more(model):
    config = causal(gen_length=12, block_steps=1)
    prompts = [[5] * 16, [6] * 15, [7] * 14]
    ends = {len(prompts[0]) + 4}

    def stop(answer: list[int]) -> bool:
        return len(answer) == 4 and bool(ends) and ends.pop() > 0  # one row, at its first block

    limit = BatchLimit(lambda longest: 2)
    seen = columns_while(model, lambda: run(model, prompts, config, stop=stop, at_once=limit))
    together, (alone, joined) = seen[0], seen[1:3]
    # both prompts; then of the third what is before the block that rides in the next forward
    assert together == (2, 20) and alone == (1, 8) and joined == (2, 8)
    assert set(seen[3:]) <= {(2, 8), (1, 8)}


def test_all_that_many_columns_lack_is_computed_in_pieces(model, monkeypatch):
    config = causal(gen_length=8, block_steps=1)
    prompts = [[5] * 21, [7] * 19]
    expected = run(model, prompts, config)
    monkeypatch.setattr(finished_blocks, "MOST_AT_ONCE", 16)
    seen = columns_while(model, lambda: run(model, prompts, config))
    assert seen[:3] == [(2, 8), (2, 8), (2, 8)] and run(model, prompts, config) == expected


def test_candidates_of_a_prompt_compute_nothing_of_what_is_before_their_block(model):
    """Every block: the row itself, then two copies of it."""
    prompts, config = [[5, 6, 7, 8] * 4] * 2, causal(gen_length=8, block_steps=2, temperature=0.7)

    def score(rows: Any, answers: Any) -> list[list[float]]:
        return [[0.5] * (len(answer) // 4) for answer in answers]

    review = BlockReview(
        ReviewConfig(method="vanilla", num_candidates_per_block=3), config, score, MASK
    )
    seen = columns_while(
        model, lambda: generate(model, prompts, config, special=SPECIAL, review=review)
    )
    # two candidates stand side by side in the row's slot
    assert seen == [(2, 20), (2, 4), (2, 8), (2, 8), (2, 8), (2, 4), (2, 8), (2, 8)]


def test_a_block_that_is_masked_again_drops_what_stands_behind_it(model):
    """Its own tokens are filled anew, so keys and values behind it are of another past."""
    denoise, seen = model_denoiser(model), []
    kept = keeping_finished_blocks(denoise, causal(gen_length=12).blocks)
    ids, start, lasting = torch.tensor([0]), torch.tensor([4]), Lasting()
    tokens = torch.arange(1, 17)[None]
    bound = measured(of_row, model)

    def forward(window: slice) -> None:
        masked = tokens.clone()
        masked[:, window] = MASK
        canvas = Canvas(masked, start, False, memory=Memory(), blocks=4, ids=ids, lasting=lasting)
        with columns_of(model) as columns:
            found = kept(canvas, window)
        at = torch.arange(4)[None]
        expected = denoise(canvas._replace(memory=None), window)
        torch.testing.assert_close(found.logits_at(at), expected.logits_at(at), atol=bound, rtol=0)
        seen.append(columns[0][1])

    for first in (4, 8, 12):
        forward(slice(first, first + 4))
    tokens[:, 4:8] = 20  # the first block of the answer is another one
    forward(slice(4, 8))
    forward(slice(12, 16))  # two blocks behind it are of the former one
    assert seen == [8, 8, 8, 4, 12]


# ---- slots


def storage(slots: Slots) -> list[Tensor]:
    return [each for layer in slots for each in layer]


def num_bytes(slots: Slots) -> int:
    return sum(each.nbytes for each in storage(slots))


def filled_slots(num_slots: int = 3, capacity: int = 4) -> Slots:
    slots = Slots()
    slots.reserve(num_slots, capacity, torch.device("cpu"))
    layers = [torch.randn(2, num_slots, capacity, 2, 3).transpose(2, 3) for _ in range(2)]
    slots.fill([LayerPast(*layer) for layer in layers], num_slots, capacity)
    slots.tokens = torch.arange(num_slots * capacity).view(num_slots, capacity)
    return slots


def test_room_that_grows_keeps_what_there_is_and_holds_nothing_else():
    slots = filled_slots()
    before, tokens = [each.clone() for each in storage(slots)], slots.tokens.clone()
    slots.reserve(5, 9, torch.device("cpu"))
    slots.reserve(2, 3, torch.device("cpu"))
    assert (slots.num_slots, slots.capacity) == (5, 9)
    for memory, former in zip(storage(slots), before):
        assert memory.shape == (5, 2, 9, 3)
        assert torch.equal(memory[:3, :, :4], former)
        assert not memory[3:].any() and not memory[:, :, 4:].any()
    assert torch.equal(slots.tokens[:3, :4], tokens)
    assert (slots.tokens != NO_TOKEN).sum() == 12


def test_slots_change_places_all_at_once():
    slots = filled_slots()
    before, tokens = [each.clone() for each in storage(slots)], slots.tokens.clone()
    slots.copy_slots([0, 2], [2, 0], 3)
    for memory, former in zip(storage(slots), before):
        assert torch.equal(memory[:, :, :3], former[[2, 1, 0], :, :3])
    assert torch.equal(slots.tokens, tokens[[2, 1, 0]])


def test_rows_of_many_batches_never_have_more_slots_than_the_largest_batch():
    """Whoever comes: each gets a slot of its own, with what it held if nobody took that."""
    draw, kept = random.Random(1), KeptRows()
    for _ in range(200):
        ids = draw.sample(range(6), draw.randint(1, 5))
        former = {each: kept.owners.index(each) for each in ids if each in kept.owners}
        tokens = torch.tensor([[each] * 4 for each in ids])
        kept.reserve(len(ids), 4, 4, tokens.device)
        seats = kept.seat(ids, tokens, torch.zeros(len(ids), dtype=torch.long), 2)
        assert sorted(seats.slots) == list(range(len(ids)))
        for slot, each, number in zip(seats.slots, ids, seats.num_columns):
            assert kept.owners[slot] == each and number == (4 if each in former else 0)
            assert kept.slots.tokens[slot, :number].tolist() == [each] * number
            kept.slots.tokens[slot] = each
    assert kept.slots.num_slots == len(kept.owners) == 5


def seated(kept: KeptRows, *ids: int) -> list[int]:
    """The slots of these rows, whose tokens are their numbers."""
    tokens = torch.tensor([[each] * 4 for each in ids])
    kept.reserve(len(ids), 4, 4, tokens.device)
    slots = kept.seat(ids, tokens, torch.zeros(len(ids), dtype=torch.long), 2).slots
    for slot, each in zip(slots, ids):
        kept.slots.tokens[slot] = each
    return slots


def test_the_slot_of_a_row_that_has_ended_is_given_away_first():
    kept = KeptRows()
    seated(kept, 0, 1, 2)
    seated(kept, 0, 1)
    kept.forget([1, ~1])
    assert seated(kept, 0, 5) == [0, 1] and kept.owners == [0, 5, 2]


def test_what_a_row_that_has_ended_leaves_behind_is_not_moved():
    kept = KeptRows()
    seated(kept, 0, 1, 2)
    kept.forget([0])
    assert seated(kept, 1, 2) == [1, 0] and kept.owners == [2, 1, None]
    assert kept.slots.tokens[:, 0].tolist() == [2, 1, 2]


def test_of_what_lasts_only_the_exact_makes_room_where_memory_was_too_small():
    """A prompt that is computed anew sees later tokens, and answers change."""
    lasting = Lasting()
    rows, prompts = lasting.of(KeptRows), lasting.of(KeptPrompts)
    lasting.release()
    assert lasting.of(KeptRows) is not rows and lasting.of(KeptPrompts) is prompts


def test_neighbours_are_runs_of_numbers():
    assert neighbours([]) == []
    assert neighbours([0, 1, 4, 6, 7]) == [slice(0, 2), slice(4, 5), slice(6, 8)]


# ---- memory


def row_bytes(model: LLaDA, columns: int) -> int:
    """Keys and values of so many columns of a row."""
    config = model.config
    width = config.num_kv_heads * config.head_dim
    return 2 * config.n_layers * width * columns * model.embedding.weight.element_size()


@contextmanager
def all_slots(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Slots]]:
    """Every Slots that is made within it."""
    made: list[Slots] = []
    original = Slots.__init__

    def noted(slots: Slots) -> None:
        original(slots)
        made.append(slots)

    with monkeypatch.context() as patched:
        patched.setattr(Slots, "__init__", noted)
        yield made


@pytest.mark.parametrize("batch", [1, 3])
def test_memory_is_that_of_the_rows_at_once_however_many_requests_there_are(
    model, monkeypatch, batch
):
    config = causal(gen_length=20, block_steps=1)
    prompts = [[5] * 12, *prompts_of(random.Random(2), 7, longest=12)]
    with all_slots(monkeypatch) as made:
        run(model, prompts, config, at_once=BatchLimit(lambda longest: batch))
    [slots] = made
    computed = batch * row_bytes(model, 12 + 20)
    assert num_bytes(slots) == computed


@pytest.mark.parametrize("candidates", [3, 9])
def test_candidates_take_the_memory_of_their_block_and_not_of_what_is_before_it(
    model, monkeypatch, candidates
):
    """The plain fill is over when the others are tried, so one block each beyond the first."""
    config = causal(gen_length=20, block_steps=2, temperature=0.7)
    prompts, options = [[5] * 40, [6] * 37], dict(num_candidates_per_block=candidates)
    review = BlockReview(ReviewConfig(method="vanilla", **options), config, score_by_sums, MASK)
    with all_slots(monkeypatch) as made:
        run(model, prompts, config, review=review)
    [slots] = made
    assert num_bytes(slots) == len(prompts) * row_bytes(model, 40 + 20 + 4 * (candidates - 2))


@pytest.mark.parametrize("versions", [1, 4])
@pytest.mark.parametrize("cfg_scale, branches", [(0.0, 1), (0.5, 2)])
def test_a_probe_of_memory_takes_what_the_longest_rows_will(
    model, monkeypatch, cfg_scale, branches, versions
):
    """Anew at every step, so that what one measures is not there before.

    Versions of a request share what is before their block. A first forward does not know yet
    whether logits are shifted, so each has a column to the left of it as well.
    """
    config = causal(gen_length=18, cfg_scale=cfg_scale)
    longest = config.blocks.row(11)  # 32 tokens in whole blocks
    cpu = torch.device("cpu")
    step = decoding_step(model_denoiser(model), config, SPECIAL, longest, cpu, versions=versions)
    with all_slots(monkeypatch) as made, torch.inference_mode():
        for num_requests in (1, 3):
            step(num_requests)
    columns = 32 if versions == 1 else 28 + versions * (4 + 1)
    assert [num_bytes(slots) for slots in made] == [
        num_requests * branches * row_bytes(model, columns) for num_requests in (1, 3)
    ]


def test_memory_is_given_back_when_a_batch_does_not_fit(model, monkeypatch):
    config = causal(gen_length=8, block_steps=2)
    prompts, limit = [[5] * 8, [6] * 7, [7] * 6, [8] * 5], BatchLimit(lambda longest: 4)
    expected = run(model, prompts, config)
    failures = iter([False, False, True])

    def review(draft: Any) -> Any:
        found = unreviewed(draft)
        if next(failures, False):
            raise OutOfMemory("CUDA out of memory")
        return found

    with all_slots(monkeypatch) as made:
        denoise = with_options(model_denoiser(model), config, SPECIAL)
        found = decode(denoise, prompts, config, SPECIAL, at_once=limit, review=review)
    assert found == expected
    # of three rows, since one had ended, a batch has one from then on
    assert [slots.num_slots for slots in made if slots] == [4, 1]


def test_what_a_forward_that_failed_may_have_written_is_not_used(model):
    config, failed = causal(gen_length=8, block_steps=2), iter([False] * 3 + [True])
    plain = model_denoiser(model)

    def failing(canvas: Canvas, window: slice) -> Prediction:
        found = plain(canvas, window)
        if next(failed, False):
            for layer in canvas.past:
                layer.keys.fill_(7.0)  # half done
            raise OutOfMemory("CUDA out of memory")
        return found

    prompts = [[5] * 8, [6] * 7]
    limit = BatchLimit(lambda longest: 2)
    denoise = keeping_finished_blocks(failing, config.blocks)
    assert decode(denoise, prompts, config, SPECIAL, at_once=limit) == run(model, prompts, config)


# ---- options


@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_approximations_are_refused_by_name(model, cache):
    with pytest.raises(ValueError, match=f"cache={cache} freezes what later blocks change"):
        generate(model, [[5]], SamplerConfig(gen_length=4, cache=cache), special=SPECIAL)


def test_other_models_have_no_such_cache(make_model):
    plain, config = make_model(), SamplerConfig(gen_length=8, block_length=4)
    seen = columns_while(plain, lambda: generate(plain, [[5]], config, special=SPECIAL))
    assert config.cache == "auto" and set(seen) == {(1, 9)}
