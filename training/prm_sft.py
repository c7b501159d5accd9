"""PRM training: token classification of steps as right or wrong, from rows in TRL's
format; the output is a PRM for back-masking.

python -m training.prm_sft --preset sudoku4_prm --output_dir outputs/sudoku4_prm python
-m training.prm_sft --model DIR_OR_HUB_ID --data STEPS.jsonl --output_dir DIR
[--separator $'\\n\\n'] torchrun --nproc_per_node 2 -m training.prm_sft …
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from training.runs import launch
from training.runs import prm_run as reward
from training.runs.presets import PRM_PRESETS

USAGE = "python -m training.prm_sft (--preset NAME | --model DIR --data FILE.jsonl) --output_dir DIR [flags; --help lists them]"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    argv = sys.argv[1:] if argv is None else argv
    options, arguments = launch.parse(reward.PRMOptions, USAGE, argv, PRM_PRESETS)
    command = ["python", "-m", "training.prm_sft", *argv]
    try:
        launch.check_output(arguments)
        if options.preset:
            job = reward.preset_prm_job(options.preset, arguments.seed)
        else:
            job = reward.checkpoint_prm_job(options, arguments.seed)
    except (ValueError, OSError) as error:
        launch.refuse(error)
    save = reward.save_prm(job.tokenizer_folder, {"command": shlex.join(command)})
    found = launch.run(
        job,
        reward.token_class,
        arguments,
        command,
        options=options,
        save=save,
        measure=reward.measure,
    )
    if arguments.should_save:
        metrics = {
            name: found[f"eval_{name}"]
            for name in ("loss", "step_auc", "step_accuracy", "right_share")
            if f"eval_{name}" in found
        }
        if options.preset:
            metrics["answers of the tiny model"] = reward.measure_answers(
                Path(arguments.output_dir)
            )
        reward.record_metrics(Path(arguments.output_dir), metrics)


if __name__ == "__main__":
    main()
