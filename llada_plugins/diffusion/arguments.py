"""What callers in Python give beside token rows; what is none of it is refused in one line."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any, TypeGuard

from llada_plugins.files.json_files import short
from llada_plugins.models.llada_config import LLaDAConfig
from llada_plugins.models.special_tokens import SpecialTokens

KEYS = range(-(2**63), 2**63)  # what a tensor of keys holds


def check_model(model: object) -> None:
    """Raise ValueError on what is no model of this package, wrapped or not."""
    if not isinstance(getattr(model, "config", None), LLaDAConfig):
        raise ValueError(
            f"model must be what load_model(...) returns, or an engine's .model, got {short(model)}"
        )


def check_special(special: object, vocabulary: int) -> None:
    """Raise ValueError on what are no special tokens, or none of a model with so many tokens."""
    if not isinstance(special, SpecialTokens):
        raise ValueError(f"special must be SpecialTokens(mask=…), got {short(special)}")
    optional = {"eos": special.eos, "eot": special.eot}
    given = {"mask": special.mask, **{name: at for name, at in optional.items() if at is not None}}
    for name, token in [*given.items(), *(("more_eos", each) for each in special.more_eos)]:
        if not is_whole(token) or not 0 <= token < vocabulary:
            raise ValueError(
                f"special.{name} is {short(token)}, and the model's tokens are 0 to "
                f"{vocabulary - 1}"
            )


def check_function(name: str, function: Callable[..., Any]) -> None:
    """Raise ValueError on what cannot be called."""
    if not callable(function):
        raise ValueError(f"{name} must be a function, got {short(function)}")


def check_functions(**functions: Callable[..., Any] | None) -> None:
    """Raise ValueError on one that is given, so is not None, and cannot be called."""
    for name, function in functions.items():
        if function is not None:
            check_function(name, function)


def check_keys(keys: Sequence[int] | None, num_rows: int) -> None:
    """Raise ValueError where there is not one key, a whole number of 64 bits, for each row."""
    if keys is None:
        return
    if not isinstance(keys, Sequence) or isinstance(keys, str):
        raise ValueError(f"keys must be a list of whole numbers, one for each row, got {keys!r}")
    if len(keys) != num_rows:
        raise ValueError(f"keys must be one for each row, got {len(keys)} for {num_rows}")
    for number, key in enumerate(keys):
        if not is_whole(key) or operator.index(key) not in KEYS:
            raise ValueError(
                f"key {number} is {short(key)}: keys are whole numbers, -2^63 to 2^63 - 1"
            )


def is_whole(value: object) -> TypeGuard[int]:
    """Is it a whole number, NumPy's too? A flag is none."""
    try:
        operator.index(value)  # type: ignore[arg-type]  # a tensor of a fraction has the method
    except TypeError:
        return False
    return not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[float]:
    """Is it a real number, NumPy's too? A flag is none."""
    return isinstance(value, Real) and not isinstance(value, bool)
