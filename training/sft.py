"""Supervised fine-tuning, or training from scratch by preset, with LLaDA's objective.

python -m training.sft --preset sudoku4 --output_dir outputs/sudoku4 python -m
training.sft --model DIR --data FILE.jsonl --output_dir DIR python -m training.sft
--model DIR --data FILE.jsonl --output_dir DIR --lora [--lora_r 8 --lora_target
q_proj,v_proj] torchrun --nproc_per_node 2 -m training.sft …
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from training.loop import objectives
from training.loop.throughput import measured
from training.loop.trainer import noise
from training.runs import launch
from training.runs import lora_adapters as lora
from training.runs.jobs import checkpoint_job, mean_length, preset_job
from training.runs.options import FineTuningOptions

USAGE = "python -m training.sft (--preset NAME | --model DIR --data FILE.jsonl) --output_dir DIR [flags; --help lists them]"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    argv = sys.argv[1:] if argv is None else argv
    options, arguments = launch.parse(FineTuningOptions, USAGE, argv)
    save, load = None, None  # a whole model
    try:
        launch.check_output(arguments)
        if options.preset:
            job = preset_job(options.preset, arguments)
        else:
            job = checkpoint_job(options, arguments)
        if options.adapters:
            save, load = lora.save_lora(job.model, options.adapters, options.model), lora.load_lora
            lora.add_lora(job.model, options.adapters, noise("lora", arguments.seed))
        else:
            launch.train_logits_alone(job.model)
    except (ValueError, OSError, ImportError) as error:
        launch.refuse(error)
    throughput = (
        None if options.adapters else measured(job.model, mean_length(job.train), arguments)
    )
    launch.run(
        job,
        objectives.sft(job.model.config.mask_token_id),
        arguments,
        ["python", "-m", "training.sft", *argv],
        options=options,
        save=save,
        load=load,
        throughput=throughput,
    )


if __name__ == "__main__":
    main()
