"""Router training: an ALA router before a frozen backbone, LLaDA's SFT objective; `router=OUTPUT_DIR` loads the result.

    python -m training.router_sft --preset nim_router --output_dir outputs/nim_router
    python -m training.router_sft --model DIR --data FILE.jsonl --output_dir DIR [--no_prompt, the control]
    torchrun --nproc_per_node 2 -m training.router_sft …
"""
from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llada_plugins.options.fields import arg
from training.loop import objectives
from training.loop.trainer import noise
from training.runs import launch, routing
from training.runs.presets import ROUTER_PRESETS

from .sft import SFTOptions

USAGE = "python -m training.router_sft (--preset NAME | --model DIR --data FILE.jsonl) --output_dir DIR [flags; --help lists them]"


@dataclass(frozen=True, kw_only=True)
class RouterOptions(SFTOptions):
    """What is trained on what, and the router's shape."""

    preset: str | None = arg(None, f"a router with its backbone and data: {', '.join(ROUTER_PRESETS)}; it sets the other flags' defaults")
    router_mode: str = arg("residual", "residual: mask embedding + output, the identity before training; replace: the output alone")
    router_layers: int = arg(1, "cross-attention layers")
    router_heads: int = arg(4, "attention heads")
    router_mlp: int = arg(0, "hidden units of the MLP after each attention; 0 = none")
    router_blocks: int = arg(1, "transformer blocks that get seeds, each its own, the first ones; 1 = only the input")
    router_scaled: bool = arg(False, "seeds in units of the mask embedding's RMS, so that a learning rate suits embeddings of any size")
    max_positions: int = arg(1024, "longest answer, and reach into the prompt from its end, in tokens")
    no_prompt: bool = arg(False, "the control: a static bias for each answer position, learned without any prompt")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    argv = sys.argv[1:] if argv is None else argv
    command = ["python", "-m", "training.router_sft", *argv]
    try:
        options, arguments = launch.parse(RouterOptions, USAGE, argv, ROUTER_PRESETS)
        launch.check_output(arguments)
        if options.preset:
            job = launch.preset_job(options.preset, arguments, ROUTER_PRESETS)
        else:
            job = launch.checkpoint_job(options, arguments)
        model = routing.routed_model(job, routing.router_config(options, job.model), noise("router", arguments.seed))
    except (ValueError, OSError) as error:
        launch.refuse(error)
    arguments.eval_on_start = job.evaluation is not None and not arguments.resume        # the loss before training
    launch.run(job._replace(model=model), objectives.routed_sft(model.mask_id), arguments, command,
               options=options, save=routing.save_routed(job.model, command), load=routing.load_routed)
    if arguments.should_save:
        routing.record_metrics(Path(arguments.output_dir))


if __name__ == "__main__":
    main()
