"""Remask SFT: a UPS head (RemeDi, arXiv 2509.23653) on a frozen backbone, or with it;
`ups=OUTPUT_DIR` loads the result.

python -m training.remask_sft --preset sudoku4_ups --output_dir outputs/sudoku4_ups
python -m training.remask_sft --model DIR --data FILE.jsonl --output_dir DIR [--joint |
--lora] torchrun --nproc_per_node 2 -m training.remask_sft …
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from training.loop import objectives
from training.loop.trainer import noise
from training.runs import launch
from training.runs import remask_run as policy
from training.runs.jobs import checkpoint_job, preset_job
from training.runs.presets import UPS_PRESETS

USAGE = "python -m training.remask_sft (--preset NAME | --model DIR --data FILE.jsonl) --output_dir DIR [flags; --help lists them]"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    argv = sys.argv[1:] if argv is None else argv
    options, arguments = launch.parse(policy.RemaskOptions, USAGE, argv, UPS_PRESETS)
    command = ["python", "-m", "training.remask_sft", *argv]
    try:
        launch.check_output(arguments)
        if options.preset:
            job = preset_job(options.preset, arguments, UPS_PRESETS)
        else:
            job = checkpoint_job(options, arguments)
        incorrect = policy.INCORRECT_FROM[options.incorrect_from](job)
        start = options.model or UPS_PRESETS[options.preset].model
        description = {
            "backbone": start,
            "command": shlex.join(command),
            "options": asdict(options),
        }
        save = policy.save_remask(job, {"training": description}, options.adapters)
        model = policy.policy_model(
            job.model,
            options.ups_width,
            noise("ups", arguments.seed),
            joint=options.joint,
            lora=options.adapters,
        )
    except (ValueError, OSError, ImportError) as error:
        launch.refuse(error)
    objective = objectives.remask_sft(
        model.config.mask_token_id,
        r_incorrect=options.r_incorrect,
        lambda_ups=options.lambda_ups,
        label_smoothing=options.label_smoothing,
        train_backbone=not model.frozen,
        incorrect=incorrect,
    )
    metrics = launch.run(
        job._replace(model=model),
        objective,
        arguments,
        command,
        options=options,
        save=save,
        load=policy.load_remask,
        measure=policy.measure,
    )
    if arguments.should_save:
        policy.record_metrics(Path(arguments.output_dir), metrics)


if __name__ == "__main__":
    main()
