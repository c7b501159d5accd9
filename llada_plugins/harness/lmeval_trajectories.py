"""Where lm-eval writes samples, and which question a request is: for record=trajectory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.loggers import EvaluationTracker

from llada_plugins.engine.record_options import SUFFIX, with_file
from llada_plugins.engine.request import QuestionId

from .frames import callers
from .lmeval_notes import repeats
from .lmeval_tasks import chosen_documents


def with_place(options: dict[str, Any]) -> dict[str, Any]:
    """The options; with a file in lm-eval's output folder where record names none."""
    folder = samples_folder()
    return with_file(options, None if folder is None else folder / SUFFIX)


def samples_folder() -> Path | None:
    """Where the lm-eval that is calling writes results and samples; None where it writes none.

    Before the model is loaded that is --output_path itself, then the model's folder in it.
    """
    for frame in callers():
        tracker = frame.f_locals.get("evaluation_tracker")
        if isinstance(tracker, EvaluationTracker) and tracker.output_path:
            folder = Path(tracker.output_path)
            if folder.suffix == ".json":
                return folder.parent
            return folder / (tracker.general_config_tracker.model_name_sanitized or "")
    return None


def question_ids(requests: Sequence[Instance]) -> list[QuestionId]:
    """The question of each request of a call, and which answer to it.

    Documents that --samples chooses have their numbers in the task, as in lm-eval's samples.
    """
    chosen = chosen_documents()
    found = []
    for request, number in zip(requests, repeats(requests)):
        document, rows = request.doc_id, chosen.get(request.task_name or "")
        if rows and document is not None:
            document = rows[document]
        found.append(QuestionId(request.task_name, document, number))
    return found
