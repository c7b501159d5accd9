"""The answers in a result folder, whichever harness wrote it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from llada_plugins.files.foreign_json import load
from llada_plugins.files.jsonl import each_row


class Answers(NamedTuple):
    """The decoded texts of one run."""

    path: Path
    texts: dict[str, str]  # prompt -> answer
    accuracy: float | None  # 0-1, as the harness computed it


class Answer(NamedTuple):
    """One of them."""

    prompt: str
    text: str
    score: float | None  # by the first metric


def read_answers(place: Path) -> Answers:
    """The newest run at or below `place`.

    Raises FileNotFoundError or ValueError saying what is missing.
    """
    if not place.exists():
        raise FileNotFoundError(f"{place}: no such file or folder")
    found = [place] if place.is_file() else _result_files(place)
    if not found:
        raise FileNotFoundError(
            f"{place}: holds neither samples_*.jsonl (lm_eval --log_samples) nor predictions/ "
            "(opencompass)"
        )
    path = max(found, key=lambda file: file.stat().st_mtime)
    return _read_lmeval(path) if path.suffix == ".jsonl" else _read_opencompass(path)


def _result_files(folder: Path) -> list[Path]:
    """What lm-eval and OpenCompass wrote below a folder."""
    predictions = (
        file
        for file in folder.rglob("*.json")
        if file.absolute().parent.parent.name == "predictions"
    )
    return [*folder.rglob("samples_*.jsonl"), *predictions]


def _read_lmeval(path: Path) -> Answers:
    answers = list(each_row(path, _lmeval_answer))
    texts = {answer.prompt: answer.text for answer in answers}
    scores = [answer.score for answer in answers if answer.score is not None]
    return Answers(path, texts, sum(scores) / len(scores) if scores else None)


def _lmeval_answer(row: Any) -> Answer:
    """A line that lm-eval's --log_samples wrote; its first metric is the score."""
    try:
        prompt, text = row["arguments"]["gen_args_0"]["arg_0"], row["resps"][0][0]
        metric = next(iter(row.get("metrics", [])), None)
        return Answer(prompt, text, None if metric is None else row[metric])
    except (KeyError, IndexError, TypeError, AttributeError):
        raise ValueError(
            "not a generated answer of lm_eval --log_samples: give the samples of a task that "
            "generates"
        ) from None


def _read_opencompass(path: Path) -> Answers:
    rows = load(path).values()
    texts = {row["origin_prompt"]: prediction_text(row["prediction"]) for row in rows}
    results = results_beside(path)
    accuracy = None
    if results.is_file():
        accuracy = load(results).get("accuracy")
    return Answers(path, texts, None if accuracy is None else accuracy / 100)


def prediction_text(prediction: Any) -> Any:
    """A prediction of OpenCompass without the costs that record_stats=True puts beside it."""
    return prediction["prediction"] if isinstance(prediction, dict) else prediction


def results_beside(predictions: Path) -> Path:
    """Where OpenCompass puts the scores of the answers in a file of predictions."""
    return predictions.parents[2] / "results" / predictions.parent.name / predictions.name


def same_accuracy(first: Answers, second: Answers) -> bool:
    """Do accuracies agree, where both are known? OpenCompass keeps 2 decimals of percent."""
    if first.accuracy is None or second.accuracy is None:
        return True
    return abs(first.accuracy - second.accuracy) < 5e-5
