"""Notes beside the arguments of lm-eval's requests, which its sample logs then hold."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from lm_eval.api.instance import Instance

from llada_plugins.engine.request import occurrences
from llada_plugins.likelihood.estimate import LogLikelihood

Note = dict[str, Any]


class Noted(Instance):
    """A request whose arguments end with a note of its answer.

    A likelihood's note is its error, an answer's what decoding it cost; both say what was
    done with a request that did not fit.

    They do so from when lm-eval has the answer: until then, and so in the keys of a
    --use_cache file, arguments are the texts alone.
    """

    note: Note

    @property
    def args(self) -> tuple:
        return (*super().args, self.note) if self.resps else super().args


def attach(request: Instance, note: Note) -> None:
    """Make the request a `Noted` one in place: lm-eval logs the very objects that it made."""
    request.__class__ = Noted
    request.note = note


def repeats(requests: Sequence[Instance]) -> list[int]:
    """Of each request of a call, how often the same object came before it.

    lm-eval asks a request as often as its task says, and on a process with fewer
    requests than others some more, whose answers count for nothing.
    """
    return occurrences(map(id, requests))


def counts(request: Instance, number: int) -> bool:
    """Is the n-th time that a request is asked, from 0, one that its task wants?"""
    return request.repeats is None or number < request.repeats


def attach_each(requests: Sequence[Instance], notes: Sequence[Note]) -> None:
    """Put the note of each answer beside its request; of several repeats under `repeats`."""
    own: dict[int, list[Note]] = defaultdict(list)
    for request, number, note in zip(requests, repeats(requests), notes):
        if counts(request, number):
            own[id(request)].append(note)
    for request in requests:
        found = own[id(request)]
        attach(request, found[0] if len(found) == 1 else {"repeats": found})


class LikelihoodNotes:
    """The notes of likelihoods that lm-eval does not have yet, by the texts of their requests."""

    def __init__(self) -> None:
        self._notes: dict[tuple[str, ...], Note] = {}

    def keep(self, texts: tuple[str, ...], estimate: LogLikelihood) -> None:
        """Remember the note of the request with these texts."""
        self._notes[texts] = estimate.error()

    def attach(self, requests: Sequence[Instance]) -> None:
        """Put the notes beside the requests, and forget them."""
        for request in requests:
            if note := self._notes.get(request.args):
                attach(request, note)
        self._notes.clear()
