"""Replayed forwards: the answers of plain ones, over memory that stays.

A recorder takes the place of a CUDA graph. It notes every operator of the captured work
and the tensors that it read and wrote, and replays those operators on those very tensors,
without a line of the work's Python. Before each replay it spoils all that the work had
made, as a pool of memory would. So what would be frozen in a graph is frozen here.
"""

from __future__ import annotations

import gc
import random
import threading
import weakref
from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from llada_plugins.diffusion.batch_limit import BatchLimit
from llada_plugins.diffusion.denoiser import Denoiser, model_denoiser
from llada_plugins.diffusion.memory import Rows
from llada_plugins.likelihood.estimate import log_likelihood
from llada_plugins.methods.policy_head import PolicyHead, policy_denoiser
from llada_plugins.methods.router import Router, RouterConfig
from llada_plugins.methods.routing import routed
from llada_plugins.models import compiling
from llada_plugins.models.bitower import AFTER_LAYERS, BiTowerLLaDA
from llada_plugins.models.captured import WARM_UP, obstacle
from llada_plugins.models.initial import initialise
from llada_plugins.models.layer import Streams
from llada_plugins.models.llada import LLaDA
from llada_plugins.models.past import Past, row_bucket
from llada_plugins.models.replay import MAX_GRAPHS, MOST_ROWS
from llada_plugins.models.replayed_forward import LARGEST, LENGTH_STEP, ReplayedForward, Shape
from llada_plugins.models.special_tokens import SpecialTokens
from llada_plugins.sampling.config import SamplerConfig
from llada_plugins.sampling.decode import decode
from llada_plugins.sampling.draft import Draft, Filled
from llada_plugins.sampling.generate import generate, with_options
from tests.test_waits import READ, SIZED
from tests.tolerance import measured

pytestmark = pytest.mark.floats

MASK, EOS = 39, 38  # of make_model's models
SPECIAL = SpecialTokens(MASK, EOS)
PROMPTS = [[5, 6, 7], [8], [4, 4, 9, 10, 11, 12], [14, 5]]


def storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def tensors(values: Any) -> list[Tensor]:
    return [each for each in torch.utils._pytree.tree_leaves(values) if isinstance(each, Tensor)]


class NoWaiting(TorchFunctionMode):
    """Within it, what a GPU's host waits for is refused, as CUDA does in a capture."""

    def __torch_function__(self, function, types, args=(), kwargs=None) -> Any:
        if function in READ or getattr(function, "__name__", "") in SIZED:
            raise RuntimeError("operation not permitted when stream is capturing")
        return function(*args, **(kwargs or {}))


class Recorder(TorchDispatchMode):
    """A Graph that replays the operators it saw."""

    made: list[Recorder] = []

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Callable, tuple, dict, list[Tensor]]] = []
        self.num_replays = 0
        Recorder.made.append(self)

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None) -> Any:
        result = operator(*args, **(kwargs or {}))
        read = set(map(storage, tensors((args, kwargs))))
        new = [each for each in tensors(result) if storage(each) not in read]
        self.calls.append((operator, args, kwargs or {}, new))
        return result

    def capture(self, work: Callable[[], Streams]) -> Streams:
        with self, NoWaiting():
            return work()

    def replay(self) -> None:
        self.num_replays += 1
        for *_, new in self.calls:
            for tensor in new:
                tensor.fill_(float("nan") if tensor.is_floating_point() else 0)
        for operator, args, kwargs, new in self.calls:
            found = tensors(operator(*args, **kwargs))
            assert len(found) >= len(new)
            for tensor, value in zip(new, found):
                tensor.copy_(value)


@pytest.fixture(autouse=True)
def recorders() -> list[Recorder]:
    Recorder.made = []
    return Recorder.made


def replaying(model: LLaDA) -> LLaDA:
    model.compile_layers("off", make_graph=Recorder)
    return model


def num_replays() -> int:
    return sum(graph.num_replays for graph in Recorder.made)


def bi_tower(make_model) -> LLaDA:
    fields = dict(d_model=16, n_heads=2, n_layers=AFTER_LAYERS[-1] + 1, mlp_hidden_size=24)
    model = BiTowerLLaDA(make_model(**fields).config).eval().requires_grad_(False)
    initialise(model, torch.Generator().manual_seed(2))
    return model


def router_of(model: LLaDA, blocks: int) -> Denoiser:
    torch.manual_seed(4)
    config = RouterConfig(
        d_model=model.config.d_model, mode="residual", max_positions=64, blocks=blocks
    )
    router = Router(config).eval().requires_grad_(False)
    nn.init.normal_(router.out.weight)
    return routed(model_denoiser(model), router, model.embedding, MASK, model.blocks)


def with_head(model: LLaDA) -> Denoiser:
    torch.manual_seed(5)
    return policy_denoiser(model, PolicyHead(model.config.d_model, 8).eval().requires_grad_(False))


# ---- the same answers


@pytest.mark.parametrize(
    "options",
    [
        dict(cache="dual"),
        dict(cache="dual", threshold=0.2),
        dict(cache="prefix", threshold=0.2),
        dict(cache="dual", cache_refresh=3, temperature=0.8),
        dict(cache="dual", cfg_scale=0.7, threshold=0.2),
        dict(cache="dual", sampling_method="semi_ar_origin"),
        dict(cache="dual", revise=True, confidence_source="ups", steps=12),
        dict(),
        dict(threshold=0.2, early_stop=True),
    ],
    ids=str,
)
def test_answers_are_those_of_plain_forwards(make_model, options):
    """Rows leave blocks early under a threshold, batches have many shapes."""
    model = make_model()
    config = SamplerConfig(**{**dict(gen_length=12, block_length=6), **options})
    batches = [PROMPTS, PROMPTS[:1], PROMPTS[::-1] * 2, PROMPTS, [[6] * 9] * 3, PROMPTS]

    def answers() -> list:
        return [
            generate(model, prompts, config, special=SPECIAL, denoise=with_head(model))
            for prompts in batches
        ]

    expected = answers()
    replaying(model)
    assert answers() == expected
    assert num_replays() > len(Recorder.made) > 0 and not model.compiling.notes


@pytest.mark.parametrize(
    "options",
    [
        dict(threshold=0.06),
        pytest.param(dict(block_steps=2, cfg_scale=0.7), marks=pytest.mark.slow),
        pytest.param(dict(threshold=0.06, temperature=0.8), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_answers_of_rows_in_slots_are_those_of_plain_forwards_and_few_graphs_do(
    make_model, options
):
    """Rows of a block-causal model leave blocks and answers, and others join at any block.

    A bucket's further rows write into the slots of rows that are not in work.
    """
    model = make_model(
        attention="block_causal", block_length=4, n_kv_heads=2, max_sequence_length=256
    )
    draw = random.Random(0)
    prompts = [[draw.randrange(38) for _ in range(draw.randint(1, 60))] for _ in range(14)]
    config = SamplerConfig(gen_length=72, block_length=4, sampling_method="block_causal", **options)

    def answers() -> list:
        return decode(
            with_options(model_denoiser(model), config, SPECIAL),
            prompts,
            config,
            SPECIAL,
            stop=lambda answer: sum(answer) % 23 == 0,
            at_once=BatchLimit(lambda longest: 7),
        )

    expected = answers()
    replaying(model)
    assert answers() == expected
    assert answers() == expected  # in memory that holds other rows' keys and values
    assert not model.compiling.notes
    # 1, 2, 3, 4, 6 and 7 rows (12 and 14 of two branches), blocks of one and two, two lengths
    assert len(model.replays.forwards) <= 8 * 2 * 2
    assert num_replays() > 3 * len(model.replays.forwards) > 0
    assert any(call.captured.graph for call in model.replays.calls.kept.values())


@pytest.mark.parametrize("num_rows", [1, 3, 5])
def test_rows_in_slots_that_fill_their_bucket_have_no_mask(make_model, num_rows):
    """Where the canvas is as long as a bucket and no row is too many: in the last block here."""
    model = make_model(
        attention="block_causal", block_length=8, n_kv_heads=2, max_sequence_length=128
    )
    prompts = [row.tolist() for row in random_ids(num_rows, LENGTH_STEP - 16)]
    config = SamplerConfig(
        gen_length=16,
        block_length=8,
        sampling_method="block_causal",
        block_steps=8,
        logits_eos_inf=True,  # no row leaves
    )

    def answers() -> list:
        return generate(model, prompts, config, special=SPECIAL)

    expected = answers()
    replaying(model)
    assert [answers(), answers()] == [expected, expected]
    seen = {
        (shape.sees_all, shape.length, shape.num_rows)
        for shape in model.replays.forwards.kept
        if shape.width == 8
    }
    assert (True, LENGTH_STEP, num_rows) in seen
    assert all(rows == num_rows for sees_all, _, rows in seen if sees_all)
    kept = model.replays.forwards.kept
    assert all((kept[shape].view.visible is None) is shape.sees_all for shape in kept)
    assert num_replays() > 0 and not model.compiling.notes


def test_a_row_too_many_in_a_slot_has_a_mask_though_the_bucket_is_full(make_model):
    """Two rows of seven leave: the others come in a bucket of six, whose last one sees itself."""
    model = make_model(
        attention="block_causal", block_length=8, n_kv_heads=2, max_sequence_length=128
    )
    prompts = [row.tolist() for row in random_ids(7, LENGTH_STEP - 16)]
    config = SamplerConfig(
        gen_length=16,
        block_length=8,
        sampling_method="block_causal",
        block_steps=8,
        logits_eos_inf=True,
    )
    whole = [sample.answer for sample in generate(model, prompts, config, special=SPECIAL)]
    leaving = {tuple(answer[:8]) for answer in whole[2:4]}

    def leaves(answer: list[int]) -> bool:
        return tuple(answer[:8]) in leaving

    def answers() -> list:
        return generate(model, prompts, config, special=SPECIAL, stop=leaves)

    expected = answers()
    assert [len(sample.answer) for sample in expected] == [16, 16, 8, 8, 16, 16, 16]
    replaying(model)
    assert [answers(), answers()] == [expected, expected]
    later = {
        shape.sees_all
        for shape in model.replays.forwards.kept
        if (shape.width, shape.length, shape.num_rows) == (8, LENGTH_STEP, 6)
    }
    assert later == {False} and not model.compiling.notes


@pytest.mark.parametrize(
    "make",
    [
        bi_tower,
        lambda make_model: make_model(n_kv_heads=2, include_bias=True),
        lambda make_model: make_model(weight_tying=True),
    ],
    ids=["bi-tower", "grouped queries", "tied"],
)
def test_answers_and_likelihoods_of_every_kind_of_model_are_those_of_plain_forwards(
    make_model, make
):
    model = make(make_model)
    config = SamplerConfig(gen_length=8, block_length=8, cache="dual", threshold=0.06)
    pairs = [([5, 6], [7, 8, 9]), ([4, 3, 2], [3, 3])] * 2

    def outcomes() -> tuple:
        answers = [generate(model, PROMPTS, config, special=SPECIAL) for _ in range(2)]
        return answers, [
            round(each.value, 3)
            for each in log_likelihood(model, pairs, mc_num=6, batch_size=2, special=SPECIAL)
        ]

    expected = outcomes()
    replaying(model)
    assert outcomes() == expected
    assert num_replays() > 0 and not model.compiling.notes


def test_embeddings_of_a_router_are_read_anew_at_every_replay(make_model):
    model = make_model()
    config = SamplerConfig(gen_length=12, block_length=6, cache="dual")

    def answers() -> list:
        denoise = router_of(model, 1)
        return [generate(model, PROMPTS, config, special=SPECIAL, denoise=denoise) for _ in "ab"]

    expected = answers()
    replaying(model)
    assert answers() == expected and num_replays() > 0


def twice(draft: Draft) -> Filled:
    """A review that fills a block of copies first, and reads what became of them."""
    block = range(draft.number, draft.number + 1)
    copies = draft.tokens.repeat(2, 1)
    draft.fill(copies, draft.rows.repeat(2), torch.cat([draft.keys + 1, draft.keys + 2]), block)
    best = int(copies.sum(-1).argmax()) % len(draft.tokens)
    forwards = draft.fill(draft.tokens, draft.rows, draft.keys + best, block)
    return Filled(forwards, torch.zeros_like(forwards))


def test_observers_and_reviews_read_values_between_replays(make_model):
    model = make_model()
    config = SamplerConfig(gen_length=12, block_length=6, cache="dual", temperature=0.8)

    def outcome() -> tuple:
        seen = []
        samples = generate(
            model,
            PROMPTS,
            config,
            special=SPECIAL,
            review=twice,
            on_step=lambda step: seen.append((step.rows.tolist(), step.proposal.tolist())),
        )
        return samples, seen

    expected = outcome()
    replaying(model)
    assert outcome() == expected and num_replays() > 0 and not model.compiling.notes


# ---- one forward


@torch.inference_mode()
def steps_of(model: LLaDA, ids: Tensor, *windows: slice) -> list[Tensor]:
    """Hidden states of the first step of a block, and of later ones at these columns."""
    real = torch.arange(ids.shape[1]) >= torch.arange(len(ids))[:, None]
    past = Past()
    found = [model.streams(ids, real, past=past).hidden[real]]
    for number, window in enumerate(windows):
        changed = ids.clone()
        changed[:, window] = (ids[:, window] + number) % MASK
        hidden = model.streams(changed, real, past=past, columns=window).hidden
        found.append(hidden[real[:, window]])
    return found


def random_ids(num_rows: int, length: int) -> Tensor:
    return torch.randint(0, MASK, (num_rows, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("num_rows, length", [(1, 20), (3, 9), (5, 33)])
def test_hidden_states_are_those_of_plain_forwards(make_model, num_rows, length):
    model, ids = make_model(), random_ids(num_rows, length)
    windows = [slice(4, 8), slice(5, 9), slice(6, None), slice(4, 8), slice(0, 4)] * 2
    bound = measured(
        lambda of: torch.cat(list(map(torch.flatten, steps_of(of, ids, *windows)))), model
    )
    expected = steps_of(model, ids, *windows)
    replaying(model)
    for found, plain in zip(steps_of(model, ids, *windows), expected):
        torch.testing.assert_close(found, plain, atol=bound, rtol=0)
    assert num_replays() == 8 - WARM_UP  # the first step and slice(6, None) are other shapes


@torch.inference_mode()
@pytest.mark.parametrize("columns", [None, slice(3, 7), slice(5, None)], ids=str)
@pytest.mark.parametrize("by_row", [False, True], ids=["columns", "positions of rows"])
@pytest.mark.parametrize("of_pairs", [False, True], ids=["padding", "pairs"])
def test_masks_of_pairs_and_positions_of_rows_are_given_anew(
    make_model, columns: slice | None, by_row: bool, of_pairs: bool
):
    """Canvases of several lengths, which share a graph; what a bucket adds sees something."""
    model, draw = make_model(max_sequence_length=128), torch.Generator().manual_seed(3)
    batches = []
    for length in (12, 9, 20, 7, 15, 11):
        shape = (3, length, length) if of_pairs else (3, length)
        visible = torch.rand(shape, generator=draw) < 0.5
        visible.diagonal(dim1=-2, dim2=-1).fill_(True) if of_pairs else visible[:, 0].fill_(True)
        positions = torch.randint(0, 64, (3, length), generator=draw) if by_row else None
        batches.append((random_ids(3, length).roll(length, 1), visible, positions))

    def found(of: LLaDA) -> Tensor:
        hidden = []
        for ids, visible, positions in batches:
            past = None if columns is None else Past()
            hidden.append(of.streams(ids, visible, past=past, position_ids=positions).hidden)
            if columns is not None:
                hidden.append(
                    of.streams(
                        ids, visible, columns=columns, past=past, position_ids=positions
                    ).hidden
                )
        return torch.cat([each.flatten() for each in hidden])

    expected, bound = found(model), measured(found, model)
    torch.testing.assert_close(found(replaying(model)), expected, atol=bound, rtol=0)
    forms = 1 if columns is None else 2
    assert num_replays() == forms * (len(batches) - WARM_UP) and len(Recorder.made) == forms


@torch.inference_mode()
@pytest.mark.parametrize("length, sees_all", [(LENGTH_STEP, True), (LENGTH_STEP - 1, False)])
def test_a_canvas_that_fills_its_bucket_has_no_mask(make_model, length: int, sees_all: bool):
    """Nor do rows that leave bring one: what a spare row sees changes no other."""
    model, ids, window = make_model(max_sequence_length=128), random_ids(5, length), slice(8, 12)

    def decode(model: LLaDA) -> Tensor:
        past, found, rows = Past(), [], ids
        for number in range(2 * (WARM_UP + 2)):
            if number == WARM_UP + 2:  # 3 rows of 5 stay
                past.keep_rows(Rows(torch.tensor([4, 0, 2]), len(rows)).of)
                rows = ids[[4, 0, 2]]
            columns = window if past else slice(None)
            given = (rows + number) % MASK
            found.append(model.streams(given, past=past, columns=columns).hidden)
        return torch.cat([each.flatten() for each in found])

    expected, bound = decode(model), measured(decode, model)
    replaying(model)
    torch.testing.assert_close(decode(model), expected, atol=bound, rtol=0)
    later = [shape for shape in model.replays.forwards.kept if shape.width == 4]
    assert later and all(shape.sees_all is sees_all for shape in later)
    assert all((each.view.visible is None) is sees_all for each in forwards_of(model, later))
    assert num_replays() > 0


def forwards_of(model: LLaDA, shapes: list[Shape]) -> list[ReplayedForward]:
    return [model.replays.forwards.kept[shape] for shape in shapes]


@torch.inference_mode()
def test_what_a_forward_returns_stays_when_the_next_is_replayed(make_model):
    model = replaying(make_model())
    ids = [random_ids(2, 9).roll(shift, 1) for shift in range(6)]
    found = [model.streams(each).hidden for each in ids]
    kept = [each.clone() for each in found]
    for each in ids:
        model.streams(each)
    assert all(map(torch.equal, found, kept)) and num_replays() > 6
    assert not torch.equal(found[0], found[1])


class Empty(Recorder):
    """A graph of nothing: torch warns of one, and its replay leaves what was there."""

    def replay(self) -> None:
        self.num_replays += 1


class Elsewhere(Recorder):
    """A graph that reads other memory than the one that its inputs are put into."""

    def replay(self) -> None:
        operator, args, kwargs, new = self.calls[0]
        self.calls[0] = (operator, tuple(map(other_numbers, args)), kwargs, new)
        super().replay()


def other_numbers(value: Any) -> Any:
    return value.roll(1, -1) if isinstance(value, Tensor) and value.dtype == torch.long else value


@pytest.mark.parametrize("graph", [Empty, Elsewhere])
@torch.inference_mode()
def test_a_graph_whose_first_replay_computes_something_else_is_dropped(make_model, graph):
    model, ids = make_model(), [random_ids(2, 9).roll(shift, 1) for shift in range(6)]
    expected = [model.streams(each).hidden for each in ids]
    model.compile_layers("off", make_graph=graph)
    found = [model.streams(each).hidden for each in ids]
    assert num_replays() == 1
    bound = measured(lambda of: torch.cat([of.streams(each).hidden for each in ids]), model)
    torch.testing.assert_close(torch.cat(found), torch.cat(expected), atol=bound, rtol=0)
    (note,) = model.compiling.notes
    assert "the first replay gave other numbers than the work itself" in note


@torch.inference_mode()
def test_two_blocks_at_once_do_not_share_memory(make_model):
    model, ids = replaying(make_model()), random_ids(2, 9)
    first, second = Past(), Past()
    model.streams(ids, past=first)
    kept = [layer.keys.clone() for layer in first]
    model.streams(ids.roll(1, 1), past=second)
    assert first.is_lent and not second.is_lent
    assert all(torch.equal(layer.keys, keys) for layer, keys in zip(first, kept))
    del first
    gc.collect()
    third = Past()
    model.streams(ids, past=third)
    assert third.is_lent


@torch.inference_mode()
def test_memory_of_former_graphs_is_not_taken_for_that_of_later_ones(make_model):
    model, ids, window = make_model(), random_ids(2, 9), slice(4, 8)

    def later_step(of: LLaDA, past: Past) -> Tensor:
        of.streams(ids, past=past)
        return of.streams(ids, past=past, columns=window).hidden

    bound = measured(lambda of: later_step(of, Past()), model)
    expected, past, others = later_step(model, Past()), Past(), Past()
    later_step(replaying(model), past)
    replaying(model)  # in the middle of a block
    model.streams(ids.roll(1, 1), past=others)
    for _ in range(WARM_UP + 1):
        model.streams(ids.roll(1, 1), past=others, columns=window)
    assert num_replays() == 1
    found = model.streams(ids, past=past, columns=window).hidden
    torch.testing.assert_close(found, expected, atol=bound, rtol=0)


class Interrupted(Recorder):
    """A Graph before whose first replay another thread asks for a forward, too."""

    others: list[threading.Thread] = []

    def replay(self) -> None:
        for other in Interrupted.others:
            if other.ident is None:
                other.start()
                other.join(0.5)  # of a thread that has to wait for this replay
        super().replay()


@torch.inference_mode()
def test_threads_wait_for_each_other(make_model):
    model, ids, of_other = make_model(), random_ids(2, 9), random_ids(2, 9).roll(1, 1)
    fresh = make_model()
    expected = [replayed(replaying(fresh), each) for each in (ids, of_other)]
    model.compile_layers("off", make_graph=Interrupted)
    found: list[Tensor] = []

    def other() -> None:
        with torch.inference_mode():
            found.append(model.hidden_states(of_other))

    Interrupted.others = [threading.Thread(target=other)]
    for _ in range(WARM_UP):
        model.hidden_states(ids)
    found.insert(0, model.hidden_states(ids))
    Interrupted.others[0].join()
    Interrupted.others = []
    assert all(map(torch.equal, found, expected)) and len(found) == 2


# ---- a graph is of the model as it was


@torch.inference_mode()
def replayed(model: LLaDA, ids: Tensor) -> Tensor:
    """Of a forward that surely is replayed."""
    before = num_replays()
    for _ in range(WARM_UP + 2):
        found = model.hidden_states(ids)
    assert num_replays() >= before + 1
    return found


def in_place(model: LLaDA) -> None:
    model.blocks[0].ff_out.weight.mul_(2)


def other_data(model: LLaDA) -> None:
    model.blocks[0].ff_out.weight.data = 2 * model.blocks[0].ff_out.weight.data


def other_parameter(model: LLaDA) -> None:
    weight = model.blocks[0].ff_out.weight
    model.blocks[0].ff_out.weight = nn.Parameter(2 * weight, requires_grad=False)


def other_module(model: LLaDA) -> None:
    linear = nn.Linear(48, 32, bias=False).requires_grad_(False)
    linear.weight.copy_(2 * model.blocks[0].ff_out.weight)
    model.blocks[0].ff_out = linear


@pytest.mark.parametrize("change", [in_place, other_data, other_parameter, other_module])
def test_changed_weights_are_read(make_model, change):
    model, changed, ids = replaying(make_model()), make_model(), random_ids(2, 9)
    first = replayed(model, ids)
    change(model), change(changed)
    found = replayed(model, ids)
    assert not torch.equal(found, first)
    assert torch.equal(found, replayed(replaying(changed), ids))


# ---- what cannot be replayed runs as it is, and the log says why


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.name == compiling.__name__]


def test_seeds_of_several_blocks_run_without_graphs_and_the_log_says_so_once(make_model, caplog):
    model = make_model()
    config = SamplerConfig(gen_length=12, block_length=6, cache="dual")
    denoise = router_of(model, 2)
    expected = generate(model, PROMPTS, config, special=SPECIAL, denoise=denoise)
    replaying(model)
    assert generate(model, PROMPTS, config, special=SPECIAL, denoise=denoise) == expected
    [line] = told(caplog)
    assert line.startswith("forwards run without CUDA graphs: ") and "has hooks" in line
    assert not model.replays.forwards.kept


@torch.inference_mode()
def test_hooks_that_come_after_the_capture_are_called(make_model, caplog):
    model, ids = replaying(make_model()), random_ids(2, 9)
    first = replayed(model, ids)
    handle = model.blocks[1].register_forward_hook(lambda module, given, output: 2 * output)
    assert not torch.equal(model.hidden_states(ids), first)
    handle.remove()
    assert torch.equal(model.hidden_states(ids), first) and len(told(caplog)) == 1


@torch.inference_mode()
def test_an_adapter_that_is_not_merged_runs_without_graphs(make_model, caplog):
    model, ids = make_model(), random_ids(2, 9)
    plain = model.hidden_states(ids)
    options = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(model, options).eval()
    expected = model.hidden_states(ids)
    replaying(model)
    for _ in range(WARM_UP + 2):
        assert torch.equal(model.hidden_states(ids), expected)
        with adapted.disable_adapter():
            assert torch.equal(model.hidden_states(ids), plain)
    [line] = told(caplog)
    assert line.startswith("forwards run without CUDA graphs: ")
    for module in model.modules():
        module._forward_hooks.clear()  # peft's, where inputs shall have gradients
    assert "is a module of peft, which may compute otherwise the next time" in obstacle(model)


class Refusing(Recorder):
    """A Graph that fails as CUDA's does where the work waits for the device."""

    def capture(self, work: Callable[[], Streams]) -> Streams:
        raise RuntimeError("operation not permitted when stream is capturing\nmore of it")


def test_where_nothing_can_be_captured_forwards_run_and_the_log_says_why_once(make_model, caplog):
    model = make_model()
    config = SamplerConfig(gen_length=12, block_length=6, cache="dual")
    expected = generate(model, PROMPTS, config, special=SPECIAL)
    model.compile_layers("off", make_graph=Refusing)
    assert generate(model, PROMPTS, config, special=SPECIAL) == expected
    assert generate(model, PROMPTS, config, special=SPECIAL) == expected
    assert sorted(told(caplog)) == [
        f"{kind} run without CUDA graphs: none can be captured: operation not permitted when "
        "stream is capturing"
        for kind in ("decisions of steps", "forwards")
    ]


def test_experts_that_need_their_numbers_of_rows_run_without_graphs(make_model, caplog):
    model = make_model(num_experts=4, experts_per_token=2)
    config = SamplerConfig(gen_length=12, block_length=6, cache="dual")
    expected = generate(model, PROMPTS, config, special=SPECIAL)
    replaying(model)
    for _ in range(2):
        assert generate(model, PROMPTS, config, special=SPECIAL) == expected
    [line] = told(caplog)
    assert line.endswith("operation not permitted when stream is capturing")


def test_nothing_is_replayed_where_gradients_may_be_wanted(make_model):
    model, ids = replaying(make_model()), random_ids(2, 9)
    for _ in range(WARM_UP + 2):
        with torch.no_grad():
            model.hidden_states(ids)
    assert not Recorder.made


@torch.inference_mode()
def test_large_forwards_run_as_they_are(make_model):
    model = replaying(make_model())
    num_rows = LARGEST // 64
    for _ in range(WARM_UP + 1):
        model.hidden_states(random_ids(num_rows + 1, 30))
    assert not Recorder.made
    replayed(model, random_ids(num_rows, 30))


@torch.inference_mode()
def test_graphs_are_limited(make_model, caplog):
    model = replaying(make_model(max_sequence_length=4096))
    past, ids = Past(), random_ids(1, MAX_GRAPHS + 5)
    model.streams(ids, past=past)
    for width in range(1, MAX_GRAPHS + 4):
        model.streams(ids, past=past, columns=slice(0, width))
    assert len(model.replays.forwards) == MAX_GRAPHS and len(told(caplog)) == 1


# ---- memory


@pytest.mark.parametrize("num_rows", range(1, 70))
def test_a_bucket_has_room_for_its_rows_and_at_most_half_as_many_more(num_rows):
    room = row_bucket(num_rows)
    assert num_rows <= room <= 1.5 * num_rows and row_bucket(room) == room


@torch.inference_mode()
@pytest.mark.parametrize("is_lent", [True, False])
def test_rows_that_leave_take_nothing_from_those_that_stay(make_model, is_lent):
    model, past = make_model(), Past()
    if is_lent:
        replaying(model)
    model.streams(random_ids(7, 9), past=past)
    assert past.is_lent is is_lent
    place, before = storage(past[0].keys), [layer.keys.clone() for layer in past.present()]
    past.keep_rows(Rows(torch.tensor([6, 0, 3]), 7).of)
    past.keep_rows(Rows(torch.tensor([2, 1]), 3).of)
    for layer, keys in zip(past.present(), before):
        assert torch.equal(layer.keys, keys[[3, 0]])
    assert (storage(past[0].keys) == place) is is_lent


@pytest.mark.parametrize("columns", [slice(None), slice(2, 6)])
def test_a_compiler_finds_replayed_and_other_forwards_alike(make_model, columns: slice):
    """Tensors of inference and others have graphs of their own, and memory that stays is of it."""
    model = make_model()
    with torch.inference_mode():
        for _ in range(2):  # the first makes the tables
            tables = model.rotations.at(columns, 8, model.device, None)
            assert all(table.is_inference() for table in tables)
    # whose tables are no inference tensors
    model.requires_grad_(True)(random_ids(1, 8)).sum().backward()


@torch.inference_mode()
@pytest.mark.parametrize("num_rows, is_lent", [(16, True), (17, False), (24, True), (32, True)])
def test_many_rows_get_memory_that_stays_where_none_of_it_is_for_others(
    make_model, num_rows: int, is_lent: bool
):
    past = Past()
    replaying(make_model()).streams(random_ids(num_rows, 9), past=past)
    assert past.is_lent is is_lent
    assert not is_lent or past[0].keys.shape[0] == num_rows


@torch.inference_mode()
def test_many_rows_find_the_memory_of_few_free_once_nothing_holds_it(make_model):
    model, few, many = replaying(make_model()), random_ids(3, 9), random_ids(MOST_ROWS + 1, 9)
    past = Past()
    model.streams(few, past=past)
    kept = weakref.ref(model.replays.memory.layers[0].keys)
    model.streams(many, past=Past())
    assert kept() is not None and past.is_lent  # it is in use
    del past
    model.streams(many, past=Past())
    assert kept() is None
