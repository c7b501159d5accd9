"""Answers to lm-eval's requests: from the --use_cache file, or decoded."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook

from llada_plugins.engine.engine import Engine
from llada_plugins.engine.progress import Progress
from llada_plugins.engine.request import Request

from .lmeval_cache import RepeatHook
from .lmeval_notes import Note, counts, repeats
from .lmeval_tasks import numbers
from .statistics import TotalsByTask, statistics, unknown
from .streams import stream

logger = logging.getLogger(__name__)


class Answer(NamedTuple):
    """An answer, and the note of what it cost."""

    text: str
    note: Note


def from_file(
    requests: Sequence[Instance], places: Sequence[int], hook: CacheHook
) -> dict[int, Answer]:
    """The answers that a --use_cache file holds, by the number of their request in the call."""
    if not isinstance(hook, RepeatHook):
        return {}
    held = [hook.finished(*each) for each in zip(requests, places)]
    found = {
        number: Answer(each.text, {**(each.statistics or unknown()), "from_cache": True})
        for number, each in enumerate(held)
        if each is not None
    }
    if found:
        logger.info(
            "%d of %d answers are taken from the --use_cache file", len(found), len(requests)
        )
    return found


def answer(
    engine: Engine,
    requests: Sequence[Instance],
    parsed: Sequence[Request],
    hook: CacheHook,
    bar: Progress,
) -> list[Answer]:
    """The answers in the order of the requests; each is kept in the cache once it is known."""
    places = numbers(requests, [engine.draws(each.sampler) for each in parsed])
    answers = from_file(requests, places, hook)
    missing = [number for number in range(len(requests)) if number not in answers]
    for _ in answers:
        bar.known()
    asked = [parsed[number]._replace(stream=stream(places[number])) for number in missing]
    try:
        for index, completion in engine.generate(asked) if asked else ():
            number, costs = missing[index], statistics(completion)
            answers[number] = Answer(completion.text, {**costs, "from_cache": False})
            if isinstance(hook, RepeatHook):
                hook.keep_answer(requests[number], places[number], completion.text, costs)
            bar.add(completion.num_tokens, completion.num_forwards)
    finally:  # one that cannot be answered ends the call after the others
        if isinstance(hook, RepeatHook):
            hook.entries.settle()
    return [answers[number] for number in range(len(requests))]


def totals_of(requests: Sequence[Instance], answers: Sequence[Answer]) -> TotalsByTask:
    """What the answers cost by task, without those that only keep other processes company."""
    totals = TotalsByTask()
    for request, number, each in zip(requests, repeats(requests), answers):
        if counts(request, number):
            totals.add(request.task_name, each.note)
    return totals
