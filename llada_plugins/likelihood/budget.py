"""How many masked rows an answer may cost, from the options that say so."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from typing import NamedTuple

from llada_plugins.diffusion.arguments import is_number, is_whole

from .estimators import ESTIMATORS, MC_BATCH, PUBLISHED

EXACT_LENGTH = 6  # tokens that `exact` enumerates whatever mc_num says: 63 rows
FIRST_ROUND = 16  # rows before mc_num=auto looks at an error for the first time
MC_MAX = 1024  # rows at which mc_num=auto gives up
CONFIDENCE = 0.99  # at which mc_num=auto takes a best choice as settled
IN_ROUNDS = ("count", "bernoulli")  # estimators that can draw more rows after the first ones


class Budget(NamedTuple):
    """How many rows are drawn for a request."""

    first: int
    limit: int
    target: float = 0.0  # nats: no more rows once the standard error is not above it
    confidence: float = 1.0  # nor once a question's best choice is settled with this probability
    batch: int = MC_BATCH  # rows of a sweep of PUBLISHED

    def rounds(self) -> Iterator[range]:
        """The rows of each round; every round doubles their number.

        No row is left over for a round of its own, which would have no error.
        """
        done, stop = 0, self.first
        while done < self.limit:
            if self.limit - stop == 1:
                stop = self.limit
            yield range(done, stop)
            done, stop = stop, min(2 * stop, self.limit)


def budget(
    estimator: str,
    mc_num: int | str,
    mc_max: int | None = None,
    mc_confidence: float | None = None,
    mc_batch: int | None = None,
) -> Budget:
    """The budget that options ask for; see `log_likelihood` for what they mean.

    Raises ValueError on values or combinations that mean nothing.
    """
    if not isinstance(estimator, str) or estimator not in ESTIMATORS:
        raise ValueError(f"estimator must be one of {', '.join(ESTIMATORS)}, got {estimator!r}")
    _check_effect(estimator, mc_num, mc_max, mc_confidence, mc_batch)
    if mc_confidence is not None and not (is_number(mc_confidence) and 0.5 <= mc_confidence <= 1):
        raise ValueError(f"mc_confidence must be from 0.5 to 1, got {mc_confidence!r}")
    if not isinstance(mc_num, str):
        mc_num = _whole(mc_num)
    mc_max, mc_batch = _count("mc_max", mc_max), _count("mc_batch", mc_batch)
    if isinstance(mc_num, str):
        return _in_rounds(estimator, mc_num, mc_max or MC_MAX, mc_confidence)
    _count("mc_num", mc_num)
    return _at_once(estimator, mc_num, mc_batch or MC_BATCH)


def _whole(mc_num: object) -> int:
    """A number of rows, NumPy's too; a flag is none."""
    if not is_whole(mc_num):
        raise _no_number(mc_num)
    return operator.index(mc_num)


def _count(name: str, value: int | None) -> int | None:
    """A number of rows from 1 up."""
    if value is None:
        return None
    if not is_whole(value):
        raise ValueError(f"{name} must be a whole number, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return operator.index(value)


def _check_effect(
    estimator: str,
    mc_num: int | str,
    mc_max: int | None,
    mc_confidence: float | None,
    mc_batch: int | None,
) -> None:
    """Raise ValueError on an option that changes nothing beside the others."""
    auto, published = isinstance(mc_num, str), estimator in PUBLISHED
    for name, value, has_effect, needs in (
        ("mc_max", mc_max, auto, "mc_num=auto:NATS"),
        ("mc_confidence", mc_confidence, auto, "mc_num=auto:NATS"),
        ("mc_batch", mc_batch, published, f"estimator={' or '.join(PUBLISHED)}"),
    ):
        if value is not None and not has_effect:
            raise ValueError(f"{name} has no effect without {needs}: leave it out")


def _in_rounds(estimator: str, mc_num: str, limit: int, confidence: float | None) -> Budget:
    """The budget of mc_num=auto:NATS."""
    target = _target(mc_num)
    if estimator not in IN_ROUNDS:
        raise ValueError(
            f"mc_num={mc_num} needs an estimator that can go on drawing, "
            f"{' or '.join(IN_ROUNDS)}; got {estimator!r}"
        )
    if confidence is None:
        confidence = CONFIDENCE
    return Budget(min(FIRST_ROUND, limit), limit, target, confidence)


def _at_once(estimator: str, mc_num: int, batch: int) -> Budget:
    """The budget of a number of rows, all drawn in one round."""
    if estimator in PUBLISHED and mc_num % batch:
        raise ValueError(
            f"estimator={estimator!r} needs mc_num to be a multiple of mc_batch ({batch}), "
            f"got {mc_num}"
        )
    return Budget(mc_num, mc_num, batch=batch)


def _target(mc_num: str) -> float:
    """The NATS of auto:NATS."""
    word, _, number = mc_num.partition(":")
    try:
        target = float(number)
    except ValueError:
        target = math.nan
    if word != "auto" or not 0 < target < math.inf:
        raise _no_number(mc_num)
    return target


def _no_number(mc_num: object) -> ValueError:
    return ValueError(
        f"mc_num must be a whole number, got {mc_num!r}: or auto:NATS with the standard error "
        "to reach, such as auto:0.1"
    )


def check_length(estimator: str, length: int, limits: Budget) -> None:
    """Raise ValueError on an answer too long for the estimator."""
    if estimator != "exact" or length <= EXACT_LENGTH:
        return
    # 2^30 rows are out of reach, and Python would write out numbers of any length
    if length >= 30 or 2**length - 1 > limits.limit:
        raise ValueError(
            f"estimator='exact' takes 2^{length} - 1 rows for an answer of {length} tokens, "
            f"which exceeds mc_num={limits.limit}: raise mc_num or use estimator='count'"
        )
