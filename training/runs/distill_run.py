"""What distillation trains and writes: as SFT does, on a teacher's trajectories."""

from __future__ import annotations

from collections.abc import Sequence

from training.data.trajectories import collate_trajectories
from training.loop.distillation import Progress, distilled

from .arguments import RunArguments
from .command import Run
from .distill_options import DistillOptions
from .distill_presets import DISTILL_PRESETS
from .extraction import taught
from .full_attention import check_full_attention
from .jobs import Job, answer_job, eos_id, mask_id, reading_of
from .sft_run import fine_tuned


def prepare(options: DistillOptions, arguments: RunArguments, command: Sequence[str]) -> Run:
    """The run that `python -m training.distill` was asked for."""
    if options.model is not None:
        check_full_attention(
            options.model,
            options.attention,
            "where nothing is masked after a window: distil a model with full attention",
        )
    job = answer_job(options, arguments, DISTILL_PRESETS)
    train, evaluation = taught(job, options, arguments)
    config = job.model.config
    collate = collate_trajectories(eos_id(config), config.max_sequence_length)
    progress = Progress()
    objective = distilled(
        mask_id(config), options.recipe, lambda: progress.done, reading_of(config)
    )
    rows = Job(job.model, train, evaluation, collate, job.tokenizer_folder)
    views = 2 if options.complement else 1
    return fine_tuned(rows, objective, options, arguments, views, callbacks=[progress])
