"""lm-eval: a sampled answer depends on its document and repeat, not on what is asked beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval")

import torch
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager

from llada_plugins.lmeval_models import LLaDA

pytestmark = pytest.mark.floats  # answers of batches of three are those of one

QUESTIONS = ("12..", "..34", "3..1", "12..", "12..")  # the first asked thrice
TASK = """dataset_path: json
dataset_kwargs: {data_files: {test: DOCS, train: EXAMPLES}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{question}}"
repeats: 2
generation_kwargs: {until: ["x"], max_gen_toks: 8}
metric_list: [{metric: exact_match}]
"""
Answers = dict[tuple[str, int], list[str]]  # by task and row


class Share(LLaDA):
    """One of two processes of lm-eval, and what it answered."""

    def __init__(self, *arguments: Any, share: int, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._rank, self._world_size = share, 2

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """How many documents each has."""
        return torch.tensor([3, 2])

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any]:
        return [obj]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two tasks of the same questions, one of which writes them down otherwise."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    task = TASK
    for name, rows in (("DOCS", QUESTIONS), ("EXAMPLES", "abcdefgh")):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"question": each}) + "\n" for each in rows))
        task = task.replace(name, str(path), 1)
    for name in ("one", "other"):
        (tmp_path / f"{name}.yaml").write_text(f"task: {name}\n{task}")
    return tmp_path


def model(checkpoint: Path, **options: Any) -> dict[str, Any]:
    return (
        dict(pretrained=str(checkpoint), device="cpu", temperature=1.5, steps=4, manifest="off")
        | options
    )


def asked(lm: LLaDA, folder: Path, *tasks: str, **options: Any) -> list[tuple[Instance, str, str]]:
    """What the stock evaluation asks: requests with their prompts and answers."""
    found: list[tuple[Instance, str, str]] = []
    generate = lm.generate_until

    def generate_until(requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        prompts = [request.args[0] for request in requests]
        answers = generate(requests, disable_tqdm)
        found.extend(zip(requests, prompts, answers))
        return answers

    lm.generate_until = generate_until  # type: ignore[method-assign]
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    simple_evaluate(lm, tasks=[*tasks], task_manager=manager, bootstrap_iters=0, **options)
    return found


def answered(lm: LLaDA, folder: Path, *tasks: str, **options: Any) -> Answers:
    """The stock evaluation's answers."""
    answers: Answers = {}
    for request, _, answer in asked(lm, folder, *tasks, **options):
        own = answers.setdefault((request.task_name, request.doc_id), [])
        if len(own) < 2:  # more are asked where a share has fewer documents
            own.append(answer)
    return answers


@pytest.fixture
def whole(tiny_checkpoint: Path, folder: Path) -> Answers:
    """Of one task in one process."""
    return answered(LLaDA(**model(tiny_checkpoint)), folder, "one")


def test_equal_questions_and_repeats_of_them_get_answers_of_their_own(whole):
    of_equal = [each for row in (0, 3, 4) for each in whole["one", row]]
    assert len(of_equal) == len(set(of_equal)) == 6


def test_two_processes_give_the_answers_of_one(tiny_checkpoint, folder, whole):
    shares = [Share(**model(tiny_checkpoint, batch_size=3), share=share) for share in (0, 1)]
    first, second = (answered(share, folder, "one") for share in shares)
    assert {**first, **second} == whole
    assert sorted(first) == [("one", 0), ("one", 2), ("one", 4)]


def test_another_task_beside_it_changes_no_answer(tiny_checkpoint, folder, whole):
    both = answered(LLaDA(**model(tiny_checkpoint)), folder, "other", "one")
    assert {key: both[key] for key in whole} == whole


def test_some_chosen_documents_get_the_answers_of_the_whole(tiny_checkpoint, folder, whole):
    some = answered(LLaDA(**model(tiny_checkpoint)), folder, "one", samples={"one": [1, 4]})
    assert some == {("one", 0): whole["one", 1], ("one", 1): whole["one", 4]}


@pytest.mark.parametrize("sampler", ["default", "first_n"])
def test_few_shot_examples_that_each_process_draws_anew_are_told(
    tiny_checkpoint, folder, caplog, sampler
):
    path = folder / "one.yaml"
    shots = f"num_fewshot: 1\nfewshot_split: train\nfewshot_config: {{sampler: {sampler}}}\n"
    path.write_text(path.read_text() + shots)
    whole, half = (
        {request.doc_id: prompt for request, prompt, _ in asked(lm, folder, "one")}
        for lm in (LLaDA(**model(tiny_checkpoint)), Share(**model(tiny_checkpoint), share=0))
    )
    differ = any(half[row] != whole[row] for row in half)
    told = [each for each in caplog.messages if "lm-eval draws few-shot examples" in each]
    assert (differ, len(told)) == ((True, 1) if sampler == "default" else (False, 0))
