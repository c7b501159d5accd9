"""Pre-training with LLaDA's objective, of a model from scratch or on from a checkpoint.

python -m training.pretrain --preset wikitext2 --output_dir outputs/wikitext2 python -m
training.pretrain --dataset FILE_FOLDER_OR_NAME [--model DIR | --d_model 512 --n_layers
8 …] --output_dir DIR torchrun --nproc_per_node 2 -m training.pretrain …
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from training.loop import objectives
from training.loop.throughput import measured
from training.runs import launch
from training.runs.presets import PRETRAIN_PRESETS
from training.runs.pretrain_run import Evaluations, PretrainOptions, pretrain_job

USAGE = "python -m training.pretrain (--preset NAME | --dataset DATA [--model DIR]) --output_dir DIR [flags; --help lists them]"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    argv = sys.argv[1:] if argv is None else argv
    options, arguments = launch.parse(PretrainOptions, USAGE, argv, PRETRAIN_PRESETS)
    output = Path(arguments.output_dir)
    fresh, before = not output.exists(), set(output.glob("*"))
    try:
        launch.check_output(arguments)
        job = pretrain_job(options, arguments)
    except (ValueError, OSError, ImportError) as error:
        # a tokenizer, perhaps tokens, and no run
        for path in [output] if fresh else set(output.glob("*")) - before:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(
                missing_ok=True
            )
        launch.refuse(error)
    # the bound before training
    arguments.eval_on_start = job.evaluation is not None and not arguments.resume
    objective = objectives.pretrain(job.model.config.mask_token_id, options.random_lengths)
    launch.run(
        job,
        objective,
        arguments,
        ["python", "-m", "training.pretrain", *argv],
        options=options,
        callbacks=[Evaluations(job, options)],
        throughput=measured(job.model, job.train.seq_len, arguments),
    )


if __name__ == "__main__":
    main()
