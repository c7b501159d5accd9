"""lm-eval: answers are saved as they are decoded; results that cannot be saved are an error."""

from __future__ import annotations

import shutil
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval")

from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import CachingLM
from lm_eval.loggers import EvaluationTracker
from lm_eval.tasks import TaskManager

from llada_plugins.engine.engine import Engine
from llada_plugins.lmeval_models import LLaDA

CONFIGS = Path(__file__).parents[1] / "configs"


def evaluated(tracker: EvaluationTracker, pretrained: str) -> dict[str, Any]:
    """The results of two sudokus, before lm-eval saves them."""
    return simple_evaluate(
        model="llada",
        model_args=f"pretrained={pretrained},device=cpu",
        tasks=["sudoku4"],
        task_manager=TaskManager(include_path=str(CONFIGS / "lmeval"), include_defaults=False),
        limit=2,
        gen_kwargs="steps=1",
        evaluation_tracker=tracker,
    )


def test_results_that_cannot_be_saved_are_printed_and_end_the_run(tmp_path, capsys, monkeypatch):
    # what lm-eval asks of the machine for its results file takes seconds
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)
    tracker = EvaluationTracker(output_path=str(tmp_path))
    found = evaluated(tracker, "tiny")
    samples = found.pop("samples")["sudoku4"]
    shutil.rmtree(tmp_path / "tiny")
    (tmp_path / "tiny").touch()  # where the model's folder would be
    with pytest.raises(OSError, match="could not save the results aggregated: FileExistsError"):
        tracker.save_results_aggregated(found, {"sudoku4": samples})
    assert "|sudoku4|" in capsys.readouterr().out
    with pytest.raises(OSError, match="could not save the sample results: FileExistsError"):
        tracker.save_results_samples("sudoku4", samples)
    (tmp_path / "tiny").unlink()
    tracker.save_results_aggregated(found, {"sudoku4": samples})
    tracker.save_results_samples("sudoku4", samples)
    assert [len(list(tmp_path.rglob(name))) for name in ("results_*", "samples_*")] == [1, 1]


def test_a_place_that_cannot_be_written_to_is_told_before_any_weights(tmp_path):
    (tmp_path / "file").touch()
    tracker = EvaluationTracker(output_path=str(tmp_path / "file" / "out"))
    with pytest.raises(OSError, match="--output_path: .*file cannot be written to: Not a dir"):
        evaluated(tracker, "no such checkpoint")


def test_a_finished_answer_is_on_the_disk_while_others_of_its_call_are_decoded(
    tmp_path, monkeypatch
):
    asked = [Instance("generate_until", {}, (f"{number}=", {}), number) for number in range(6)]
    file, seen = tmp_path / "cache.db", []
    decode = Engine.generate

    def watched(engine, requests, *arguments):
        for number, found in enumerate(decode(engine, requests, *arguments)):
            if number:  # the caller has had as many answers, and this one is not among them
                seen.append(answers_on_disk(file, at_least=number))
            yield found

    monkeypatch.setattr(Engine, "generate", watched)
    model = LLaDA(gen_length=16, steps=2, batch_size=2, device="cpu")
    cached = CachingLM(model, str(file))
    try:
        cached.generate_until(asked)
    finally:
        cached.dbdict.close()
    assert seen == [1, 2, 3, 4, 5]


def answers_on_disk(file: Path, at_least: int) -> int:
    """What another process can read; a thread of the cache writes it, so not at once."""
    end = time.monotonic() + 60  # only what is never written meets it
    while time.monotonic() < end:
        with sqlite3.connect(f"file:{file}?mode=ro", uri=True) as cache:
            [rows] = cache.execute("select count(*) from unnamed").fetchone()
        found = (rows - 1) // 2  # the fingerprint; an answer and its costs
        if found >= at_least:
            return found
        time.sleep(0.01)
    raise AssertionError(f"{found} of {at_least} finished answers are on the disk")
