"""Where OpenCompass writes predictions, and which question a prompt is: for record=trajectory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .opencompass_tasks import asking, infer_task, predictions_file

if TYPE_CHECKING:
    from llada_plugins.engine.recording import Recorder
    from llada_plugins.engine.request import QuestionId


def with_place(options: dict[str, Any]) -> dict[str, Any]:
    """The options; with a file in the task's work folder where record names none."""
    from llada_plugins.engine.record_options import SUFFIX, with_file

    frame = infer_task()
    if frame is None:
        return options
    return with_file(options, Path(frame.f_locals["self"].work_dir) / SUFFIX)


def place_recorder(
    recorder: Recorder, model: Any, num_inputs: int, number: int, *, move: bool
) -> list[QuestionId | None]:
    """The question of each of `number` answers to each input that is asked for.

    Rows are numbered as in the file of predictions. None where no inferencer of this model
    says what it asks. move: the recorder writes beside those predictions from here on.
    """
    from llada_plugins.engine.record_options import SUFFIX
    from llada_plugins.engine.request import QuestionId

    now, predictions = asking(model), predictions_file(model)
    if now is None or predictions is None:
        return [None] * (num_inputs * number)
    if move:
        recorder.path = predictions.with_name(f"{predictions.stem}.{SUFFIX}")
    return [
        QuestionId(predictions.stem, now.row + place, now.sample * number + sample)
        for place in range(num_inputs)
        for sample in range(number)
    ]
