"""Compiled layers: the numbers of eager ones, few graphs, and no silent way back to eager.

Where only Python is asked (guards, graphs, what is written to the log), a backend that
runs the captured graph as it is takes inductor's place: it is the same capture without
the C++ compiler.
"""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Callable
from functools import partial

import peft
import pytest
import torch
from torch import Tensor, nn

from llada_plugins.diffusion.denoiser import Canvas, Denoiser, Prediction, model_denoiser
from llada_plugins.engine.engine import Engine, Request
from llada_plugins.likelihood.estimate import log_likelihood
from llada_plugins.methods.router import Router, RouterConfig
from llada_plugins.methods.routing import routed
from llada_plugins.models import compiling
from llada_plugins.models.bitower import AFTER_LAYERS, BiTowerLLaDA
from llada_plugins.models.compiling import WORTHWHILE, Compiling, check_compile
from llada_plugins.models.initial import initialise
from llada_plugins.models.llada import LLaDA
from llada_plugins.models.loading import load_model
from llada_plugins.models.past import Past
from llada_plugins.models.special_tokens import SpecialTokens
from llada_plugins.sampling.config import SamplerConfig
from llada_plugins.sampling.generate import generate
from tests.tolerance import in_float64, largest, measured, twice_naive

pytestmark = pytest.mark.floats

MASK, EOS = 39, 38  # of make_model's models
SPECIAL = SpecialTokens(MASK, EOS)
PROMPTS = [[5, 6, 7], [8], [4, 4, 9, 10, 11, 12], [14, 5]]


class Graphs:
    """A backend of torch.compile that runs each captured graph as it is, and counts them."""

    def __init__(self) -> None:
        self.num_calls: list[int] = []  # of each graph

    def __call__(self, graph: torch.fx.GraphModule, examples: list) -> Callable:
        number = len(self.num_calls)
        self.num_calls.append(0)

        def run(*given: Tensor) -> tuple:
            self.num_calls[number] += 1
            return graph.forward(*given)

        return run


@pytest.fixture
def graphs() -> Graphs:
    torch._dynamo.reset()
    return Graphs()


def tokens(num_rows: int, length: int) -> Tensor:
    return torch.randint(
        0, MASK, (num_rows, length), generator=torch.Generator().manual_seed(num_rows)
    )


# ---- the same numbers


def outputs(model: LLaDA) -> Tensor:
    """Hidden states of forwards of every form, in two shapes."""
    found = []
    with torch.inference_mode():
        for num_rows, length in ((3, 10), (1, 12)):
            ids = tokens(num_rows, length)
            real = torch.arange(length) >= torch.arange(num_rows)[:, None]
            for mask in (None, real):
                past = Past()
                found += [
                    model.streams(ids, mask).hidden,
                    model.streams(ids, mask, past=past).hidden,
                    model.streams(ids, mask, past=past, columns=slice(3, 7)).hidden,
                ]
    return torch.cat([each[each.isfinite()].flatten() for each in found])


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields", [{}, dict(n_kv_heads=2, include_bias=True, rope_full_precision=False)], ids=str
)
def test_inductors_layers_give_the_numbers_of_eager_ones(make_model, fields):
    torch._dynamo.reset()
    model = make_model(**fields)
    bound = measured(outputs, model)
    expected = outputs(model)
    model.compile_layers("on")
    found = outputs(model)
    assert not model.compiling.notes
    torch.testing.assert_close(found, expected, atol=bound, rtol=0)
    assert largest(found - expected) <= 1e-5 * largest(expected)


@pytest.mark.slow
def test_inductors_bfloat16_is_as_close_to_float32_as_eager_bfloat16_is(make_model):
    torch._dynamo.reset()
    model = make_model().bfloat16()
    exact = outputs(in_float64(model))
    bound = twice_naive(outputs(model), exact)
    model.compile_layers("on")
    torch.testing.assert_close(outputs(model).double(), exact, atol=bound, rtol=0)
    assert not model.compiling.notes


@torch.inference_mode()
def test_a_captured_layer_gives_the_numbers_of_an_eager_one(make_model, graphs):
    model, ids, real = make_model(), tokens(3, 10), torch.arange(10) >= torch.arange(3)[:, None]
    expected, past = model.streams(ids, real).hidden, Past()
    model.compile_layers("on", graphs)
    assert torch.equal(model.streams(ids, real, past=past).hidden, expected)
    model.compile_layers("off")
    ids[:, 3:7] = MASK
    eager_past = copy.deepcopy(past)
    expected = model.streams(ids, real, past=eager_past, columns=slice(3, 7)).hidden
    model.compile_layers("on", graphs)
    assert torch.equal(model.streams(ids, real, past=past, columns=slice(3, 7)).hidden, expected)
    for found, layer in zip(past, eager_past):
        assert torch.equal(found.keys, layer.keys) and torch.equal(found.values, layer.values)
    assert sum(graphs.num_calls) == 2 * model.config.n_layers and not model.compiling.notes


@pytest.mark.slow
@torch.inference_mode()
def test_inductor_writes_keys_and_values_in_place(make_model):
    """A copy of all columns and back would cost more than the step of a few."""
    torch._dynamo.reset()
    model, ids, past = make_model(n_layers=1), tokens(2, 24), Past()
    model.streams(ids, past=past)
    model.compile_layers("on")
    work = partial(model.streams, ids, past=past, columns=slice(3, 7))
    _, [code] = torch._inductor.utils.run_and_get_code(work)
    assert "index_put" in code and "copy__" not in code
    made = re.findall(r"= empty_strided_\w+\(\((.*?)\)", code)
    (length,) = set(re.findall(r"assert_size_stride\(arg\w+, \(s\w+, 4, (s\w+), 8\)", code))
    assert made and not any(length in shape for shape in made)


# ---- few graphs


@pytest.mark.parametrize(
    "cache", ["none", *(pytest.param(each, marks=pytest.mark.slow) for each in ("prefix", "dual"))]
)
def test_a_decode_whose_rows_leave_needs_at_most_three_graphs_a_form(make_model, graphs, cache):
    """Batches of many sizes and lengths, blocks at many places, padded or not."""
    torch._dynamo.utils.counters.clear()
    model = make_model()
    model.compile_layers("on", graphs)
    config = SamplerConfig(gen_length=12, block_length=4, threshold=0.06, cache=cache)
    shapes: set[torch.Size] = set()

    def seen(layer: nn.Module, given: tuple) -> None:
        forms[given[3] is not None, len(given) > 4] += 1
        shapes.add(given[0].shape)

    forms: Counter[tuple[bool, bool]] = Counter()  # is there a mask, are there keys
    handle = model.blocks[0].register_forward_pre_hook(seen)
    batches = (PROMPTS, PROMPTS[:2], PROMPTS[::-1] * 2, [[3, 4]] * 5, [[6] * 9] * 2, PROMPTS[2:3])
    for prompts in batches:
        generate(model, prompts, config, special=SPECIAL)
    handle.remove()
    assert len(shapes) >= 6 and len(forms) == 2
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == len(graphs.num_calls)
    assert len(graphs.num_calls) <= 3 * len(forms)
    assert sum(graphs.num_calls) == model.config.n_layers * forms.total()
    assert not model.compiling.notes


@pytest.mark.slow
def test_rows_in_slots_have_the_answers_of_eager_layers_and_at_most_four_graphs_a_form(
    make_model, graphs
):
    """Rows join and leave at any block; a block's first forward has a mask of pairs."""
    torch._dynamo.utils.counters.clear()
    model = make_model(attention="block_causal", block_length=4, n_kv_heads=2)
    config = SamplerConfig(gen_length=14, threshold=0.06)
    batches = (PROMPTS, PROMPTS[:2], PROMPTS[::-1] * 2, [[3, 4]] * 5, [[6] * 9] * 2, PROMPTS[2:3])

    def answers() -> list:
        return [generate(model, prompts, config, special=SPECIAL) for prompts in batches]

    expected = answers()
    model.compile_layers("on", graphs)
    assert answers() == expected
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == len(graphs.num_calls)
    assert len(graphs.num_calls) <= 4 * 3  # no mask, one for all columns, one of pairs
    assert not model.compiling.notes


def test_all_layers_share_their_graphs(make_model, graphs):
    model = make_model(n_layers=5)
    model.compile_layers("on", graphs)
    with torch.inference_mode():
        model(tokens(2, 9))
    assert graphs.num_calls == [5]


@pytest.mark.slow
def test_a_bi_towers_streams_share_their_graphs_too(make_model, graphs):
    config = make_model(
        d_model=8, n_heads=2, mlp_hidden_size=8, n_layers=AFTER_LAYERS[-1] + 1
    ).config
    model = BiTowerLLaDA(config).eval().requires_grad_(False)
    initialise(model, torch.Generator().manual_seed(0))
    expected = outputs(model)
    model.compile_layers("on", graphs)
    assert torch.equal(outputs(model), expected)
    assert not model.compiling.notes and len(graphs.num_calls) <= 3 * 4


@pytest.mark.slow
def test_layers_of_a_block_causal_mixture_run_compiled(golden, graphs):
    folder = golden / "families" / "llada2" / "checkpoint"
    model = load_model(folder, device="cpu", dtype="float32")
    rows, real = tokens(3, 41), torch.arange(41) >= torch.tensor([[0], [3], [11]])
    with torch.inference_mode():
        expected = [model(rows, mask) for mask in (None, real)]
        model.compile_layers("on", graphs)
        found = [model(rows, mask) for mask in (None, real)]
    assert all(map(torch.equal, found, expected))
    assert sum(graphs.num_calls) > 0 and not model.compiling.notes


# ---- what is built around and into a layer


@pytest.mark.slow
def test_answers_likelihoods_and_routed_seeds_are_those_of_eager_layers(make_model, graphs):
    model = make_model()
    torch.manual_seed(0)
    router = Router(RouterConfig(d_model=32, mode="residual", max_positions=64, blocks=2))
    nn.init.normal_(router.out.weight)
    router.eval().requires_grad_(False)
    denoise = routed(model_denoiser(model), router, model.embedding, MASK, model.blocks)
    pairs = [([5, 6], [7, 8, 9]), ([4], [3, 3])]

    def outcomes() -> tuple:
        options = dict(gen_length=8, block_length=4, cache="dual", cfg_scale=0.5)
        config = SamplerConfig(temperature=0.7, **options)
        return (
            generate(model, PROMPTS, config, special=SPECIAL, denoise=denoise),
            log_likelihood(model, pairs, mc_num=4, special=SPECIAL),
        )

    expected = outcomes()
    model.compile_layers("on", graphs)
    assert outcomes() == expected
    assert sum(graphs.num_calls) > 0 and not model.compiling.notes


def test_an_adapter_takes_part_until_it_is_switched_off(make_model, graphs):
    model, ids = make_model(), tokens(2, 9)
    plain = model(ids)
    torch.manual_seed(1)
    options = peft.LoraConfig(r=2, target_modules=["q_proj", "ff_out"], init_lora_weights=False)
    adapted = peft.get_peft_model(model, options).eval().requires_grad_(False)
    expected = model(ids)
    model.compile_layers("on", graphs)
    assert torch.equal(model(ids), expected) and not torch.equal(expected, plain)
    with adapted.disable_adapter(), torch.no_grad():  # which lets the adapter train again
        assert torch.equal(model(ids), plain)
    assert sum(graphs.num_calls) > 0 and not model.compiling.notes


@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_are_those_of_eager_layers(make_model, graphs, recompute):
    model = make_model().requires_grad_(True).train()

    def gradients() -> list[Tensor]:
        model.zero_grad()
        model(tokens(2, 9), torch.ones(2, 9)).square().sum().backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    expected = gradients()
    model.compile_layers("on", graphs)
    if recompute:
        model.activation_checkpointing_enable()
    assert all(map(torch.equal, gradients(), expected))
    assert sum(graphs.num_calls) > 0 and not model.compiling.notes


def test_a_model_that_is_compiled_whole_takes_its_layers_along(make_model, graphs):
    """As transformers' Trainer compiles it under --torch_compile."""
    model, ids = make_model(), tokens(2, 9)
    expected = model(ids)
    of_layers = Graphs()
    model.compile_layers("on", of_layers)
    assert torch.equal(torch.compile(model, backend=graphs)(ids), expected)
    assert graphs.num_calls and not of_layers.num_calls and not model.compiling.notes


# ---- what cannot be compiled runs eager, and the log says why


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.name == compiling.__name__]


@pytest.mark.parametrize("when", ["before the first call", "after it"])
def test_hooks_inside_a_layer_are_called_and_the_log_says_that_it_runs_eager(
    make_model, graphs, caplog, when
):
    model, ids = make_model(), tokens(2, 9)
    plain = model(ids)
    model.compile_layers("on", graphs)
    if when == "after it":
        model(ids)
    handle = model.blocks[1].v_proj.register_forward_hook(lambda module, given, output: 2 * output)
    hooked = model(ids)
    model(ids)
    handle.remove()
    assert torch.equal(model(ids), plain) and not torch.equal(hooked, plain)
    [line] = told(caplog)
    assert line.startswith("layers run eager: a layer's v_proj has hooks")


class Unforeseeable(nn.Linear):
    """A Linear whose forward asks a tensor for a value, as routing to experts may."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (2 if x.sum().item() > 0 else 1)


def test_what_cannot_be_captured_runs_eager_and_the_log_says_why_once(make_model, graphs, caplog):
    model, ids = make_model(), tokens(2, 9)
    layer = model.blocks[1]
    weight, layer.v_proj = layer.v_proj.weight, Unforeseeable(32, 32, bias=False)
    layer.v_proj.weight = weight
    expected = model(ids)
    model.compile_layers("on", graphs)
    assert torch.equal(model(ids), expected) and torch.equal(model(ids), expected)
    [line] = told(caplog)
    assert line.startswith("layers run eager: torch.compile cannot work on them: ")


def test_an_error_of_the_layer_itself_is_raised_as_it_is(make_model, graphs):
    model = make_model()
    model.compile_layers("on", graphs)
    model.blocks[0].ff_out.weight = nn.Parameter(torch.zeros(3, 5))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        model(tokens(2, 9))


# ---- when


@pytest.mark.parametrize(
    "mode, device, num_forwards, wanted",
    [
        ("off", "cuda", 10 * WORTHWHILE, False),
        ("on", "cpu", 0, True),
        ("auto", "cpu", 10 * WORTHWHILE, False),
        ("auto", "cuda", WORTHWHILE - 1, False),
        ("auto", "cuda", WORTHWHILE, True),
    ],
)
def test_auto_compiles_on_a_gpu_once_enough_forwards_are_in_sight(
    mode, device, num_forwards, wanted
):
    asked = Compiling(mode)
    asked.foresee(num_forwards)
    assert asked.wanted(torch.device(device)) is wanted


def counted(denoise: Denoiser, calls: list[int]) -> Denoiser:
    def denoise_counted(canvas: Canvas, window: slice) -> Prediction:
        calls.append(len(canvas.tokens))
        return denoise(canvas, window)

    return denoise_counted


@pytest.mark.parametrize(
    "options",
    [dict(), dict(steps=6, block_length=4), dict(block_length=6, threshold=1.0)],
    ids=str,
)
def test_the_forwards_in_sight_are_those_that_a_decode_makes(make_model, options):
    model, calls = make_model(), []
    config = SamplerConfig(gen_length=12, **options)
    generate(model, PROMPTS, config, special=SPECIAL, denoise=counted(model_denoiser(model), calls))
    assert model.compiling.num_forwards == len(calls)


def test_the_forwards_in_sight_are_those_that_a_likelihood_makes_at_most(make_model):
    model, calls = make_model(), []
    denoise = counted(model_denoiser(model), calls)
    pairs = [([5, 6], [7, 8, 9, 10]), ([4], [3, 3, 5, 6])]
    options = dict(mc_num=12, batch_size=8, special=SPECIAL, denoise=denoise)
    log_likelihood(model, pairs, estimator="bernoulli", **options)
    assert model.compiling.num_forwards == 3 >= len(calls) > 1  # equal rows are run once


def test_an_engine_sees_the_forwards_of_all_its_batches(tiny_checkpoint):
    engine = Engine(pretrained=str(tiny_checkpoint), batch_size=2, gen_length=4, steps=2)
    list(
        engine.generate([Request(prompt, engine.sampler) for prompt in ("a", "bc", "d", "e", "f")])
    )
    assert engine.model.compiling.mode == "auto"
    assert engine.model.compiling.num_forwards == 3 * 2


# ---- options


def test_another_word_is_refused_before_weights_are_read(tiny_checkpoint):
    with pytest.raises(ValueError, match="compile must be one of auto, on, off, got 'yes'"):
        load_model(tiny_checkpoint, compile="yes")


def test_on_without_a_compiler_is_refused_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    check_compile("auto", torch.device("cpu"))
    with pytest.raises(
        ImportError, match="compile=on cannot work: no C\\+\\+ compiler on the PATH: "
    ):
        check_compile("on", torch.device("cpu"))


@pytest.mark.parametrize(
    "said, mode", [("on", "on"), (True, "on"), (False, "off"), ("auto", "auto")]
)
def test_yaml_may_say_on_or_off_as_true_or_false(tiny_checkpoint, said, mode):
    assert Engine(pretrained=str(tiny_checkpoint), compile=said).model.compiling.mode == mode
