"""What steps decide, replayed: the answers of steps that run as they are.

The graph of tests/test_replay.py notes operators and the tensors that they read, and spoils
what the work had made. So a value that is not given anew would be seen here.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from llada_plugins.diffusion.denoiser import (
    Canvas,
    Denoiser,
    HeadOf,
    Prediction,
    model_denoiser,
)
from llada_plugins.diffusion.guidance import GuidedLogits, LogitsWithout
from llada_plugins.models.captured import WARM_UP
from llada_plugins.models.llada import LLaDA
from llada_plugins.models.records import NoForm, form
from llada_plugins.models.replayed_call import MOST_POSITIONS, Size
from llada_plugins.sampling.config import SamplerConfig
from llada_plugins.sampling.draft import Sample
from llada_plugins.sampling.generate import generate
from tests.test_replay import (
    PROMPTS,
    SPECIAL,
    Recorder,
    Refusing,
    recorders,
    replaying,
    told,
    with_head,
)

__all__ = ["recorders"]  # a fixture
pytestmark = pytest.mark.floats
SLOW = pytest.mark.slow


def decided(model: LLaDA) -> list[Recorder]:
    """The graphs of decisions that were captured."""
    graphs = [each.captured.graph for each in model.replays.calls.kept.values()]
    return [each for each in graphs if each is not None]


def answers_of(model: LLaDA, denoise: Denoiser | None = None, **options: Any) -> list[Sample]:
    """Of batches of several sizes; under a threshold rows leave early."""
    config = SamplerConfig(**{**dict(gen_length=8, block_length=4, cache="dual"), **options})
    batches = (PROMPTS[:3], PROMPTS[:1], PROMPTS[::-1] + PROMPTS[:1])
    return [
        sample
        for prompts in batches
        for sample in generate(model, prompts, config, special=SPECIAL, denoise=denoise)
    ]


@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(threshold=0.06, temperature=0.8, top_k=9, top_p=0.9),
        pytest.param(dict(alg_temp=0.5, cache="prefix"), marks=SLOW),
        pytest.param(
            dict(cfg_scale=0.7, logits_eos_inf=True, confidence_eos_eot_inf=True), marks=SLOW
        ),
        dict(revise=True, confidence_source="ups", steps=12),
        pytest.param(dict(edit_threshold=0.02, threshold=0.06), marks=SLOW),
        pytest.param(dict(block_add_threshold=0.5, threshold=0.06, cache="prefix"), marks=SLOW),
        pytest.param(dict(confidence_source="entropy", cache="none"), marks=SLOW),
        pytest.param(dict(confidence_source="margin", error_budget=0.9), marks=SLOW),
        pytest.param(dict(remask_ratio=0.5), marks=SLOW),
        pytest.param(
            dict(schedule="independent", confidence_source="random", steps=12), marks=SLOW
        ),
        pytest.param(dict(threshold_entropy=3.6), marks=SLOW),
        pytest.param(dict(threshold=0.06, sub_block_length=2, stop_at="eos"), marks=SLOW),
        pytest.param(dict(confidence_of="filtered", temperature=0.7, top_k=5), marks=SLOW),
    ],
    ids=str,
)
def test_answers_are_those_of_decisions_that_run_as_they_are(make_model, options):
    model = make_model()
    expected = answers_of(model, with_head(model), **options)
    replaying(model)
    for _ in range(WARM_UP + 2):
        assert answers_of(model, with_head(model), **options) == expected
    graphs = decided(model)
    assert len(graphs) >= 3 and sum(graph.num_replays for graph in graphs) > 2 * len(graphs)
    assert not model.compiling.notes


def test_observers_see_what_each_step_did(make_model):
    model = make_model()
    config = SamplerConfig(gen_length=8, block_length=4, cache="dual", threshold=0.06)

    def seen() -> list[list[Any]]:
        """Kept until the end: no step's facts lie where another's will."""
        steps: list[Any] = []
        generate(model, PROMPTS, config, special=SPECIAL, on_step=steps.append)
        fields = ("proposal", "masked", "kept", "replaced")
        return [[getattr(step, name).tolist() for name in fields] for step in steps]

    expected = seen()
    replaying(model)
    for _ in range(WARM_UP + 2):
        assert seen() == expected
    assert decided(model)


# ---- what is not data is not frozen


def test_a_closure_that_changes_logits_is_called_at_every_step(make_model):
    """A wrapper may look at anything; so its steps have no graphs."""
    model = make_model()
    plain = model_denoiser(model)

    def otherwise(canvas: Canvas, window: slice) -> Prediction:
        prediction = plain(canvas, window)
        bias = torch.zeros(40)
        bias[int(canvas.tokens.sum()) % 30] = 50.0  # another token at each step
        return prediction._replace(logits_at=lambda at: prediction.logits_at(at) + bias)

    expected = answers_of(model, otherwise)
    replaying(model)
    for _ in range(WARM_UP + 2):
        assert answers_of(model, otherwise) == expected
    assert not model.replays.calls.kept


class Other(NamedTuple):
    """A record of one tensor, as HeadOf's and others are."""

    values: Tensor


def test_calls_share_a_form_where_their_tensors_alone_differ(make_model):
    model, other = make_model(), make_model()
    states = torch.ones(2, 4, 32)
    head = HeadOf(model.head, states)
    assert form(head, 2) == form(head._replace(states=0 * states), 2)
    different = [
        head._replace(states=states[:, :3]),
        head._replace(states=states.double()),
        head._replace(states=states.repeat(2, 1, 1)),
        head._replace(head=other.head),
        GuidedLogits(head, 0.5, 2),
        GuidedLogits(head, 0.7, 2),
        LogitsWithout(head, (3,)),
        LogitsWithout(head, (4,)),
        Other(states),
    ]
    forms = [form(each, 2) for each in (head, *different)]
    assert len(set(forms)) == len(forms)


@pytest.mark.parametrize(
    "value",
    [lambda at: at, Other(torch.ones(3)), Other(torch.tensor(1.0)), LogitsWithout(print, ())],
    ids=["a closure", "other rows", "no rows", "a function in a record"],
)
def test_what_may_hide_a_tensor_or_has_other_rows_has_no_form(value):
    with pytest.raises(NoForm):
        form(value, 2)


# ---- a graph is of the head as it was


@torch.no_grad()
@pytest.mark.parametrize("tied", [False, pytest.param(True, marks=SLOW)])
def test_another_head_is_computed_with(make_model, tied):
    model, changed = make_model(weight_tying=tied), make_model(weight_tying=tied)
    replaying(model)
    for _ in range(WARM_UP + 2):
        before = answers_of(model)
    assert decided(model)
    for each in (model, changed):
        name = "wte" if tied else "ff_out"
        other = copy.deepcopy(each.transformer[name])
        other.weight.copy_(other.weight.roll(1, 0))
        each.transformer[name] = other
    expected = answers_of(changed)
    assert answers_of(model) == expected != before


def test_hooks_of_a_head_are_called(make_model, caplog):
    model = replaying(make_model())
    for _ in range(WARM_UP + 2):
        before = answers_of(model)
    handle = model.transformer["ff_out"].register_forward_hook(
        lambda module, given, output: output.roll(1, -1)
    )
    assert answers_of(model) != before
    handle.remove()
    assert answers_of(model) == before
    assert [line for line in told(caplog) if line.startswith("decisions of steps run without")]


# ---- what cannot be replayed runs as it is


@SLOW
def test_a_rule_that_looks_at_values_is_never_captured(make_model):
    model = make_model()
    options = dict(max_dependence=0.5, threshold=0.06)
    expected = answers_of(model, **options)
    replaying(model)
    for _ in range(WARM_UP + 2):
        assert answers_of(model, **options) == expected
    assert not model.replays.calls.kept and not model.compiling.notes


def test_where_no_decision_can_be_captured_the_log_says_so_once(make_model, caplog):
    model = make_model()
    expected = answers_of(model, cache="none")
    model.compile_layers("off", make_graph=Refusing)
    model.replays.forwards.failed = True  # then nothing else is captured
    for _ in range(WARM_UP + 2):
        assert answers_of(model, cache="none") == expected
    [line] = told(caplog)
    assert line.startswith("decisions of steps run without CUDA graphs: none can be captured: ")


@pytest.mark.parametrize("num_rows", [1, 3, 16, 500])
@pytest.mark.parametrize("width", [1, 3, 4, 32, 1000])
def test_a_bucket_has_room_for_all_and_few_sizes_of_columns(num_rows, width):
    sizes = [Size(num_rows, number, width) for number in range(1, width + 1)]
    buckets = [size.bucket() for size in sizes]
    for size, bucket in zip(sizes, buckets):
        assert size.num_rows <= bucket.num_rows and size.num_columns <= bucket.num_columns <= width
        assert size.is_small is (num_rows * size.num_columns <= MOST_POSITIONS)
    assert len({bucket.num_columns for bucket in buckets}) <= 4
