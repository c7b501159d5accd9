"""llada_plugins.check on runs that lm-eval made: one wrong setting each, and that one is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("lm_eval")

import lm_eval.tasks
from lm_eval import simple_evaluate
from lm_eval.loggers import EvaluationTracker
from lm_eval.tasks import TaskManager

from llada_plugins import check as door

pytestmark = pytest.mark.slow

PRESET = "llada-8b-base/gsm8k-256"  # published with 4 shots, no template, 1319 questions
# arguments of simple_evaluate, and options of the model, that are wrong -> what is to be told
WRONG: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "shots": (dict(num_fewshot=3), {}, "shots: 3, published 4"),
    "template": (dict(apply_chat_template=True), {}, "chat template: True, published False"),
    "block": ({}, dict(block_length=32), "block: 32, published 256"),
    "temperature": (
        dict(gen_kwargs=dict(do_sample=True, temperature=0.5)),
        {},
        "temperature: 0.5, published 0.0",
    ),
    "questions": (dict(limit=1), {}, "questions: 1, published 1319"),
}


@pytest.fixture(scope="module")
def evaluate(tmp_path_factory, make_checkpoint) -> Callable[..., Path]:
    """Runs lm-eval's own gsm8k, on two questions, with the preset; returns its results."""
    folder = tmp_path_factory.mktemp("runs")
    named = folder / "LLaDA-8B-Base"
    named.symlink_to(make_checkpoint(max_sequence_length=1024))
    template = {"chat_template": "{% for each in messages %}{{ each.content }}{% endfor %}"}
    config = named / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **template}))
    rows = [{"question": f"{number}+1?", "answer": f"#### {number + 1}"} for number in range(8)]
    files = {}
    for split, own in (("train", rows[2:]), ("test", rows[:2])):
        path = folder / f"{split}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in own))
        files[split] = str(path)
    task = {
        "include": str(Path(lm_eval.tasks.__file__).parent / "gsm8k" / "gsm8k.yaml"),
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": files},
    }
    (folder / "gsm8k.yaml").write_text(yaml.safe_dump(task))
    manager = TaskManager(include_path=str(folder), include_defaults=False)

    def run(name: str, asked: dict[str, Any], options: dict[str, Any]) -> Path:
        tracker = EvaluationTracker(output_path=str(folder / name))
        found = simple_evaluate(
            "llada",
            model_args=dict(preset=PRESET, pretrained=str(named)) | options,
            tasks=["gsm8k"],
            task_manager=manager,
            bootstrap_iters=0,
            device="cpu",
            batch_size=2,
            evaluation_tracker=tracker,
            **{"num_fewshot": 4, **asked},
        )
        tracker.save_results_aggregated(results=found, samples=None)
        return folder / name

    return run


def settings(place: Path, capsys: pytest.CaptureFixture) -> set[str]:
    """The settings that differ, with what is published, of a run that is told of in full."""
    capsys.readouterr()
    assert door.main([str(place)]) == 3
    told = capsys.readouterr().out.splitlines()
    assert any(line.startswith(f"gsm8k: preset {PRESET}") for line in told)
    assert any(line.startswith("  published    70  ") for line in told)
    return {line for line in told if line.startswith("  setting")}


def test_one_wrong_setting_of_a_run_is_named_and_nothing_else(evaluate, capsys):
    right = settings(evaluate("right", {}, {}), capsys)
    assert right == {"  setting      questions: 2, published 1319"}
    for name, (asked, options, line) in WRONG.items():
        found = settings(evaluate(name, asked, options), capsys)
        new, gone = found - right, right - found
        assert new == {f"  setting      {line}"}, name
        assert bool(gone) == (name == "questions")
