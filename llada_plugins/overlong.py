"""What becomes of requests that do not fit a context: cut from the left, skipped or refused, and told.

The default is lm-eval's rule: of the prompt, the last tokens that leave room for the answer.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal

logger = logging.getLogger(__name__)

Mark = Literal["truncated", "skipped"]
MARKS: dict[str, Mark] = {"truncate": "truncated", "skip": "skipped"}
OVERLONG = (*MARKS, "error")  # values of the option
DONE = {"truncated": "cut from the left", "skipped": "skipped"}


class Overlong:
    """An engine's requests that did not fit: what is done with them, how many there were."""

    def __init__(self, rule: str) -> None:
        self.rule = rule
        self.counts: Counter[Mark] = Counter()

    def marks(
        self, fits: Sequence[bool], describe: Callable[[int], str], remedy: str
    ) -> list[Mark | None]:
        """What is done with each request of a call, None where it fits; one warning tells and counts.

        describe: what is too long of the request of that number. Raises ValueError for all of them
        under "error".
        """
        numbers = [number for number, fit in enumerate(fits) if not fit]
        if not numbers:
            return [None] * len(fits)
        told = describe(numbers[0])
        if self.rule == "error":
            more = f" ({len(numbers)} of {len(fits)} requests do not fit)" if len(fits) > 1 else ""
            raise ValueError(f"{told}{more}: {remedy}, or set overlong=truncate or skip")
        mark = MARKS[self.rule]
        self.counts[mark] += len(numbers)
        logger.warning(
            "%d of %d requests do not fit and are %s (overlong=%s); the first, number %d: %s",
            len(numbers),
            len(fits),
            DONE[mark],
            self.rule,
            numbers[0] + 1,
            told,
        )
        return [None if fit else mark for fit in fits]


def ends_of(string: str) -> str:
    """Both ends of a text, by which its document is found: few-shot prompts all begin alike."""
    return f"begins {string[:40]!r}, ends {string[-40:]!r}"
