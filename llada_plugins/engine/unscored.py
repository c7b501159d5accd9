"""Requests for which a process reward model gives no number: they end no other's answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from llada_plugins.rewards.step_scorer import ScoreError

from .request import Completion, Group

Completions = Iterator[tuple[int, Completion]]


class Unscored:
    """Those of one call, by the request's number."""

    def __init__(self) -> None:
        self.failures: dict[int, ScoreError] = {}

    def decode(self, decode: Callable[[Group], Completions], group: Group) -> Completions:
        """As `decode`, without the requests that fail, which are kept here.

        No answer depends on its batch, so what a failure left unanswered is halved until
        the requests that fail are alone.
        """
        left = {member.number: member for member in group.members}
        try:
            for number, completion in decode(group):
                del left[number]
                yield number, completion
            return
        except ScoreError as error:
            failure = error
        members = list(left.values())
        if len(members) == 1:
            self.failures[members[0].number] = failure
            return
        middle = len(members) // 2
        for half in (members[:middle], members[middle:]):
            yield from self.decode(decode, group._replace(members=half))

    def report(self, num_requests: int) -> None:
        """Raise ScoreError if there are any, of so many requests."""
        if not self.failures:
            return
        first = min(self.failures)
        raise ScoreError(
            f"{len(self.failures)} of {num_requests} requests have no answer, all others have; the "
            f"first is number {first + 1}: {self.failures[first]}"
        )
