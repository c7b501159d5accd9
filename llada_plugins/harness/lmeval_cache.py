"""lm-eval's response cache (`--use_cache`) with an entry for each repeat of a request.

lm-eval's keys hold a request's arguments alone: of a task with `repeats: 4` the last
answer stays, and a second run gets it four times. Here the n-th asking of a question,
from 0, has an entry of its own from n = 1 on, and beside it what decoding the
answer cost. So the model itself takes finished answers from the file: lm-eval, told that
no answer is there, hands over every request. Likelihoods are looked up by lm-eval.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook, hash_args
from sqlitedict import SqliteDict

from llada_plugins.files.changes import changes_of_text

from .lmeval_entries import REMEDY, Entries, check_file
from .lmeval_manifest import evaluation
from .lmeval_tasks import answer_key
from .statistics import Statistics

FINGERPRINT_KEY = "llada_plugins:fingerprint:2"  # 2: an entry for each repeat


def entry(key: str, number: int) -> str:
    """The key of the n-th repeat."""
    return f"{key}:{number}" if number else key


def check_cache(rank: int) -> None:
    """Raise ValueError or OSError where the --use_cache file of this process cannot be used.

    To be called before weights are loaded, under lm-eval, which names the file in a variable.
    """
    if name := evaluation().get("use_cache"):
        check_file(Path(f"{name}_rank{rank}.db"))


def tied(cache: SqliteDict, fingerprint: str) -> RepeatHook:
    """The hook of a --use_cache file that holds answers of the model with this fingerprint.

    ValueError where another model wrote the file: lm-eval's keys hold the request only, so
    its answers would be taken for this model's.
    """
    hook = RepeatHook(cache)
    if len(cache) == 0:
        hook.entries.keep({FINGERPRINT_KEY: fingerprint})
    before = _value(hook.entries, FINGERPRINT_KEY)
    if differ := list(changes_of_text(before, fingerprint)):
        raise ValueError(
            "the --use_cache file was written by another model or version, or with other options: "
            f"{'; '.join(differ[:4])}: {REMEDY}"
        )
    return hook


def _value(entries: Entries, key: str) -> Any:
    """What the file holds under a key; None where it holds nothing."""
    try:
        return entries[key]
    except KeyError:
        return None


class Finished(NamedTuple):
    """An answer that the file holds."""

    text: str
    statistics: Statistics | None  # None in a file of a version that kept none


class RepeatHook(CacheHook):
    """What a model reads and writes finished answers through."""

    def __init__(self, cache: SqliteDict) -> None:
        cache.__class__ = Entries  # lm-eval holds this very object
        self.entries: Entries = cache
        self.entries.enter()
        self.dbdict = cache

    def finished(self, request: Instance, number: int) -> Finished | None:
        """The answer to the n-th repeat of a request, where the file holds it."""
        if request.args[1].get("do_sample"):
            return None  # by lm-eval's rule such answers are decoded in every run
        key = answer_key(request)
        text = _value(self.entries, entry(key, number))
        if text is None:
            return None
        return Finished(text, _value(self.entries, _costs(key, number)))

    def keep_answer(
        self, request: Instance, number: int, text: str, statistics: Statistics
    ) -> None:
        """Keep the answer to the n-th repeat of a request as soon as it is known."""
        key = answer_key(request)
        self.entries.keep({_costs(key, number): statistics, entry(key, number): text})

    def add_partial(self, attr: str, req: Iterable[Any], res: Any) -> None:
        """Keep a likelihood as soon as it is known."""
        self.entries.keep({hash_args(attr, req): res})


def _costs(key: str, number: int) -> str:
    return f"{key}:{number}:statistics"
