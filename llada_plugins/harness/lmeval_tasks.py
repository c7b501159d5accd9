"""The tasks that lm-eval is evaluating while it calls a model, which it tells no model.

They stand in the variables of `evaluate`, under the names that 0.4.10 to 0.4.13 give them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lm_eval.api.instance import Instance
from lm_eval.api.model import hash_args
from lm_eval.api.samplers import ContextSampler
from lm_eval.api.task import Task

from llada_plugins.engine.request import occurrences

from .frames import callers
from .lmeval_notes import counts, repeats

ANSWERS = "generate_until"  # lm-eval's name for requests of answers
# by output_type, the metric that lm-eval computes of the flag is_greedy
READS_GREEDY = {"loglikelihood": "acc", "multiple_choice": "exact_match"}


class Asked(NamedTuple):
    """What a request asks: requests that are equal in it are repeats of one document."""

    task: Task
    doc_id: int | None
    key: str


def answer_key(request: Instance) -> str:
    """What lm-eval's cache calls a request: equal ones have one key."""
    return hash_args(ANSWERS, request.args)


def tasks() -> dict[str, Task]:
    """Those that are evaluated, by name; none outside of lm-eval."""
    found = _evaluated().get("eval_tasks", ())
    if isinstance(found, Mapping):
        return dict(found)
    return {each.task_name: each.task for each in found}  # before 0.4.12


def numbers(requests: Sequence[Instance], drawn: Sequence[bool]) -> list[int]:
    """Which asking of its question each request of a call of generate_until is, from 0.

    drawn: do its answers depend on chance? Then the whole task is counted, so that an
    answer depends on no other process, no other task, and no --limit or --samples. Other
    answers are counted within their document. Requests of no task that is evaluated are
    counted in the call.
    """
    keys = [answer_key(request) for request in requests]
    owners = {id(request): task for task in tasks().values() for request in task.instances}
    if any(id(request) not in owners for request in requests):
        return occurrences(keys)
    asked = [
        Asked(owners[id(request)], request.doc_id, key) for request, key in zip(requests, keys)
    ]
    wanted = Counter(
        each
        for each, request, number in zip(asked, requests, repeats(requests))
        if counts(request, number)
    )
    earlier = _earlier({each.task for each, by_chance in zip(asked, drawn) if by_chance})
    found = []
    for each, repeat, by_chance in zip(asked, occurrences(asked), drawn):
        documents = earlier[each.task][each.doc_id] if by_chance else 0
        found.append(documents * wanted[each] + repeat)
    return found


def _earlier(chosen: set[Task]) -> dict[Task, dict[int | None, int]]:
    """Of each document of these tasks, how many of the whole task before it ask the same."""
    found: dict[Task, dict[int | None, int]] = {}
    samples = chosen_documents()
    for name, task in tasks().items():
        if task not in chosen:
            continue
        before = occurrences(repr(task.doc_to_text(document)) for document in task.eval_docs)
        if name in samples:
            before = [before[row] for row in samples[name]]
        found[task] = dict(enumerate(before))
    return found


def chosen_documents() -> dict[str, list[int]]:
    """By task, the documents that --samples chooses, in the order of the task.

    lm-eval numbers them anew, from 0: a request's doc_id is a place in this list.
    """
    samples = _evaluated().get("samples") or {}
    return {name: sorted(set(numbers)) for name, numbers in samples.items() if numbers}


def renamed_documents() -> list[str]:
    """The tasks in whose files of samples lm-eval gives documents of --samples other numbers.

    It names them in the order in which --samples gives them, and evaluates in the task's.
    """
    samples = _evaluated().get("samples") or {}
    chosen = chosen_documents()
    return [name for name, numbers in chosen.items() if numbers != list(samples[name])]


def drawing_examples() -> list[str]:
    """The tasks whose few-shot examples are drawn anew for each document, one after another.

    Every process of lm-eval begins that stream of random numbers from the start.
    """
    return [
        name
        for name, task in tasks().items()
        if task.config.num_fewshot
        and getattr(type(getattr(task, "sampler", None)), "sample", None) is ContextSampler.sample
    ]


def asking_for_answers() -> list[str]:
    """The tasks whose answers are decoded; others ask for likelihoods."""
    return [name for name, task in tasks().items() if task.OUTPUT_TYPE == ANSWERS]


def reading_greedy() -> dict[str, tuple[str, bool]]:
    """Of each task that asks whether greedy decoding gives an answer: the metric, is it the only?

    What a task's own process_results reads is not known.
    """
    found = {}
    for name, task in tasks().items():
        metric = READS_GREEDY.get(str(task.OUTPUT_TYPE), "")
        metrics = getattr(task, "_metric_fn_list", {})
        if metric in metrics and not callable(getattr(task.config, "process_results", None)):
            found[name] = (metric, len(metrics) == 1)
    return found


def named_template() -> str | None:
    """The chat template that the running `evaluate` names; "" the default, None: none runs."""
    asked = _evaluated().get("apply_chat_template")
    if asked is None:
        return None
    return asked if isinstance(asked, str) else ""


def _evaluated() -> Mapping[str, Any]:
    """The variables of the running `evaluate`; {} where none runs."""
    running = (frame.f_locals for frame in callers() if frame.f_code.co_name == "evaluate")
    return next((found for found in running if "eval_tasks" in found), {})
