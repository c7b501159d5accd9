"""Answers to a file of questions, with a CSV that a killed run goes on with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from llada_plugins.files.csv_journal import MetricsFile
from llada_plugins.methods.table import METHODS
from llada_plugins.options.fields import arg
from llada_plugins.tasks import mathematics
from llada_plugins.tasks.mathematics import Question

from .engine import Completion, Engine, Request
from .interval import wilson
from .progress import progress
from .record_options import SUFFIX, with_file
from .request import QuestionId

# tokens, unless gen_length says otherwise: the published length of LLaDA and LLaDA-R3 for MATH
ANSWER_LENGTH = 512


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What is asked, and where the metrics go."""

    data: str = arg(
        help=".csv, .jsonl or .json file with the columns question (or problem) and answer"
    )
    output: str = arg(help="metrics .csv; where it holds rows of the same run, that run goes on")
    model: Literal[tuple(METHODS)] = arg(  # type: ignore[valid-type]  # names of a table
        "llada", f"one of {', '.join(METHODS)}"
    )
    limit: int | None = arg(
        None, "ask the first so many questions only; may be raised when a run goes on"
    )
    instruction: str = arg(
        mathematics.INSTRUCTION, "stands after every question, on a line of its own; may be empty"
    )
    chat: Literal["auto", "true", "false"] = arg(
        "auto", "render the tokenizer's chat template (auto: where it has one)"
    )
    until: str | None = arg(None, "a string that ends an answer, such as Problem: for base models")

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit must be at least 1, got {self.limit}")


class Row(NamedTuple):
    """A row of the metrics file."""

    # of the question in the data, from 0; a column's name, though tuples have a method so named
    index: int  # type: ignore[assignment]
    id: str  # digest of question and reference
    correct: int  # 1 or 0
    answer: str  # as extracted from the response, "" where it has none
    reference: str
    forwards: int
    prm_calls: int
    seconds: float  # its share of the time of its steps, see metering.py
    prm_seconds: float  # of them, spent in the PRM
    tokens: int  # as `counted_tokens` counts
    overlong: str  # truncated or skipped, where the question did not fit
    response: str


def evaluate(config: EvaluateConfig, options: dict[str, Any]) -> str:
    """Ask what the metrics file lacks; returns the summary of all its rows.

    options: of Engine, by name.
    """
    mathematics.check_grader()
    questions = mathematics.read(Path(config.data))
    mathematics.check_references(questions)
    with MetricsFile(Path(config.output), Row._fields) as metrics:
        metrics.expect(data=_digest(questions), instruction=config.instruction, until=config.until)
        placed = with_file(options, Path(config.output).with_suffix(f".{SUFFIX}"))
        engine = Engine(config.model, **{"gen_length": ANSWER_LENGTH, **placed})
        chat = config.chat == "true"
        if config.chat == "auto":
            chat = bool(engine.tokenizer.chat_template)
        metrics.expect(chat=chat, engine=json.loads(engine.fingerprint()))
        rows = metrics.begin(data_file=config.data, model=engine.info())
        _check_rows(metrics.path, rows, questions)
        done = {int(row["index"]) for row in rows}
        rows += _answer_missing(engine, metrics, questions[: config.limit], done, config, chat)
    within = [row for row in rows if config.limit is None or int(row["index"]) < config.limit]
    return summary(config.output, within)


def _answer_missing(
    engine: Engine,
    metrics: MetricsFile,
    questions: Sequence[Question],
    done: set[int],
    config: EvaluateConfig,
    chat: bool,
) -> list[dict[str, str]]:
    missing = {question.question for index, question in enumerate(questions) if index not in done}
    # repeats of a question are decoded together: the n-th has its own random numbers,
    # whether or not the run was interrupted
    order = [index for index, question in enumerate(questions) if question.question in missing]
    requests = [
        _request(engine, questions[index].question, config, chat)._replace(
            id=QuestionId(Path(config.data).stem, index)
        )
        for index in order
    ]
    added = []
    with closing(progress(len(questions), f"{engine.method} evaluate")) as bar:
        for _ in done & set(range(len(questions))):
            bar.known()
        for place, completion in engine.generate(requests):
            if order[place] not in done:
                row = _row(order[place], questions[order[place]], completion)
                metrics.append(row)
                added.append({name: str(value) for name, value in row._asdict().items()})
                bar.add(completion.num_tokens, completion.num_forwards)
    return added


def _request(engine: Engine, question: str, config: EvaluateConfig, chat: bool) -> Request:
    prompt = mathematics.asked(question, config.instruction)
    if chat:
        prompt = engine.render_chat([{"role": "user", "content": prompt}])
    return Request(prompt, engine.sampler, (config.until,) if config.until else (), question)


def _row(index: int, question: Question, completion: Completion) -> Row:
    correct, answer = mathematics.grade(question.answer, completion.text)
    return Row(
        index,
        _digest([question]),
        int(correct),
        answer,
        question.answer,
        completion.num_forwards,
        completion.num_prm_calls,
        round(completion.seconds, 6),
        round(completion.prm_seconds, 6),
        completion.num_tokens,
        completion.overlong or "",
        completion.text,
    )


def _check_rows(path: Path, rows: Sequence[dict[str, str]], questions: Sequence[Question]) -> None:
    ids = {str(index): _digest([question]) for index, question in enumerate(questions)}
    for row in rows:
        if ids.pop(row["index"], None) != row["id"]:
            raise ValueError(
                f"{path} was changed: its row with index {row['index']} is there twice or of "
                "another question: give another file"
            )


def summary(name: str, rows: Sequence[dict[str, str]]) -> str:
    """Accuracy with its 95 % interval, and the cost per question."""

    def mean(column: str) -> float:
        return sum(float(row[column]) for row in rows) / len(rows)

    accuracy = mean("correct")
    interval = wilson(accuracy, len(rows))
    # skipped questions take no time, and all of them may have been skipped
    seconds, prm_seconds = mean("seconds"), mean("prm_seconds")
    in_prm = prm_seconds / seconds if seconds else 0.0
    overlong = sum(bool(row["overlong"]) for row in rows)
    told = f"; {overlong} did not fit the context, see the column overlong" if overlong else ""
    return (
        f"{name}: {len(rows)} questions, accuracy {accuracy:.3f}, 95 % interval "
        f"{interval.low:.3f} to {interval.high:.3f}{told}\n"
        f"a question: {mean('forwards'):.1f} forwards, {mean('prm_calls'):.1f} PRM calls, "
        f"{mean('tokens'):.1f} tokens, {seconds:.3f} s, of which {100 * in_prm:.1f} % in the PRM"
    )


def _digest(questions: Sequence[Question]) -> str:
    return hashlib.sha256(json.dumps(questions).encode()).hexdigest()[:16]
