"""What fine-tuning trains and writes: all weights, or LoRA adapters of them."""

from __future__ import annotations

from collections.abc import Sequence

from training.loop import objectives
from training.loop.random_streams import random_stream
from training.loop.throughput import measured

from .arguments import RunArguments
from .command import Run
from .jobs import (
    answer_job,
    mask_id,
    mean_length,
    noisy_share,
    reading_of,
    train_logits_alone,
)
from .lora_adapters import add_lora, load_lora, save_lora
from .options import FineTuningOptions


def prepare(options: FineTuningOptions, arguments: RunArguments, command: Sequence[str]) -> Run:
    """The run that `python -m training.sft` was asked for."""
    job = answer_job(options, arguments)
    config = job.model.config
    make = objectives.complementary if options.complementary_masks else objectives.sft
    objective = make(mask_id(config), reading_of(config))
    if options.adapters is None:
        train_logits_alone(job.model)
        share = noisy_share(config, job.train)
        views = 2 if options.complementary_masks else 1
        throughput = measured(job.model, mean_length(job.train), arguments, share, views)
        return Run(job=job, objective=objective, throughput=throughput)
    assert options.model is not None  # adapters are of a checkpoint
    save = save_lora(job.model, options.adapters, options.model)
    add_lora(job.model, options.adapters, random_stream("lora", arguments.seed))
    return Run(job=job, objective=objective, save=save, load=load_lora)
