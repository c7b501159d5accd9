"""Supervised fine-tuning, or training from scratch by preset, with LLaDA's objective.

python -m training.sft --preset sudoku4 --output_dir outputs/sudoku4
python -m training.sft --model DIR --data FILE.jsonl --output_dir DIR
python -m training.sft --model DIR --data FILE.jsonl --output_dir DIR --lora
    [--lora_r 8 --lora_target q_proj,v_proj]
torchrun --nproc_per_node 2 -m training.sft …
"""

from __future__ import annotations

from collections.abc import Sequence

from training.runs import launch
from training.runs.command import Command
from training.runs.options import FineTuningOptions
from training.runs.presets import PRESETS
from training.runs.sft_run import prepare

COMMAND = Command(
    name="sft",
    options=FineTuningOptions,
    presets=PRESETS,
    prepare=prepare,
)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    launch.main(COMMAND, argv)


if __name__ == "__main__":
    main()
