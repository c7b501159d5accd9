"""Options and metrics of a run of lm-eval that would mean nothing for its likelihoods."""

from __future__ import annotations

from llada_plugins.engine.engine import Engine
from llada_plugins.engine.notices import WarnOnce

from .lmeval_manifest import evaluation
from .lmeval_tasks import asking_for_answers, reading_greedy, tasks

OF_LIKELIHOODS = ("cfg_scale", "block_length")  # sampler options that likelihoods have too


def check_gen_kwargs(engine: Engine, warnings: WarnOnce) -> None:
    """Raise ValueError where no task of the run decodes answers, which alone --gen_kwargs reach.

    Where some do, warn of those options that a user may expect in likelihoods as well.
    """
    given = evaluation().get("gen_kwargs") or {}
    if not given or not tasks():
        return
    if not asking_for_answers():
        raise ValueError(
            f"--gen_kwargs ({', '.join(map(str, given))}) reach answers alone, and "
            f"{', '.join(tasks())} ask for likelihoods: give options in --model_args"
        )
    for name in OF_LIKELIHOODS:
        if name in given:
            warnings.warn(
                f"{name} of --gen_kwargs reaches answers alone: likelihoods of this run have "
                f"{name}={getattr(engine.common, name)}, that of --model_args"
            )


def check_greedy(engine: Engine, warnings: WarnOnce) -> None:
    """Say of which tasks a metric is 0 whatever the model says, since greedy_check was not given.

    Raises ValueError where that is a task's only metric.
    """
    if "greedy_check" in engine.asked.explicit or engine.config.greedy_check:
        return
    for task, (metric, only) in reading_greedy().items():
        message = (
            f"{task}: its {metric} counts answers that greedy decoding gives, which is not looked "
            "at without greedy_check=true in --model_args (up to one forward more per answer "
            f"token): {metric} is 0 for every model"
        )
        if only:
            raise ValueError(message)
        warnings.warn(message)
