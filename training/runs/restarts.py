"""A run whose processes torchrun or accelerate starts again (`--max_restarts`) goes on.

The launcher repeats the command, which says nothing of resuming, after a process or a
machine was lost.
"""

from __future__ import annotations

import logging
import os
import socket
from pathlib import Path

from transformers.trainer_utils import get_last_checkpoint

from training.loop.resuming import description_of

from .arguments import RunArguments

logger = logging.getLogger(__name__)

LAUNCH = "launch"  # in run.json: which launch began the run
WEIGHTS = "*.safetensors"  # of a run that has ended


def launch() -> str | None:
    """What tells a launch from all others, machines that join again included.

    --rdzv_id, where it is given. Else the launcher's process, which machines do not share.
    None without a launcher.
    """
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    if name is None or name != "none":
        return name
    return f"{socket.gethostname()} {os.getppid()}"


def go_on(arguments: RunArguments) -> None:
    """Set `resume`, or `overwrite` before the first checkpoint, where this launch began the run.

    A folder of another launch, or of a run that has ended, is left to the flags: it is
    refused unless they say what to do with it.
    """
    restarted = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    if arguments.resume or (arguments.overwrite and not restarted):
        return
    folder = Path(arguments.output_dir)
    this = launch()
    if this is None or description_of(folder).get(LAUNCH) != this:
        return
    if last := get_last_checkpoint(str(folder)):
        arguments.resume, arguments.overwrite = True, False
        logger.warning("started again by its launcher: the run goes on from %s", last)
    elif not any(folder.glob(WEIGHTS)):
        arguments.overwrite = True
        logger.warning("started again by its launcher, before the first checkpoint: from the start")
