"""Pre-training with LLaDA's objective, of a model from scratch or on from a checkpoint.

python -m training.pretrain --preset wikitext2 --output_dir outputs/wikitext2
python -m training.pretrain --dataset FILE_FOLDER_OR_NAME --output_dir DIR
    [--model DIR | --d_model 512 --n_layers 8 …]
torchrun --nproc_per_node 2 -m training.pretrain …
"""

from __future__ import annotations

from collections.abc import Sequence

from training.runs import launch
from training.runs.command import Command
from training.runs.presets import PRETRAIN_PRESETS
from training.runs.pretrain_options import PretrainOptions
from training.runs.pretrain_run import prepare

COMMAND = Command(
    name="pretrain",
    options=PretrainOptions,
    presets=PRETRAIN_PRESETS,
    prepare=prepare,
    start="(--preset NAME | --dataset DATA [--model DIR])",
)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    launch.main(COMMAND, argv)


if __name__ == "__main__":
    main()
