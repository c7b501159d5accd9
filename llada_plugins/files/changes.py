"""What differs between two records of a run, in words."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple


class Change(NamedTuple):
    """Both values of one name; None where it has none."""

    then: Any
    now: Any


def differing(then: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Change]:
    """Everything in nested mappings that differs, by its dotted name."""
    old, new = dict(_leaves(then)), dict(_leaves(now))
    both = {name: Change(old.get(name), new.get(name)) for name in {**old, **new}}
    return {name: change for name, change in both.items() if change.then != change.now}


def changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """Dotted name -> "name was 1, is 2" of everything in nested mappings that differs."""
    return {
        name: f"{name} was {change.then!r}, is {change.now!r}"
        for name, change in differing(then, now).items()
    }


def changes_of_text(then: Any, now: str) -> Iterator[str]:
    """The changes between two mappings as JSON; in words where the first is none.

    A name that one has not, and that is None in the other, makes no difference.
    """
    try:
        yield from changes(json.loads(then), json.loads(now)).values()
    except (TypeError, ValueError, AttributeError):
        yield "it does not say by which"


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
