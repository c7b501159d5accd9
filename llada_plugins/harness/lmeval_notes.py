"""Notes beside the arguments of lm-eval's requests, which its sample logs then hold."""

from __future__ import annotations

from collections.abc import Sequence

from lm_eval.api.instance import Instance

from llada_plugins.likelihood.estimate import LogLikelihood

Note = dict[str, float | str | None]


class Noted(Instance):
    """A request whose arguments end with a note of its answer.

    A likelihood's note is its error; of both kinds, what was done with a request that
    did not fit.

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
