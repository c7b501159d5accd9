"""Decoding in a thread of its own, whose states another thread looks at, and may stop."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

from llada_plugins.engine.request import Completion


class Stopped(Exception):
    """Nobody waits for the answer any more."""


class State(NamedTuple):
    """An answer in work, before a forward."""

    setting: int  # which of those that are compared, from 0
    tokens: tuple[int, ...]  # ids


class Done(NamedTuple):
    """An answer that is done."""

    setting: int
    completion: Completion
    decoded_with: str  # its method and options, in words


class Failed(NamedTuple):
    """What ended the work."""

    error: Exception


Show = Callable[[State | Done], None]  # raises Stopped where the job is stopped
Told = State | Done | Failed | None  # None: the work has ended


class Job:
    """Work that shows states, run by whoever iterates over it.

    work: gets what shows a state. pause: seconds to wait after each, for people to see it.
    Iterating yields the newest state that was not seen; older ones are left out, but no
    answer that is done. What the work raises is raised there. Leaving the iteration early, as a
    closed tab does, stops the work before its next forward.
    """

    def __init__(self, work: Callable[[Show], None], pause: float = 0.0) -> None:
        self.work, self.pause = work, pause
        self._told: queue.SimpleQueue[Told] = queue.SimpleQueue()
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Let the work end before its next forward."""
        self._stopped.set()

    def __iter__(self) -> Iterator[State | Done]:
        threading.Thread(target=self._run, name="playground job", daemon=True).start()
        try:
            yield from self._states()
        finally:
            self.stop()

    def _run(self) -> None:
        try:
            self.work(self._show)
        except Stopped:
            pass
        except Exception as error:  # is raised where somebody waits
            self._told.put(Failed(error))
        self._told.put(None)

    def _show(self, state: State | Done) -> None:
        if self._stopped.is_set():
            raise Stopped
        self._told.put(state)
        if self.pause and isinstance(state, State):
            self._stopped.wait(self.pause)

    def _states(self) -> Iterator[State | Done]:
        while True:
            for told in _newest(self._waiting()):
                if told is None:
                    return
                if isinstance(told, Failed):
                    raise told.error
                yield told

    def _waiting(self) -> list[Told]:
        """All that was told and not seen; waits until there is something."""
        found = [self._told.get()]
        with suppress(queue.Empty):
            while True:
                found.append(self._told.get_nowait())
        return found


def _newest(told: Sequence[Told]) -> list[Told]:
    """Without the states in work that another one, or the answer that is done, follows."""
    kept = [
        each
        for each, following in zip(told, told[1:])
        if not (isinstance(each, State) and isinstance(following, State | Done))
    ]
    return [*kept, told[-1]]
