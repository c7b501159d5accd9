"""Tensors in NamedTuples: what they are, and others in their places."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from types import MethodType
from typing import Any

from torch import Tensor, nn

CONSTANTS = (type(None), bool, int, float, str)


class NoForm(Exception):
    """Of arguments that are not all data."""


def form(value: Any, num_rows: int) -> Hashable:
    """What two records have in common that differ in the values of their tensors alone.

    Tensors have rows first: see num_branches. Raises NoForm on anything that may hold other
    tensors, such as a closure.
    """
    if isinstance(value, Tensor):
        return num_branches(value, num_rows), value.shape[1:], value.dtype, value.device
    if is_record(value):
        return type(value), *(form(each, num_rows) for each in value)
    if not _is_constant(value):
        raise NoForm
    constant: Hashable = value
    return constant


def num_branches(value: Tensor, num_rows: int) -> int:
    """How many times so many rows there are in a tensor; 0 where all rows share it.

    Guided branches stand one after another. Raises NoForm where it has no such rows.
    """
    if value.dim() and len(value) % num_rows == 0:
        return len(value) // num_rows
    if value.dim() and len(value) == 1:
        return 0
    raise NoForm


def is_record(value: Any) -> bool:
    """Is it a NamedTuple?"""
    return isinstance(value, tuple) and hasattr(value, "_fields")


def _is_constant(value: Any) -> bool:
    if type(value) is tuple:
        return all(map(_is_constant, value))
    of_module = isinstance(value, MethodType) and isinstance(value.__self__, nn.Module)
    return of_module or isinstance(value, CONSTANTS)


def leaves(value: Any) -> Iterator[Tensor]:
    """The tensors in a record."""
    if isinstance(value, Tensor):
        yield value
    elif is_record(value):
        for each in value:
            yield from leaves(each)


def with_leaves(value: Any, make: Callable[[Tensor], Tensor]) -> Any:
    """The record with what `make` makes of each tensor in their places."""
    if isinstance(value, Tensor):
        return make(value)
    if not is_record(value):
        return value
    return type(value)(*(with_leaves(each, make) for each in value))
