"""Remask SFT: a UPS head (RemeDi, arXiv 2509.23653) on a frozen backbone, or with it.

`ups=OUTPUT_DIR` loads the result.

    python -m training.remask_sft --preset sudoku4_ups --output_dir outputs/sudoku4_ups
    python -m training.remask_sft --model DIR --data FILE.jsonl --output_dir DIR
        [--joint | --lora]
    torchrun --nproc_per_node 2 -m training.remask_sft …
"""

from __future__ import annotations

from collections.abc import Sequence

from training.runs import launch
from training.runs.command import Command
from training.runs.presets import UPS_PRESETS
from training.runs.remask_options import RemaskOptions
from training.runs.remask_run import prepare

COMMAND = Command(
    name="remask_sft",
    options=RemaskOptions,
    presets=UPS_PRESETS,
    prepare=prepare,
)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    launch.main(COMMAND, argv)


if __name__ == "__main__":
    main()
