"""To which split a problem belongs, whatever their number or seed: a hash of it decides."""

from __future__ import annotations

import hashlib
from typing import Literal, get_args

TEST_SHARE = 8  # one problem in so many belongs to the test split
VALIDATION_SHARE = 16  # of the others one in so many to the validation split

Split = Literal["train", "validation", "test"]


def check_split(split: str) -> None:
    """Raise ValueError on a name that is none."""
    if split not in get_args(Split):
        raise ValueError(f"split must be one of {', '.join(get_args(Split))}, got {split!r}")


def split_of(problem: str) -> Split:
    """The split to which a problem belongs, from the hash of its text."""
    first, second = hashlib.sha256(problem.encode()).digest()[:2]
    if first % TEST_SHARE == 0:
        return "test"
    return "validation" if second % VALIDATION_SHARE == 0 else "train"
