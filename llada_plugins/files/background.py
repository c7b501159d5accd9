"""Work in a thread of its own that is done soon, and once for all who asked meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from time import monotonic

# seconds that a call may wait to begin: where this process has one core, its own work goes first
PATIENCE = 0.2


class Background:
    """Calls a function after it was asked to; its caller goes on.

    Who asks while the function runs gets one further call, and no more than one: so a slow
    disk is asked to write less often, and more at once. What was asked for is done before
    the interpreter ends. An error of the function is raised by the next `ask` or `wait`.
    Who asks waits only where an earlier call was due PATIENCE ago, and has not begun.
    """

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work
        self._pool = ThreadPoolExecutor(1)
        self._lock = Lock()
        self._last: Future[None] | None = None
        self._asked = False  # a call is to come that has not begun
        self._since = 0.0  # when it was asked for
        self._error: Exception | None = None

    def ask(self) -> None:
        """Let a call begin after this; raises what an earlier one raised."""
        self._raise()
        with self._lock:
            if not self._asked:
                self._asked, self._since = True, monotonic()
                self._last = self._pool.submit(self._call)
            late = monotonic() - self._since > PATIENCE
        if late:
            self.wait()

    def wait(self) -> None:
        """Return when all that was asked for is done; raises what a call raised."""
        if self._last is not None:
            self._last.result()
        self._raise()

    def _call(self) -> None:
        with self._lock:
            self._asked = False
        try:
            self._work()
        except Exception as error:
            self._error = error

    def _raise(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error
