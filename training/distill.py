"""Distillation: a student learns the order in which its teacher unmasks (d3LLM, arXiv 2601.07568).

The result is an ordinary checkpoint, or an adapter, that needs fewer forwards.

    python -m training.distill --preset sudoku4 --output_dir outputs/sudoku4_distilled
    python -m training.distill --model DIR --data FILE.jsonl --output_dir DIR
        [--trajectories DIR] [--lora]
    torchrun --nproc_per_node 2 -m training.distill …
"""

from __future__ import annotations

from collections.abc import Sequence

from training.runs import launch
from training.runs.command import Command
from training.runs.distill_options import DistillOptions
from training.runs.distill_presets import DISTILL_PRESETS
from training.runs.distill_run import prepare

COMMAND = Command(
    name="distill",
    options=DistillOptions,
    presets=DISTILL_PRESETS,
    prepare=prepare,
)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    launch.main(COMMAND, argv)


if __name__ == "__main__":
    main()
