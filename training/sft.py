"""Supervised fine-tuning, or training from scratch by preset, with LLaDA's objective.

    python -m training.sft --preset sudoku4 --output_dir outputs/sudoku4
    python -m training.sft --model DIR --data FILE.jsonl --output_dir DIR
    torchrun --nproc_per_node 2 -m training.sft …
"""
from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from llada_plugins.config import arg

from . import launch, objectives

USAGE = "python -m training.sft (--preset NAME | --model DIR --data FILE.jsonl) --output_dir DIR [flags; --help lists them]"


@dataclass(frozen=True, kw_only=True)
class SFTOptions:
    """What is trained on what."""

    preset: str | None = arg(None, f"a model from scratch with its data: {', '.join(launch.PRESETS)}; it sets the other flags' defaults")
    model: str | None = arg(None, "checkpoint folder or hub id to start from; 'tiny' is the model in the package")
    data: str | None = arg(None, 'JSONL file of rows {"prompt": text, "completion": text} or {"input_ids": [ids], "prompt_length": tokens}')
    eval_data: str | None = arg(None, "JSONL file of the same form for the evaluation loss (see --eval_strategy)")
    append_eos: bool = arg(True, "end every text completion with EOS; rows of ids are taken as they are")

    def __post_init__(self) -> None:
        if (self.preset is None) == (self.model is None):
            raise ValueError("give --preset NAME, or --model DIR with --data FILE.jsonl")
        if self.preset is not None and (self.data or self.eval_data):
            raise ValueError("a preset brings its own data: leave --data and --eval_data out")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    argv = sys.argv[1:] if argv is None else argv
    options, arguments = launch.parse(SFTOptions, USAGE, argv)
    try:
        launch.check_output(arguments)
        if options.preset:
            job = launch.preset_job(options.preset, arguments)
        else:
            job = launch.checkpoint_job(options.model, options.data, options.eval_data, options.append_eos)
    except (ValueError, OSError) as error:
        launch.refuse(error)
    launch.run(job, objectives.sft(job.model.config.mask_token_id), arguments, ["python", "-m", "training.sft", *argv])


if __name__ == "__main__":
    main()
