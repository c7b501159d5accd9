"""lm-eval's response cache (`--use_cache`) with an entry for each repeat of a request.

lm-eval's keys hold a request's arguments alone: of a task with `repeats: 4` the last
answer stays, and a second run gets it four times. Here the n-th equal request of a
call, from 0, has an entry of its own from n = 1 on. lm-eval asks and writes as it does
without us; only the keys differ.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook, hash_args
from sqlitedict import SqliteDict

from .lmeval_record import Samplers

SAMPLERS_KEY = "llada_plugins:samplers"
FINGERPRINT_KEY = "llada_plugins:fingerprint:2"  # 2: an entry for each repeat


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
    elif cache.get(FINGERPRINT_KEY) != fingerprint:
        raise ValueError(
            "the --use_cache file was written by another model or other options; give another "
            f"file. Its fingerprint: {cache.get(FINGERPRINT_KEY)}; this model's: {fingerprint}"
        )
    return RepeatHook(cache)


class RepeatHook(CacheHook):
    """What a model writes finished answers through; from then on `cache` tells repeats apart."""

    def __init__(self, cache: SqliteDict) -> None:
        if not isinstance(cache, _Repeats):
            cache.__class__ = _Repeats  # lm-eval holds this very object
            cache.supplied = False
        cache.begin()
        self.dbdict = cache

    def numbers(self, attr: str, requests: Sequence[Instance]) -> list[int]:
        """Which repeat each of the requests is that lm-eval has not found in the cache."""
        keys = [hash_args(attr, request.args) for request in requests]
        missing = self.dbdict.missing_repeats()
        seen: Counter[str] = Counter()
        numbers = []
        for key in keys:
            known = missing.get(key, ())
            # lm-eval does not look for requests with do_sample=True: all of them are
            # here, in order
            numbers.append(known[seen[key]] if seen[key] < len(known) else seen[key])
            seen[key] += 1
        return numbers

    def keep_samplers(self, samplers: Samplers) -> None:
        """Note what answers are decoded with, beside what stands there of other runs."""
        kept = Samplers()
        self._read(kept)
        kept.read(samplers.as_dict())
        self.dbdict.keep(SAMPLERS_KEY, 0, json.dumps(kept.as_dict()))

    def read_samplers(self, samplers: Samplers) -> None:
        """Add what the file's answers were decoded with, if it supplied any.

        Of which tasks they are is not known.
        """
        if self.dbdict.supplied:
            self._read(samplers)

    def _read(self, samplers: Samplers) -> None:
        with suppress(KeyError):  # a new file, or one of likelihoods alone
            samplers.read(json.loads(self.dbdict[SAMPLERS_KEY]))

    def add_partial(self, attr: str, req: Iterable[Any], res: Any, number: int = 0) -> None:
        """Keep the answer to the n-th repeat of a request as soon as it is known."""
        self.dbdict.keep(hash_args(attr, req), number, res)


class _Repeats(SqliteDict):
    """lm-eval's cache.

    In a call lm-eval asks `key in cache` for each request in order, reads where the answer
    is yes, lets the model answer the rest, and writes those in order.
    """

    def begin(self) -> None:
        self.asked: Counter[str] = Counter()
        self.missing: defaultdict[str, list[int]] = defaultdict(list)
        self.ended = False  # has lm-eval asked for all requests of the call?

    def missing_repeats(self) -> dict[str, tuple[int, ...]]:
        self.ended = True
        return {key: tuple(numbers) for key, numbers in self.missing.items()}

    def keep(self, key: str, number: int, value: Any) -> None:
        super().__setitem__(entry(key, number), value)

    def commit(self, *args: Any, **kwargs: Any) -> None:
        self.ended = True
        super().commit(*args, **kwargs)

    def __contains__(self, key: str) -> bool:
        if self.ended:
            self.begin()
        number = self.asked[key]
        self.asked[key] += 1
        found = super().__contains__(entry(key, number))
        if found:
            self.supplied = True
        else:
            self.missing[key].append(number)
        return found

    def __getitem__(self, key: str) -> Any:
        return super().__getitem__(entry(key, max(0, self.asked[key] - 1)))

    def __setitem__(self, key: str, value: Any) -> None:
        numbers = self.missing.get(key)
        self.keep(key, numbers.pop(0) if numbers else 0, value)
