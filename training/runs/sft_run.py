"""What fine-tuning trains and writes: all weights, or LoRA adapters of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from transformers import TrainerCallback

from llada_plugins.models.llada import LLaDA
from training.loop import objectives
from training.loop.objectives import Objective
from training.loop.random_streams import random_stream
from training.loop.throughput import measured

from .arguments import RunArguments
from .command import Run
from .jobs import (
    Job,
    answer_job,
    mask_id,
    mean_length,
    noisy_share,
    reading_of,
    train_logits_alone,
)
from .lora_adapters import add_lora, load_lora, save_lora
from .options import AdaptingOptions, FineTuningOptions


def prepare(options: FineTuningOptions, arguments: RunArguments, command: Sequence[str]) -> Run:
    """The run that `python -m training.sft` was asked for."""
    job = answer_job(options, arguments)
    config = job.model.config
    make = objectives.complementary if options.complementary_masks else objectives.sft
    views = 2 if options.complementary_masks else 1
    return fine_tuned(job, make(mask_id(config), reading_of(config)), options, arguments, views)


def fine_tuned(
    job: Job[LLaDA, Any],
    objective: Objective,
    options: AdaptingOptions,
    arguments: RunArguments,
    views: int = 1,
    callbacks: Sequence[TrainerCallback] = (),
) -> Run:
    """A run of the job that trains all weights, or adapters where the options ask for them.

    views: noisy copies of a row that an update computes.
    """
    run = Run(job=job, objective=objective, callbacks=callbacks)
    if options.adapters is None:
        train_logits_alone(job.model)
        share = noisy_share(job.model.config, job.train)
        throughput = measured(job.model, mean_length(job.train), arguments, share, views)
        return replace(run, throughput=throughput)
    assert options.model is not None  # adapters are of a checkpoint
    save = save_lora(job.model, options.adapters, options.model)
    add_lora(job.model, options.adapters, random_stream("lora", arguments.seed))
    return replace(run, save=save, load=load_lora)
