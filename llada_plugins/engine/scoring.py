"""Token pairs become log-likelihoods: what `Engine.log_likelihood` does."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from llada_plugins.diffusion.token_rows import token_pairs
from llada_plugins.likelihood.estimate import LogLikelihood, iterate, row_runner
from llada_plugins.methods.table import METHODS
from llada_plugins.models import text

from . import likelihood_log
from .checks import check_answers, check_seeds
from .probes import scoring_probe

if TYPE_CHECKING:
    from .engine import Engine


def likelihoods(
    engine: Engine, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], batch_size: int | None
) -> Iterator[tuple[int, LogLikelihood]]:
    """See `Engine.log_likelihood`."""
    pairs = token_pairs(pairs, engine.model.config.num_embeddings)
    check_answers(pairs, engine.max_answer, engine.max_length, engine.method)
    fitted, marks = engine.overlong.pairs(pairs, lambda ids: text.decode(engine.tokenizer, ids, ()))
    if engine.method != "llada":
        engine.warnings.warn(
            f"{engine.method}: likelihoods are {METHODS[engine.method].likelihood}"
        )
    scored = []
    for number, mark in enumerate(marks):
        if mark == "skipped":
            greedy = False if engine.config.greedy_check else None
            estimate = LogLikelihood(-math.inf, 0.0, 0, greedy, engine.overlong.counted(mark))
            yield number, _logged(engine, fitted[number], estimate)
        else:
            scored.append(number)
    block_length = None
    if engine.model.config.attention == "block_causal":
        block_length = engine.common.block_length
        check_seeds(engine.prepared.max_answer, engine.method)
    settings = engine.config.likelihood_settings(engine.common.cfg_scale, block_length)
    kept = [fitted[number] for number in scored]
    if kept:
        runner = row_runner(engine.model, engine.prepared.denoise, settings, engine.special)
        probe = functools.partial(scoring_probe, runner, kept)
        limit = engine.batches.limit("likelihood", probe, batch_size)
        settings = replace(settings, at_once=limit)
    estimates = iterate(
        engine.model, kept, settings, special=engine.special, denoise=engine.denoise
    )
    for place, estimate in estimates:
        number = scored[place]
        estimate = estimate._replace(overlong=engine.overlong.counted(marks[number]))
        yield number, _logged(engine, fitted[number], estimate)


def _logged(
    engine: Engine, pair: tuple[Sequence[int], Sequence[int]], estimate: LogLikelihood
) -> LogLikelihood:
    """The estimate, also appended to likelihood_log."""
    if engine.config.likelihood_log:
        likelihood_log.append(engine.config.likelihood_log, engine.tokenizer, pair, estimate)
    return estimate
