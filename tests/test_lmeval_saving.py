"""lm-eval: results that cannot be saved are an error, before the run where that can be known."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval")

from lm_eval import simple_evaluate
from lm_eval.loggers import EvaluationTracker
from lm_eval.tasks import TaskManager

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


def test_results_that_cannot_be_saved_are_printed_and_end_the_run(tmp_path, capsys):
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
