"""lm-eval's response cache (`--use_cache`) with an entry for each repeat of a request.

lm-eval's keys hold a request's arguments alone: of a task with `repeats: 4` the last
answer stays, and a second run gets it four times. Here the n-th equal request of a
call, from 0, has an entry of its own from n = 1 on, and beside it what decoding the
answer cost. So the model itself takes finished answers from the file: lm-eval, told that
no answer is there, hands over every request. Likelihoods are looked up by lm-eval.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook, hash_args
from sqlitedict import SqliteDict

from llada_plugins.engine.request import occurrences
from llada_plugins.files.changes import changes

from .statistics import Statistics

FINGERPRINT_KEY = "llada_plugins:fingerprint:2"  # 2: an entry for each repeat
ANSWERS = "generate_until"  # lm-eval's name for requests of answers


def entry(key: str, number: int) -> str:
    """The key of the n-th repeat."""
    return f"{key}:{number}" if number else key


def tied(cache: SqliteDict, fingerprint: str) -> RepeatHook:
    """The hook of a --use_cache file that holds answers of the model with this fingerprint.

    ValueError where another model wrote the file: lm-eval's keys hold the request only, so
    its answers would be taken for this model's.
    """
    if len(cache) == 0:
        cache[FINGERPRINT_KEY] = fingerprint
    before = _value(cache, FINGERPRINT_KEY)
    if before != fingerprint:
        differ = ["it does not say by which"]
        if before is not None:
            differ = list(changes(json.loads(before), json.loads(fingerprint)).values())
        raise ValueError(
            "the --use_cache file was written by another model or other options: "
            f"{'; '.join(differ[:4])}: give another file"
        )
    return RepeatHook(cache)


def _value(cache: SqliteDict, key: str) -> Any:
    """What the file holds under a key; None where it holds nothing."""
    try:
        return cache[key]
    except KeyError:
        return None


class Finished(NamedTuple):
    """An answer that the file holds."""

    text: str
    statistics: Statistics | None  # None in a file of a version that kept none


class Place(NamedTuple):
    """A request's place among equal ones, and its answer where the file holds it."""

    number: int
    finished: Finished | None


class RepeatHook(CacheHook):
    """What a model reads and writes finished answers through."""

    def __init__(self, cache: SqliteDict) -> None:
        cache.__class__ = _Answers  # lm-eval holds this very object
        self.dbdict = cache

    def places(self, requests: Sequence[Instance]) -> list[Place]:
        """Of each request of a call of generate_until."""
        keys = [hash_args(ANSWERS, request.args) for request in requests]
        return [
            Place(number, self._finished(request, key, number))
            for request, key, number in zip(requests, keys, occurrences(keys))
        ]

    def _finished(self, request: Instance, key: str, number: int) -> Finished | None:
        if request.args[1].get("do_sample"):
            return None  # by lm-eval's rule such answers are decoded in every run
        text = _value(self.dbdict, entry(key, number))
        if text is None:
            return None
        return Finished(text, _value(self.dbdict, _costs(key, number)))

    def keep_answer(
        self, request: Instance, number: int, text: str, statistics: Statistics
    ) -> None:
        """Keep the answer to the n-th repeat of a request as soon as it is known."""
        key = hash_args(ANSWERS, request.args)
        self.dbdict.keep(_costs(key, number), statistics)  # first: no answer is without
        self.dbdict.keep(entry(key, number), text)

    def add_partial(self, attr: str, req: Iterable[Any], res: Any) -> None:
        """Keep a likelihood as soon as it is known."""
        self.dbdict.keep(hash_args(attr, req), res)


def _costs(key: str, number: int) -> str:
    return f"{key}:{number}:statistics"


class _Answers(SqliteDict):
    """lm-eval's cache, as lm-eval sees it: without answers, which are texts."""

    def keep(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)

    def __contains__(self, key: str) -> bool:
        return super().__contains__(key) and not isinstance(self[key], str)

    def __setitem__(self, key: str, value: Any) -> None:
        # lm-eval writes an answer once more, after the model did, without its number
        if not isinstance(value, str):
            super().__setitem__(key, value)
