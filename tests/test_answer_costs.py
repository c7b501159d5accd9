"""What answers cost is counted once, by one rule, and every result file says it."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from llada_plugins.diffusion.denoiser import Canvas, Denoiser
from llada_plugins.engine import metering
from llada_plugins.engine.engine import Completion, Engine, Request
from llada_plugins.engine.metering import Marks, shared
from llada_plugins.engine.request import counted_tokens
from llada_plugins.tasks import sudoku

PUZZLES = [problem.puzzle for problem in sudoku.problems("test", 6)]
DOUBTFUL = "4...1.4.......2.="  # each of the rules below takes a token of it back


def answers(engine: Engine, **options) -> list[Completion]:
    requests = [
        Request(puzzle, engine.sampler_for({"gen_length": 16, **options})) for puzzle in PUZZLES
    ]
    found = dict(engine.generate(requests))
    return [found[number] for number in range(len(PUZZLES))]


def engine(**options) -> Engine:
    return Engine(device="cpu", batch_size=4, **options)


# ---- seconds


def test_a_step_is_paid_in_equal_parts_by_the_rows_that_are_in_work_in_it():
    assert shared([1.0, 4.0, 3.0], [1, 3, 2]) == pytest.approx([1 / 3, 1 / 3 + 2 + 3, 1 / 3 + 2])


def test_the_parts_of_rows_sum_to_the_time_of_all_steps_in_any_order_of_rows():
    draw = random.Random(3)
    for _ in range(50):
        forwards = [draw.randrange(5) for _ in range(draw.randrange(1, 6))]
        steps = [draw.random() for _ in range(draw.choice([max(forwards), max(forwards) + 2]))]
        parts = shared(steps, forwards)
        if any(forwards):
            assert sum(parts) == pytest.approx(sum(steps))
        assert all((part > 0) == (number > 0) for part, number in zip(parts, forwards))
        assert shared(steps, forwards[::-1]) == parts[::-1]


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """Seconds that pass only where a test says so."""
    now = [0.0]
    monkeypatch.setattr(metering.time, "perf_counter", lambda: now[0])
    return now


def test_the_seconds_of_answers_sum_to_the_time_of_all_forwards(clock):
    judged = engine(threshold=0.95, block_length=8)
    plain, taken = judged.denoise, []

    def slow(canvas: Canvas, window: slice):
        taken.append(len(canvas.tokens) * 2.0 + 1.0)
        clock[0] += taken[-1]
        return plain(canvas, window)

    judged.denoise = slow
    found = answers(judged)
    assert len({each.num_forwards for each in found}) > 1  # rows leave at different steps
    assert sum(each.seconds for each in found) == pytest.approx(sum(taken))


def test_a_row_alone_pays_for_its_own_steps_and_rows_together_for_a_part(clock):
    seconds = {}
    for batch_size in (1, 6):
        decoding = Engine(device="cpu", batch_size=batch_size, threshold=0.9)
        plain = decoding.denoise

        def tick(canvas: Canvas, window: slice, plain: Denoiser = plain):
            clock[0] += 1.0
            return plain(canvas, window)

        decoding.denoise = tick
        found = answers(decoding)
        seconds[batch_size] = [each.seconds for each in found]
        forwards = [each.num_forwards for each in found]
    assert seconds[1] == pytest.approx(forwards)
    expected = [
        sum(1 / sum(step < other for other in forwards) for step in range(n)) for n in forwards
    ]
    assert seconds[6] == pytest.approx(expected)


def test_what_comes_before_a_fills_first_step_belongs_to_it(clock):
    marks = Marks(torch.device("cpu"))
    for moment in (2.0, 5.0, 6.0):
        clock[0] = moment
        marks.add()
    assert sum(marks.steps()) == pytest.approx(6.0)


# ---- tokens

ENDS = [7, 8]


class Letters:
    """A tokenizer whose id n is a piece of text of its own."""

    pieces = ["a", "b", "cd", "\n", "STOP", "xS", "TOPy", "<eos>", "<eot>"]

    def decode(self, ids, **_):
        return "".join(self.pieces[number] for number in ids)


@pytest.mark.parametrize(
    ("ids", "until", "expected"),
    [
        ([0, 1, 2], (), 3),
        ([0, 1, 7, 7, 7], (), 2),  # EOS and what pads after it
        ([0, 8, 1, 7], (), 1),
        ([7, 0], (), 0),
        ([0, 1, 3, 2], ("\n",), 2),
        ([0, 5, 6, 1], ("STOP",), 2),  # x stands before the stop string, in the token xS
        ([4, 0], ("STOP",), 0),
        ([0, 7, 3], ("\n",), 1),  # the end token comes first
        ([0, 4, 1, 3], ("\n", "STOP"), 1),
        ([0, 1], ("", "never"), 2),
        ([], ("\n",), 0),
    ],
)
def test_tokens_before_the_first_end_token_and_the_first_stop_string_count(ids, until, expected):
    assert counted_tokens(ids, until, Letters(), ENDS) == expected


def test_a_text_has_as_many_tokens_as_count_where_every_token_is_a_letter(tiny_checkpoint):
    lettered = Engine(pretrained=str(tiny_checkpoint), device="cpu")
    draw = random.Random(5)
    for _ in range(30):
        ids = [draw.choice(lettered.encode("abcdz")) for _ in range(draw.randrange(12))]
        whole = lettered.tokenizer.decode(ids)
        until = ("z", "da")
        text = whole[: min((at for at in map(whole.find, until) if at >= 0), default=None)]
        assert counted_tokens(ids, until, lettered.tokenizer, [0]) == len(text)


def test_tokens_a_forward_are_their_ratio_and_nothing_where_nothing_was_decoded():
    found = answers(engine(), steps=8)
    assert {each.tokens_per_forward for each in found} == {16 / 8}
    assert Completion("", 0, 0, 0.0).tokens_per_forward == 0.0


# ---- tokens taken back


@pytest.mark.parametrize(
    "options",
    [
        dict(remask_ratio=0.5, steps=6),
        dict(revise=True, steps=8),
        dict(threshold=0.7, revise_below=0.9),
        dict(threshold=0.6, edit_threshold=0.3, max_post_steps=3),
    ],
    ids=str,
)
def test_revised_tokens_are_those_that_stood_before_a_forward_and_not_so_before_the_next(options):
    revising = engine(block_length=8)
    boards: list[torch.Tensor] = []
    plain = revising.denoise

    def seen(canvas: Canvas, window: slice):
        boards.append(canvas.tokens[0, window].clone())
        return plain(canvas, window)

    revising.denoise = seen
    requests = [Request(DOUBTFUL, revising.sampler_for({"gen_length": 8, **options}))]
    ((_, completion),) = revising.generate(requests)
    mask = revising.special.mask
    boards.append(torch.tensor(revising.encode(completion.text)))  # after the last one
    assert len(boards[-1]) == 8
    expected = sum(
        int(((before != mask) & (after != before)).sum()) for before, after in pairwise(boards)
    )
    assert completion.num_revised == expected > 0


def test_decoders_that_take_nothing_back_are_not_watched():
    plain = engine(threshold=0.9)
    meter = metering.Meter(lambda draft: None, None, 1, torch.device("cpu"))
    assert meter.observer(plain.sampler) is None
    assert {each.num_revised for each in answers(plain)} == {0}


# ---- lm-eval

lm_eval = pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.api.model import CachingLM  # noqa: E402

from llada_plugins.lmeval_models import LLaDA  # noqa: E402
from tests.test_lmeval_cases import REPEATS, evaluated  # noqa: E402

DOCS = [{"puzzle": puzzle, "solution": "1"} for puzzle in PUZZLES[:3]]
TASK = REPEATS.replace("repeats: 4\n", "")
COSTS = ("tokens", "forwards", "revised", "prm_calls")


def lm(**options) -> LLaDA:
    return LLaDA(device="cpu", batch_size=2, threshold=0.9, **options)


def notes(results: dict) -> list[dict]:
    rows = json.loads(json.dumps(results["samples"]["reported"]))
    return [row["arguments"][0][2] for row in rows]


def test_sample_files_and_results_of_lm_eval_hold_what_each_answer_cost(tmp_path):
    model = lm()
    results = evaluated(model, tmp_path, TASK, DOCS)
    requests = [Request(doc["puzzle"], model.engine.sampler_for({}, 16), ("\n",)) for doc in DOCS]
    expected = dict(model.engine.generate(requests))
    for number, note in enumerate(notes(results)):
        completion = expected[number]
        assert (note["tokens"], note["forwards"]) == (
            completion.num_tokens,
            completion.num_forwards,
        )
        assert note["tokens_per_forward"] == round(completion.tokens_per_forward, 4) > 1
        assert note["seconds"] > 0 and note["revised"] == 0 and note["from_cache"] is False
    totals = results["config"]["decoding"]["reported"]
    for name in (*COSTS, "seconds"):
        assert totals[name] == pytest.approx(sum(note[name] for note in notes(results)))
    assert (totals["answers"], totals["from_cache"], totals["unknown"]) == (3, 0, 0)
    assert totals["tokens_per_forward"] == round(totals["tokens"] / totals["forwards"], 4)


def test_answers_of_a_cache_file_keep_their_costs_and_say_that_they_are_from_there(tmp_path):
    path = str(tmp_path / "cache")
    first = evaluated(lm(), tmp_path, TASK, DOCS[:2], use_cache=path)
    resumed = evaluated(lm(), tmp_path, TASK, DOCS, use_cache=path)
    assert [note["from_cache"] for note in notes(resumed)] == [True, True, False]
    for before, after in zip(notes(first), notes(resumed)):
        assert after == {**before, "from_cache": True}  # seconds included: of when it was decoded
    totals = resumed["config"]["decoding"]["reported"]
    assert (totals["answers"], totals["from_cache"]) == (3, 2)
    assert totals["forwards"] == sum(note["forwards"] for note in notes(resumed))


def test_a_cache_file_without_costs_gives_answers_whose_costs_are_unknown(tmp_path):
    caching = CachingLM(lm(), str(tmp_path / "cache.db"))
    request = Instance("generate_until", {}, (PUZZLES[0], {"max_gen_toks": 16}), 0)
    (text,) = caching.generate_until([request])
    for key in [key for key in caching.dbdict if key.endswith(":statistics")]:
        del caching.dbdict[key]
    model = lm()
    model.engine.generate = None  # nothing is left to do
    again = CachingLM(model, str(tmp_path / "cache.db"))
    assert again.generate_until([request]) == [text]
    assert request.note["from_cache"] is True and request.note["forwards"] is None
    totals = model.get_model_info()["decoding"]["requests"]
    assert (totals["answers"], totals["unknown"], totals["forwards"]) == (1, 1, 0)


def test_each_repeat_of_a_request_has_its_costs_in_the_sample_file(tmp_path):
    found = evaluated(lm(temperature=1.5), tmp_path, REPEATS, DOCS[1:2])
    (note,) = notes(found)
    assert len(note["repeats"]) == 4 and len({each["forwards"] for each in note["repeats"]}) > 1
    totals = found["config"]["decoding"]["reported"]
    assert totals["answers"] == 4
    assert totals["forwards"] == sum(each["forwards"] for each in note["repeats"])


def test_requests_that_lm_eval_repeats_to_keep_processes_in_step_are_not_counted():
    model = lm()
    request = Instance("generate_until", {}, (PUZZLES[0], {"max_gen_toks": 16}), 0, ("task", 0, 1))
    model.generate_until([request, request], True)
    assert model.get_model_info()["decoding"]["task"]["answers"] == 1
    assert "repeats" not in request.note


# ---- OpenCompass


def test_opencompass_predictions_hold_the_same_numbers():
    opencompass = pytest.importorskip("llada_plugins.opencompass_models")
    model = opencompass.LLaDA(None, device="cpu", threshold=0.9, record_stats=True)
    (prediction,) = model.generate([PUZZLES[0]], 16)
    expected = answers(engine(threshold=0.9))[0]
    assert prediction["nfe"] == prediction["forwards"] == expected.num_forwards
    assert prediction["tokens_per_forward"] == round(expected.tokens_per_forward, 4)
    assert (prediction["tokens"], prediction["revised"]) == (expected.num_tokens, 0)


@pytest.mark.slow
def test_two_processes_count_what_one_counts(tmp_path: Path) -> None:
    from tests.commands import OWN_TASKS, OWN_TASKS_TWICE
    from tests.test_lmeval import sudoku_run

    (tmp_path / "one").mkdir(), (tmp_path / "two").mkdir()
    one, two = (
        sudoku_run(tmp_path / name, limit=9, launcher=launcher)[0]["config"]["decoding"]["sudoku4"]
        for name, launcher in (("one", OWN_TASKS), ("two", OWN_TASKS_TWICE))
    )
    assert one.pop("seconds") > 0 and two.pop("seconds") > 0
    assert one == two and one["answers"] == 9
