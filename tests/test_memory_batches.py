"""Batches as large as memory allows, on a simulated device whose memory can be too small."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from llada_plugins.diffusion.batch_limit import BatchLimit, OutOfMemory, in_halves
from llada_plugins.engine import batches
from llada_plugins.engine.batches import USED_SHARE, Batches, Probe, cost_of
from llada_plugins.engine.engine import Engine, Request
from llada_plugins.tasks import sudoku
from tests.tolerance import likelihood_error

pytestmark = pytest.mark.floats

PUZZLES = [problem.puzzle for problem in sudoku.problems("test", 12)]
FIXED, COLUMN, KEPT = 1000, 30, 50  # bytes of a forward, of a column, of its keys and values
METHODS = [
    ("llada", dict()),
    ("llada", dict(temperature=0.7, block_length=4)),
    ("llada", dict(threshold=0.9, cache="dual", block_length=8)),
    ("llada", dict(cfg_scale=0.5)),
    ("llada_prm", dict()),
]


class Memory:
    """A device of so many bytes on which a model runs; a `Meter`, too.

    A forward takes FIXED bytes and COLUMN for each column that it computes, and KEPT where
    keys and values are kept. One that needs more than there is raises OutOfMemory.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.highest = 0
        self.rows: list[int] = []  # of every forward that fitted

    def run(self, num_rows: int, num_columns: int, kept: bool = False) -> None:
        needed = FIXED + num_rows * num_columns * (COLUMN + KEPT * kept)
        if needed > self.total:
            raise OutOfMemory("CUDA out of memory. Tried to allocate more than there is.")
        self.highest = max(self.highest, needed)
        self.rows.append(num_rows)

    def free(self) -> int:
        return self.total

    def peak(self, work: Callable[[], None]) -> int:
        self.highest = 0
        work()
        return self.highest

    def hold(self, engine: Engine) -> Engine:
        """The engine, its model on this device."""
        model, streams = engine.model, engine.model.streams

        def streams_on_device(ids: Tensor, *others: Tensor, columns: slice, past, **rest):
            width = len(range(ids.shape[1])[columns])
            self.run(len(ids), width, kept=past is not None)
            return streams(ids, *others, columns=columns, past=past, **rest)

        model.streams = streams_on_device
        return engine


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Ours; torch has some of its own, which depend on what was imported before."""
    ours = [each for each in caplog.records if each.name.startswith("llada_plugins")]
    return [each.getMessage() for each in ours if each.levelno >= logging.WARNING]


def made(method: str = "llada", /, **options: object) -> Engine:
    return Engine(method, device="cpu", gen_length=16, **{"steps": 4, **options})


def answers(engine: Engine) -> list[tuple[str, int]]:
    """Text and forwards of the answer to each puzzle; each must come once."""
    found = list(engine.generate([Request(puzzle, engine.sampler) for puzzle in PUZZLES]))
    assert sorted(number for number, _ in found) == list(range(len(PUZZLES)))
    return [(each.text, each.num_forwards) for _, each in sorted(found, key=lambda each: each[0])]


@pytest.mark.parametrize("method, options", METHODS, ids=str)
def test_a_batch_that_does_not_fit_is_halved_and_no_answer_is_lost_or_changed(
    method, options, caplog
):
    expected = answers(made(method, **options))
    columns = len(PUZZLES[0]) + 16
    rows = 3  # a forward under guidance has two for each answer
    memory = Memory(FIXED + rows * columns * (COLUMN + KEPT))
    assert answers(memory.hold(made(method, batch_size=12, **options))) == expected
    assert len([each for each in caplog.messages if each.startswith("out of memory")]) == 1


def test_a_limit_that_was_found_counts_in_later_calls(caplog):
    memory = Memory(FIXED + 3 * 33 * COLUMN)
    engine = memory.hold(made(batch_size=12))
    assert answers(engine) == answers(engine)
    assert len(warnings_of(caplog)) == 1
    assert max(memory.rows) == 3


def test_only_a_batch_that_did_not_fit_is_done_again():
    plain = Memory(10**9)
    answers(plain.hold(made(batch_size=3)))
    halved = Memory(FIXED + 3 * 33 * COLUMN)
    answers(halved.hold(made(batch_size=12)))
    assert sum(halved.rows) == sum(plain.rows)  # a forward that did not fit is not among them


def test_likelihoods_are_the_same_where_batches_are_halved(caplog):
    problems = sudoku.problems("test", 6)
    plain, small = (
        made(mc_num=16, greedy_check=True),
        made(mc_num=16, greedy_check=True, batch_size=32),
    )
    pairs = [(plain.encode(each.puzzle), plain.encode(each.solution)) for each in problems]
    expected = dict(plain.log_likelihood(pairs))
    memory = Memory(FIXED + 5 * 34 * COLUMN)
    found = list(memory.hold(small).log_likelihood(pairs))
    assert sorted(number for number, _ in found) == list(range(len(pairs)))
    bound = likelihood_error(plain.model, 16)
    for number, estimate in found:
        assert estimate.value == pytest.approx(expected[number].value, abs=bound)
        assert estimate.num_forwards == expected[number].num_forwards
        assert estimate.greedy == expected[number].greedy
    assert len([each for each in caplog.messages if each.startswith("out of memory")]) == 1


def test_one_row_that_does_not_fit_ends_in_one_line():
    engine = Memory(FIXED).hold(made(batch_size=8))
    with pytest.raises(OutOfMemory, match="one row of 33 tokens does not fit .* quantize=int8"):
        answers(engine)
    with pytest.raises(OutOfMemory, match="one row of 33 tokens does not fit"):
        list(engine.log_likelihood([(engine.encode(PUZZLES[0]), engine.encode("1" * 16))]))


def test_the_cost_of_a_step_is_found_from_two_probes():
    memory = Memory(10**9)
    probe = Probe(lambda rows: memory.run(rows, 40), columns=40)
    assert cost_of(probe, memory) == (FIXED, COLUMN)


@pytest.mark.parametrize("option", ["batch_size", "batch_tokens"])
@pytest.mark.parametrize(
    "options, column",
    [
        (dict(), COLUMN),
        (dict(cache="dual", block_length=8), COLUMN + KEPT),
        (dict(cfg_scale=0.5), 2 * COLUMN),
        (dict(cfg_scale=0.5, cache="prefix", block_length=8), 2 * (COLUMN + KEPT)),
    ],
    ids=str,
)
def test_auto_takes_as_many_rows_as_fit_caches_and_guidance_counted(
    option, options, column, monkeypatch, caplog
):
    expected = answers(made(**options))
    columns = len(PUZZLES[0]) + 16
    total = int((FIXED + 9.5 * columns * column) / USED_SHARE)
    memory = Memory(total)
    monkeypatch.setattr("llada_plugins.engine.engine.meter_of", lambda device: memory)
    assert answers(memory.hold(made(**{option: "auto"}, **options))) == expected
    branches = 2 if "cfg_scale" in options else 1
    assert max(memory.rows) == 9 * branches
    assert not warnings_of(caplog)


def test_auto_counts_the_candidates_of_a_review(monkeypatch, caplog):
    options = dict(method="vanilla", num_candidates_per_block=4)
    expected = answers(made("llada_prm", **options))
    memory = Memory(int((FIXED + 14 * 33 * COLUMN) / USED_SHARE))
    monkeypatch.setattr("llada_plugins.engine.engine.meter_of", lambda device: memory)
    assert answers(memory.hold(made("llada_prm", batch_size="auto", **options))) == expected
    assert max(memory.rows) == 4 * 3  # of four requests, the candidates beside the plain fill
    assert not warnings_of(caplog)


def test_auto_measures_likelihoods_by_the_longest_pair(monkeypatch, caplog):
    memory = Memory(int((FIXED + 7.5 * 32 * COLUMN) / USED_SHARE))
    monkeypatch.setattr("llada_plugins.engine.engine.meter_of", lambda device: memory)
    engine = memory.hold(made(mc_num=16, batch_size="auto"))
    pairs = [([1] * 16, [2] * 16), ([1] * 8, [2] * 8)]
    list(engine.log_likelihood(pairs))
    assert engine.batches.chosen_rows() == [7]
    assert 7 < max(memory.rows) <= 15  # of 16 tokens, twice the number fits
    assert not warnings_of(caplog)


@pytest.mark.parametrize("options", [dict(batch_size="auto"), dict(batch_tokens="auto")], ids=str)
def test_on_a_cpu_auto_is_a_fixed_number_and_runs_no_probe(options):
    engine = made(**options)
    assert engine.batches.meter is None

    def no_probe() -> Probe:
        raise AssertionError("a probe was made")

    limit = engine.batches.limit("some kind", no_probe)
    assert (limit(10), limit(1000)) == (batches.AUTO_ROWS, batches.AUTO_ROWS) == (32, 32)


@pytest.mark.parametrize(
    "batch_size, batch_tokens, of_call, expected",
    [
        (3, None, None, 3),
        (3, None, 5, 5),
        (3, 100, 5, 10),
        ("auto", 100, None, 10),
        ("auto", None, None, 32),
        ("auto", None, 5, 5),
        (3, "auto", 5, 32),
    ],
)
def test_which_number_counts(batch_size, batch_tokens, of_call, expected):
    planned = Batches(batch_size, batch_tokens, None).limit("kind", pytest.fail, of_call)
    assert planned(10) == expected


def test_auto_has_at_most_the_rows_that_it_may_have():
    memory = Memory(10**9)
    plan = Batches("auto", None, memory)
    plan.most_rows = 40

    def probe() -> Probe:
        return Probe(lambda rows: memory.run(rows, 10), columns=10)

    assert plan.limit("kind", probe)(10) == 40
    plan.most_rows = None
    assert plan.limit("kind", probe)(10) == batches.MOST_ROWS


def test_what_was_too_much_bounds_batches_by_their_tokens():
    limit = BatchLimit(lambda longest: 16)
    limit.halve(16, 100)
    assert [limit(100), limit(200), limit(10), limit(10_000)] == [8, 4, 16, 1]
    limit.halve(8, 100)
    assert limit(100) == 4


def test_results_of_halves_come_in_the_order_of_the_items():
    def run(items):
        if len(items) > 3:
            raise OutOfMemory
        return [item * 10 for item in items]

    limit = BatchLimit(lambda longest: 16)
    assert in_halves(run, range(13), limit, 5) == [item * 10 for item in range(13)]
    assert limit(5) <= 3


def test_another_error_is_not_taken_for_want_of_memory():
    def run(items):
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        in_halves(run, [1, 2], BatchLimit(lambda longest: 2), 5)


@pytest.mark.parametrize("option", ["batch_size", "batch_tokens"])
def test_a_size_that_is_neither_a_number_nor_auto_is_refused(option):
    with pytest.raises(ValueError, match=f"{option} must be .*, got 'many'"):
        made(**{option: "many"})


def test_what_auto_chose_is_told_at_the_level_of_details(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    memory = Memory(10**6)
    monkeypatch.setattr("llada_plugins.engine.engine.meter_of", lambda device: memory)
    with torch.inference_mode():
        answers(memory.hold(made(batch_size="auto")))
    assert any("tokens are computed at once" in each for each in caplog.messages)
