"""Router training: an ALA router before a frozen backbone, LLaDA's SFT objective;
`router=OUTPUT_DIR` loads the result.

python -m training.router_sft --preset nim_router --output_dir outputs/nim_router python
-m training.router_sft --model DIR --data FILE.jsonl --output_dir DIR [--no_prompt, the
control] torchrun --nproc_per_node 2 -m training.router_sft …
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from training.loop import objectives
from training.loop.trainer import noise
from training.runs import launch
from training.runs import router_run as routing
from training.runs.jobs import checkpoint_job, preset_job
from training.runs.options import RouterOptions
from training.runs.presets import ROUTER_PRESETS

USAGE = "python -m training.router_sft (--preset NAME | --model DIR --data FILE.jsonl) --output_dir DIR [flags; --help lists them]"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    argv = sys.argv[1:] if argv is None else argv
    command = ["python", "-m", "training.router_sft", *argv]
    try:
        options, arguments = launch.parse(RouterOptions, USAGE, argv, ROUTER_PRESETS)
        launch.check_output(arguments)
        if options.preset:
            job = preset_job(options.preset, arguments, ROUTER_PRESETS)
        else:
            job = checkpoint_job(options, arguments)
        model = routing.routed_model(
            job, routing.router_config(options, job.model), noise("router", arguments.seed)
        )
    except (ValueError, OSError) as error:
        launch.refuse(error)
    # the loss before training
    arguments.eval_on_start = job.evaluation is not None and not arguments.resume
    launch.run(
        job._replace(model=model),
        objectives.routed_sft(model.mask_id),
        arguments,
        command,
        options=options,
        save=routing.save_routed(job.model, command),
        load=routing.load_routed,
    )
    if arguments.should_save:
        routing.record_metrics(Path(arguments.output_dir))


if __name__ == "__main__":
    main()
