"""What a sweep runs: option values along a range, and the grid of several ranges."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import NamedTuple

NUM_VALUES = 6  # of a range that does not say how many
RANGE = re.compile(r"(?P<first>[^./]*(?:\.\d+)?)\.\.(?P<last>[^/]*?)(?:/(?P<num>.*))?")


class Sweep(NamedTuple):
    """The values that an option takes."""

    name: str
    values: tuple[str, ...]


class Point(NamedTuple):
    """One setting of the grid."""

    options: dict[str, str]
    series: str  # the options that stay along a curve; "" where the first sweep is all

    @property
    def name(self) -> str:
        """As a folder's name."""
        return ",".join(f"{name}={value}" for name, value in self.options.items())


def read_sweep(text: str) -> Sweep:
    """NAME=FIRST..LAST, NAME=FIRST..LAST/NUMBER or NAME=VALUE,VALUE,…"""
    name, _, given = text.partition("=")
    values = tuple(value.strip() for value in given.split(","))
    if not name.strip() or not all(values):
        raise ValueError(
            f"sweep={text!r}: expected NAME=FIRST..LAST, NAME=FIRST..LAST/NUMBER or "
            "NAME=VALUE,VALUE,… such as threshold=0.5..0.99"
        )
    if len(values) == 1 and (found := RANGE.fullmatch(values[0])):
        values = _spaced(text, found["first"], found["last"], found["num"])
    if bad := [value for value in values if set(value) & set("=/\\\" '")]:
        raise ValueError(f"sweep={text!r}: {bad[0]!r} is no value for a folder's name")
    return Sweep(name.strip(), tuple(dict.fromkeys(values)))


def _spaced(text: str, first: str, last: str, num: str | None) -> tuple[str, ...]:
    """Evenly spaced values, both ends included; whole numbers between whole numbers."""
    try:
        low, high = float(first), float(last)
        number = NUM_VALUES if num is None else int(num)
    except ValueError:
        raise ValueError(
            f"sweep={text!r}: a range is FIRST..LAST or FIRST..LAST/NUMBER with numbers"
        ) from None
    if number < 2:
        raise ValueError(f"sweep={text!r}: a range has at least 2 values, got {number}")
    values = [low + (high - low) * place / (number - 1) for place in range(number)]
    if first.lstrip("+-").isdigit() and last.lstrip("+-").isdigit():
        return tuple(str(round(value)) for value in values)
    return tuple(f"{value:.6g}" for value in values)


def grid(sweeps: Sequence[Sweep]) -> list[Point]:
    """Every combination; along a curve the first sweep's values change, and nothing else."""
    names = [sweep.name for sweep in sweeps]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"sweep: {twice[0]} is swept twice: write its values in one sweep")
    points = []
    for others in itertools.product(*(sweep.values for sweep in sweeps[1:])):
        fixed = dict(zip(names[1:], others))
        series = ",".join(f"{name}={value}" for name, value in fixed.items())
        for value in sweeps[0].values:
            points.append(Point({names[0]: value, **fixed}, series))
    return points
