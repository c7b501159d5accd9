"""What differs between two records of a run, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """Dotted name -> "name was 1, is 2" of everything in nested mappings that differs."""
    old, new = dict(_leaves(then)), dict(_leaves(now))
    return {
        name: f"{name} was {old.get(name)!r}, is {new.get(name)!r}"
        for name in {**old, **new}
        if old.get(name) != new.get(name)
    }


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
