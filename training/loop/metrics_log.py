"""metrics.jsonl: what a run logs, one JSON object a line."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from transformers import (
    ProgressCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from llada_plugins.files.atomic import write_whole

logger = logging.getLogger(__name__)

METRICS = "metrics.jsonl"


class ProgressBar(ProgressCallback):
    """transformers' bar without its lines: MetricsLog writes them."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        pass


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, without a last one that a killed process left torn."""
    lines = (folder / METRICS).read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("}\n")]


class MetricsLog(TrainerCallback):
    """All that is logged, one JSON object a line in metrics.jsonl and one log line each.

    Resuming drops the lines after the checkpoint.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        folder = _folder(args)
        if not state.is_world_process_zero or not (folder / METRICS).is_file():
            return
        past = [row for row in read_metrics(folder) if row["step"] <= state.global_step]
        write_whole(folder / METRICS, "".join(map(_line, past)))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        if not state.is_world_process_zero or logs is None:
            return
        values = ", ".join(f"{name} {value:.4g}" for name, value in logs.items())
        logger.info("step %d: %s", state.global_step, values)
        folder = _folder(args)
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / METRICS).open("a", encoding="utf-8") as file:
            file.write(_line({"step": state.global_step, **logs}))


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row) + "\n"


def _folder(arguments: TrainingArguments) -> Path:
    assert arguments.output_dir is not None  # the commands' arguments require it
    return Path(arguments.output_dir)
