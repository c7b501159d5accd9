"""No answer and no value depends on batches, order, processes or kills: the table of invariance.py.

Engines in this process; for those of both harnesses see test_invariance_harness.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from torch import Tensor

from llada_plugins.engine.engine import Engine
from llada_plugins.likelihood.estimators import ESTIMATORS
from llada_plugins.methods.router import load_router
from llada_plugins.methods.routing import RoutedLLaDA
from llada_plugins.methods.table import METHODS
from llada_plugins.models.families import FAMILIES
from llada_plugins.models.llada_config import ATTENTIONS
from llada_plugins.rewards.review_config import DEFAULTS as REVIEWS
from llada_plugins.sampling.confidence import CONFIDENCE
from llada_plugins.sampling.config import SamplerConfig
from llada_plugins.sampling.facts import ADAPTIVE_RULES
from llada_plugins.sampling.options import SamplerOptions
from llada_plugins.sampling.unmask_schedule import SCHEDULES
from tests.invariance import (
    ADD_ONS,
    ALONE,
    BASE,
    CACHES,
    KINDS,
    NETWORKS,
    NOT_VARIED,
    OF_CACHES,
    PUBLISHED_SAMPLERS,
    RULES,
    SCORING,
    WITH_METHODS,
    Cell,
    Engines,
    differences,
    pairs_of,
    values,
    ways_of,
)
from tests.tolerance import likelihood_error, measured

pytestmark = pytest.mark.floats

# of either attention; make test takes a few cells of the first, make test-slow all others
FAST, ONE_IN = ("llada", "sdar"), 8
every_network = pytest.mark.parametrize("network", NETWORKS)


@pytest.fixture(scope="module")
def engines(tmp_path_factory) -> Engines:
    return Engines(tmp_path_factory.mktemp("invariance"), device="cpu", dtype="float32")


# ---- rows


def test_every_option_of_the_sampler_is_a_row() -> None:
    """A new one is taken up by itself; where it goes with no other, this says so."""
    rows = [*CACHES.values(), *RULES.values()]
    for field in fields(SamplerOptions):
        is_row = field.name in NOT_VARIED or any(field.name in row for row in rows)
        assert is_row, f"{field.name}: give it a value in VALUES"
    assert not ALONE, "give them a value in VALUES, or what they need in COMPANIONS"
    assert set(NOT_VARIED) <= {field.name for field in fields(SamplerOptions)}
    assert set(OF_CACHES) <= {name for row in CACHES.values() for name in row}


def test_every_row_of_the_packages_tables_is_a_row() -> None:
    found = [
        SamplerConfig(**{**BASE, **row})
        for name, row in RULES.items()
        if name not in PUBLISHED_SAMPLERS
    ]
    assert {each.source for each in found} == set(CONFIDENCE)
    assert {each.fixed_schedule for each in found} == set(SCHEDULES)
    assert {rule for rule in ADAPTIVE_RULES for each in found if getattr(each, rule)} == set(
        ADAPTIVE_RULES
    )
    assert {each["method_name"] for each in WITH_METHODS.values()} == set(METHODS) == set(ADD_ONS)
    assert len(WITH_METHODS) == len(METHODS) - 1 + len(REVIEWS)
    assert {each["family"] for each in NETWORKS.values()} == set(FAMILIES)
    assert {NETWORKS[kind]["attention"] for kind in KINDS} == set(ATTENTIONS)
    assert set(PUBLISHED_SAMPLERS) <= {row.sampler for row in FAMILIES.values()}
    assert set(ESTIMATORS) <= set(SCORING)


# ---- answers


def check(engines: Engines, cells: Sequence[Cell]) -> None:
    """Hold each cell to every variation, and tell all that fail."""
    found = [
        f"{cell}: {difference}"
        for cell in cells
        for difference in differences(engines.engine(cell.network, cell.method), cell.options)
    ]
    assert not found, "\n".join(found)


# most time of sdar's goes by until it is known which caches it is without
@pytest.mark.parametrize("network", [FAST[0], pytest.param(FAST[1], marks=pytest.mark.slow)])
def test_some_answers_depend_on_no_batch_order_process_or_kill(engines, network) -> None:
    check(engines, engines.cells(network)[0][::ONE_IN])


@pytest.mark.slow
@every_network
def test_no_answer_depends_on_batches_order_processes_or_kills(engines, network) -> None:
    cells = engines.cells(network)[0]
    if network in FAST:
        del cells[::ONE_IN]
    check(engines, cells)


@pytest.mark.slow
@every_network
def test_rows_that_a_network_is_without_are_refused_by_themselves_in_a_line(engines, network):
    for name in engines.cells(network)[1]:
        cache = name if name in CACHES else "auto"
        rule = name if name in RULES else "plain"
        refusal = engines.refusal(Cell(network, "llada", cache, rule))
        assert refusal and "\n" not in refusal, name


@pytest.mark.slow
def test_every_cache_and_rule_has_a_cell(engines) -> None:
    of_samplers = {row.sampler: name for name, row in FAMILIES.items()}
    networks = {*KINDS, *(of_samplers[name] for name in PUBLISHED_SAMPLERS)}
    cells = [cell for network in sorted(networks) for cell in engines.cells(network)[0]]
    assert {cell.rule for cell in cells} == set(RULES)
    assert {cell.cache for cell in cells} == set(CACHES)
    assert {cell.method for cell in cells} == set(WITH_METHODS)


# ---- values


def token_bound(engine: Engine) -> float:
    """How much two float32 log-probabilities of a token differ, in nats."""
    scale, folder = engine.common.cfg_scale, getattr(engine.method_options, "router", None)
    if folder is None:
        return likelihood_error(engine.model, 1, scale)
    module = RoutedLLaDA(engine.model, load_router(Path(folder), engine.model), engine.special.mask)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 256, (8, 24), generator=generator)
    starts = torch.randint(1, 20, (8,), generator=generator)
    tokens[torch.arange(24) >= starts[:, None]] = engine.special.mask

    def log_p(of: RoutedLLaDA) -> Tensor:
        together = of(tokens, prompt_lengths=starts)
        alone = [of(row[None], prompt_lengths=start[None]) for row, start in zip(tokens, starts)]
        logits = torch.cat([together, *alone])
        return (logits + scale * (logits - logits.roll(1, 0))).log_softmax(-1)

    return measured(log_p, module)


def check_values(engines: Engines, network: str, method: str, way: str) -> None:
    """Hold the values of one way to score to every variation."""
    engine = engines.scoring(network, method, way)
    pairs = pairs_of(engine)
    alone, *others = values(engine, pairs).items()
    bound = token_bound(engine)
    assert len({estimate.value for estimate in alone[1]}) == len(pairs)
    for name, found in others:
        for (_, answer), one, other in zip(pairs, alone[1], found):
            where = f"{network}, {method}, {way}, {name}: {other}, alone {one}"
            assert one.num_forwards == other.num_forwards and one.greedy == other.greedy, where
            torch.testing.assert_close(
                torch.tensor([other.value, other.stderr]),
                torch.tensor([one.value, one.stderr]),
                atol=len(answer) * bound,
                rtol=0,
                equal_nan=True,  # a single sweep has no standard error
                msg=where,
            )


@pytest.mark.parametrize("network", FAST)
def test_some_values_depend_on_no_batch_order_or_process(engines, network) -> None:
    for method, way in ways_of(network)[::2]:
        check_values(engines, network, method, way)


@pytest.mark.slow
@every_network
def test_no_value_depends_on_batches_order_or_processes(engines, network) -> None:
    ways = ways_of(network)
    if network in FAST:
        del ways[::2]
    for method, way in ways:
        check_values(engines, network, method, way)
