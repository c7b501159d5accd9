"""OpenCompass: what was decoded of a batch before a kill is not decoded again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("opencompass")

from opencompass.openicl import icl_inferencer as stock

from llada_plugins.engine.request import Completion, Request
from llada_plugins.harness.opencompass_journal import Journal, journal_of
from llada_plugins.opencompass_models import LLaDA
from llada_plugins.sampling.config import SamplerConfig
from tests.test_opencompass_repeats import (
    elsewhere,  # noqa: F401  # a fixture
    entry,
    run,
)

REQUESTS = [Request(text, SamplerConfig(gen_length=8)) for text in "abc"]
ANSWER = Completion("text \u2028 with a line end\n", 4, 8, 0.5)


class Killed(BaseException):
    """Ends a task as a signal does."""


def killed_after(model: LLaDA, number: int, monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """Let the model's process end after so many answers; gives what it is asked to decode."""
    asked: list[Request] = []
    decode = type(model.engine).generate

    def generate(engine, requests, *arguments):
        asked.extend(requests)
        for done, found in enumerate(decode(engine, requests, *arguments)):
            if done == number:
                raise Killed
            yield found

    monkeypatch.setattr(type(model.engine), "generate", generate)
    return asked


@pytest.mark.parametrize("temperature", (0.0, 1.0))
@pytest.mark.parametrize("kind", ("GenInferencer", "SCInferencer"))
def test_a_killed_batch_goes_on_with_the_answers_that_it_had(
    tiny_checkpoint, tmp_path, monkeypatch, kind, temperature
):
    model = LLaDA(str(tiny_checkpoint), gen_length=8, steps=2, temperature=temperature)
    rows = entry(inferencer=dict(type=getattr(stock, kind)))
    expected = run(model, tmp_path / "whole", rows, batch_size=5)
    with monkeypatch.context() as patch:
        first = killed_after(model, 2, patch)
        with pytest.raises(Killed):
            run(model, tmp_path / "killed", rows, batch_size=5)
    [journal] = (tmp_path / "killed").rglob("tmp_*.answers.jsonl")
    with journal.open("a") as file:
        file.write('["torn')
    again = LLaDA(str(tiny_checkpoint), gen_length=8, steps=2, temperature=temperature)
    with monkeypatch.context() as patch:
        second = killed_after(again, 99, patch)
        assert run(again, tmp_path / "killed", rows, batch_size=5) == expected
    assert len(second) == len(first) - 2 and set(second) < set(first)
    again._journal.close()
    assert not journal.exists()


@pytest.mark.parametrize("kind", ("GenInferencer", "SCInferencer", "PPLInferencer"))
def test_predictions_that_a_kill_left_half_written_are_not_taken_for_whole(
    tiny_checkpoint, tmp_path, monkeypatch, kind
):
    """Stock code opens the file under its name and then fills it."""
    from opencompass.openicl.icl_inferencer import icl_base_inferencer

    model = LLaDA(str(tiny_checkpoint), gen_length=8, steps=2)
    rows = entry(inferencer=dict(type=getattr(stock, kind)))

    def killed(found: object, file: object, **_: object) -> None:
        file.write("{")
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(icl_base_inferencer.json, "dump", killed)
        with pytest.raises(Killed):
            run(model, tmp_path / "killed", rows, batch_size=5)
    assert not [*(tmp_path / "killed").rglob("rows*.json")]
    expected = run(model, tmp_path / "whole", rows, batch_size=5)
    assert run(model, tmp_path / "killed", rows, batch_size=5) == expected


def test_another_model_or_sampler_finds_nothing(tmp_path):
    predictions = tmp_path / "rows.json"
    journal = Journal("one")
    journal.open(predictions)
    assert journal.find(REQUESTS[0]) is None
    journal.keep(REQUESTS[0], ANSWER)
    for identity, request, found in (
        ("one", REQUESTS[0], ANSWER),
        ("two", REQUESTS[0], None),
        ("one", REQUESTS[1], None),
        ("one", REQUESTS[0]._replace(sampler=SamplerConfig(gen_length=16)), None),
        ("one", REQUESTS[0]._replace(stream=((1,),)), None),
        ("one", REQUESTS[0]._replace(until=("\n",)), None),
    ):
        other = Journal(identity)
        other.open(predictions)
        assert other.find(request) == found


def test_answers_of_another_version_are_told_and_decoded_again(tmp_path, caplog):
    predictions = tmp_path / "rows.json"
    older, newer = (json.dumps({"made_by": {"torch": each}}) for each in ("2.12.0", "2.13.0"))
    for identity, request in ((older, REQUESTS[0]), (older, REQUESTS[1]), (newer, REQUESTS[2])):
        journal = Journal(identity)
        journal.open(predictions)
        journal.keep(request, ANSWER)
        journal.close()
    caplog.clear()
    journal = Journal(newer)
    journal.open(predictions)
    assert [journal.find(each) for each in REQUESTS] == [None, None, ANSWER]
    [told] = caplog.messages
    assert told.startswith("2 answers in ") and "made_by.torch was '2.12.0', is '2.13.0'" in told


def test_a_journal_stays_until_the_predictions_are_there(tmp_path):
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    journal = Journal("one")
    journal.open(first)
    journal.keep(REQUESTS[0], ANSWER)
    journal.open(second)
    assert journal.find(REQUESTS[0]) is None
    journal.open(first)
    assert journal.find(REQUESTS[0]) == ANSWER
    first.write_text('{"0": {"prediction": "te')  # as a full disk leaves it
    journal.close()
    assert journal_of(first).exists() and not first.exists()
    journal.open(first)
    assert journal.find(REQUESTS[0]) == ANSWER
    first.write_text("{}")
    journal.close()
    assert not journal_of(first).exists() and journal_of(second).exists()


def test_other_ranks_read_and_do_not_write(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    journal = Journal("one")
    journal.open(tmp_path / "rows.json")
    journal.keep(REQUESTS[0], ANSWER)
    assert not list(tmp_path.iterdir())


def test_a_call_from_python_leaves_no_file(tiny_checkpoint, tmp_path):
    model = LLaDA(str(tiny_checkpoint), gen_length=8, steps=2)
    model.generate(["a", "b"], 8)
    assert not list(Path.cwd().rglob("tmp_*"))
