"""Local files of likelihood tasks as rows with the columns of lm-eval's own data sets,
so that its own tasks can read them.

Every loader takes the files' names inside the folder that --metadata '{"data_dir":
"/path"}' or the environment variable LLADA_PLUGINS_DATA names. Nothing here formats a
prompt: lm-eval's task of the same name does.
"""

from __future__ import annotations

import csv
import functools
import json
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from datasets import Dataset

from llada_plugins.files.jsonl import each_row
from llada_plugins.tasks import local_files

Row = dict[str, Any]
LETTERS = "ABCDEFGHIJ"
LAST_FRAGMENT = re.compile(r"(?<=[.!?\"'] )[a-z][^.!?]*$")


def loader(convert: Callable[[Row], Row]) -> Callable[..., dict[str, Dataset]]:
    """A custom_dataset whose split "test" holds the converted rows of a JSONL file."""

    @functools.wraps(convert)
    def load(data_file: str, data_dir: str | None = None, **_: Any) -> dict[str, Dataset]:
        (path,) = local_files.find(data_dir, data_file)
        return _test(each_row(path, functools.partial(_converted, convert)))

    return load


def _converted(convert: Callable[[Row], Row], value: Any) -> Row:
    """The row in lm-eval's columns; ValueError that says what was expected of another."""
    try:
        return convert(value)
    except (KeyError, TypeError, IndexError, AttributeError):
        expected = " ".join((convert.__doc__ or "").split())
        raise ValueError(f"no such row, got {value!r:.60}; expected: {expected}") from None


@loader
def arc(row: Row) -> Row:
    """ARC as {query, choices, gold}; the query begins with "Question: "."""
    return {
        "question": row["query"].removeprefix("Question: "),
        "answerKey": LETTERS[row["gold"]],
        "choices": {"text": row["choices"], "label": list(LETTERS[: len(row["choices"])])},
    }


@loader
def openbookqa(row: Row) -> Row:
    """OpenBookQA as published: {question: {stem, choices: [{text, label}]}, answerKey}."""
    stem, choices = row["question"]["stem"], row["question"]["choices"]
    return {
        "question_stem": stem,
        "answerKey": row["answerKey"],
        "choices": {name: [choice[name] for choice in choices] for name in ("text", "label")},
    }


@loader
def winogrande(row: Row) -> Row:
    """WinoGrande as {context_options, continuation, gold}: two texts up to the end of
    the option, then the rest of the sentence.
    """
    start = len(os.path.commonprefix(row["context_options"]))
    first, second = (text[start:] for text in row["context_options"])
    return {
        "sentence": f"{row['context_options'][0][:start]}_ {row['continuation']}",
        "option1": first,
        "option2": second,
        "answer": str(row["gold"] + 1),
    }


@loader
def lambada(row: Row) -> Row:
    """LAMBADA as {context, continuation}."""
    return {"text": f"{row['context']} {row['continuation']}"}


def piqa(
    data_file: str, label_file: str, data_dir: str | None = None, **_: Any
) -> dict[str, Dataset]:
    """PIQA as published: {goal, sol1, sol2} and a file with a label a line."""
    rows, labels = local_files.find(data_dir, data_file, label_file)
    return _test(
        {**row, "label": int(label)}
        for row, label in zip(_rows(rows), labels.read_text().split(), strict=True)
    )


def hellaswag(data_file: str, data_dir: str | None = None, **_: Any) -> dict[str, Dataset]:
    """HellaSwag as {dev: [{question, choices: {A..D}, answer}], test: [...]}: both
    lists, dev first.

    The question is the whole context. lm-eval capitalises what follows its last
    sentence (ctx_b), so that is told apart; only the rows from videos have such a
    fragment, those from WikiHow begin with "[header]". activity_label is not in this
    file.
    """

    def convert(row: Row) -> Row:
        fragment = (
            None
            if row["question"].startswith("[header]")
            else LAST_FRAGMENT.search(row["question"])
        )
        end = fragment.start() if fragment else len(row["question"])
        return {
            "activity_label": "",
            "ctx_a": row["question"][:end].strip(),
            "ctx_b": row["question"][end:],
            "endings": [row["choices"][letter] for letter in "ABCD"],
            "label": str(LETTERS.index(row["answer"])),
        }

    (path,) = local_files.find(data_dir, data_file)
    lists = json.loads(path.read_text(encoding="utf-8"))
    return _test(map(convert, [*lists["dev"], *lists["test"]]))


def hellaswag_docs(rows: Dataset) -> Dataset:
    """lm-eval's own rendering, without the ": " that it puts between activity_label,
    which is empty, and the context.
    """
    from lm_eval.tasks.hellaswag.utils import process_docs

    return process_docs(rows).map(
        lambda row: {"query": row["query"].removeprefix(": ")}, keep_in_memory=True
    )


def truthfulqa(data_file: str, data_dir: str | None = None, **_: Any) -> dict[str, Dataset]:
    """TruthfulQA.csv as its multiple-choice form: mc1 is the best answer and the
    incorrect ones, mc2 all correct and incorrect ones.
    """

    def answers(cell: str) -> list[str]:
        return [
            answer if answer.endswith(".") else f"{answer}."
            for answer in map(str.strip, cell.split(";"))
            if answer
        ]

    def targets(true: list[str], false: list[str]) -> Row:
        return {"choices": true + false, "labels": [1] * len(true) + [0] * len(false)}

    (path,) = local_files.find(data_dir, data_file)
    with path.open(encoding="utf-8", newline="") as file:
        return _test(
            {
                "question": row["Question"],
                "mc1_targets": targets(
                    answers(row["Best Answer"]), answers(row["Incorrect Answers"])
                ),
                "mc2_targets": targets(
                    answers(row["Correct Answers"]), answers(row["Incorrect Answers"])
                ),
            }
            for row in csv.DictReader(file)
        )


def truthfulqa_mass(doc: Row, results: list[tuple[float, bool]]) -> dict[str, float]:
    """lm-eval's own share of the true answers in the probability of all, which is 0/0
    there when each is below e^-745.
    """
    from lm_eval.tasks.truthfulqa.utils import process_results_mc2

    best = max(value for value, _ in results)
    return process_results_mc2(doc, [(value - best, greedy) for value, greedy in results])


def mmlu(subject: str, data_dir: str | None = None, **_: Any) -> dict[str, Dataset]:
    """One of MMLU's 57 subjects, of files of all of them: {subject, question, choices,
    answer letter}. Splits "test" and "dev".
    """
    paths = local_files.find(data_dir, "mmlu/mmlu_test.jsonl", "mmlu/mmlu_dev.jsonl")
    splits = {
        split: [
            {**row, "answer": LETTERS.index(row["answer"])}
            for row in _rows(path)
            if row["subject"] == subject
        ]
        for split, path in zip(("test", "dev"), paths)
    }
    for path, rows in zip(paths, splits.values()):
        if not rows:
            raise ValueError(
                f"{path}: no row has the subject {subject!r}; these do: "
                f"{sorted({row['subject'] for row in _rows(path)})}"
            )
    return {split: Dataset.from_list(rows) for split, rows in splits.items()}


def wikitext(data_file: str, data_dir: str | None = None, **_: Any) -> dict[str, Dataset]:
    """WikiText as plain text, a document an article: one begins at each line " = Title = "."""
    (path,) = local_files.find(data_dir, data_file)
    pages: list[list[str]] = [[]]
    for line in path.read_text(encoding="utf-8").split("\n"):
        if re.fullmatch(r"= [^=](.*[^=])? =", line.strip()):
            pages.append([])
        pages[-1].append(line)
    return _test({"page": page} for page in map("\n".join, pages) if page.strip())


@functools.cache
def _rows(path: Path) -> list[Row]:
    """The rows of a JSONL file; MMLU's 57 tasks read the same one."""
    return list(each_row(path, _row))


def _row(value: Any) -> Row:
    if not isinstance(value, dict):
        raise ValueError(f"expected an object, got {value!r:.40}")
    return value


def _test(rows: Iterable[Row]) -> dict[str, Dataset]:
    return {"test": Dataset.from_list(list(rows))}
