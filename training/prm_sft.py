"""PRM training: token classification of steps as right or wrong, from rows in TRL's format.

The output is a process reward model for back-masking.

    python -m training.prm_sft --preset sudoku4_prm --output_dir outputs/sudoku4_prm
    python -m training.prm_sft --model DIR_OR_HUB_ID --data STEPS.jsonl --output_dir DIR
        [--separator $'\\n\\n']
    torchrun --nproc_per_node 2 -m training.prm_sft …
"""

from __future__ import annotations

from collections.abc import Sequence

from training.runs import launch
from training.runs.command import Command
from training.runs.presets import PRM_PRESETS
from training.runs.prm_run import PRMOptions, prepare

COMMAND = Command(
    name="prm_sft",
    options=PRMOptions,
    presets=PRM_PRESETS,
    prepare=prepare,
)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    launch.main(COMMAND, argv)


if __name__ == "__main__":
    main()
