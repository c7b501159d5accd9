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


class MetricsLog(TrainerCallback):
    """All that is logged, one JSON object a line in metrics.jsonl and one log line
    each; resuming drops the lines after the checkpoint.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        path = _metrics_file(args)
        if not state.is_world_process_zero or not path.is_file():
            return
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("}\n")]  # the last one may be torn
        past = [line for line in whole if json.loads(line)["step"] <= state.global_step]
        write_whole(path, "".join(past))

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
        path = _metrics_file(args)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": state.global_step, **logs}) + "\n")


def _metrics_file(arguments: TrainingArguments) -> Path:
    assert arguments.output_dir is not None  # the commands' arguments require it
    return Path(arguments.output_dir) / METRICS
