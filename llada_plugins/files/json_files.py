"""JSON files of a checkpoint: read strictly, and held against a declaration of their fields.

A declaration is a Kind: what a value must be, in words and as a test, and what its
parts must be. Every message names the file, the field, what was found and what was
expected. Standard library only; nothing here knows of models.
"""

from __future__ import annotations

import json
import math
import os
import re
import reprlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

ABSENT = object()  # the value of a field that a file does not have

_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = _repr.maxlong = 80


class Kind(NamedTuple):
    """What a JSON value must be."""

    expected: str  # in words
    holds: Callable[[Any], bool]  # of the value itself
    # (place, kind, value) of what is in it
    parts: Callable[[Any], Iterable[tuple[str, Kind, Any]]] = lambda value: ()


NOTHING = Kind("no field of that name", lambda value: False)


def whole(least: int = -(2**63), most: int = 2**63 - 1) -> Kind:
    """A whole number from least to most; true and 1.0 are none."""
    return Kind(
        f"a whole number from {least} to {most}",
        lambda value: type(value) is int and least <= value <= most,
    )


def number(least: float = -math.inf, most: float = math.inf) -> Kind:
    """A finite number from least to most; true is none."""
    words = (
        "a number"
        if (least, most) == (-math.inf, math.inf)
        else f"a number from {least:g} to {most:g}"
    )
    return Kind(words, lambda value: type(value) in (int, float) and least <= value <= most)


def one_of(*values: Any) -> Kind:
    """One of some plain values; 1 is not true, but 1 is 1.0."""
    return Kind(
        " or ".join(map(json.dumps, values)),
        lambda value: any(same(value, each) for each in values),
    )


def nullable(kind: Kind) -> Kind:
    """null, or a value of that kind."""
    return Kind(
        f"{kind.expected} or null",
        lambda value: value is None or kind.holds(value),
        lambda value: () if value is None else kind.parts(value),
    )


def either(first: Kind, second: Kind) -> Kind:
    """A value of one of two kinds."""
    return Kind(
        f"{first.expected} or {second.expected}",
        lambda value: first.holds(value) or second.holds(value),
        lambda value: (first if first.holds(value) else second).parts(value),
    )


def list_of(kind: Kind) -> Kind:
    """A list of values of that kind."""
    return Kind(
        f"a list, each {kind.expected}",
        lambda value: isinstance(value, list),
        lambda value: ((f"[{place}]", kind, item) for place, item in enumerate(value)),
    )


def table_of(kind: Kind) -> Kind:
    """An object of any keys whose values are of that kind."""
    return Kind(
        f"an object, each value {kind.expected}",
        lambda value: isinstance(value, dict),
        lambda value: ((f"[{short(name)}]", kind, item) for name, item in value.items()),
    )


def record(
    required: Mapping[str, Kind] = {}, optional: Mapping[str, Kind] = {}, *, closed: bool = False
) -> Kind:
    """An object with fields of those kinds; closed: and with no others."""

    def parts(value: Mapping[str, Any]) -> Iterable[tuple[str, Kind, Any]]:
        for name, kind in required.items():
            yield f".{name}", kind, value.get(name, ABSENT)
        for name, kind in optional.items():
            if name in value:
                yield f".{name}", kind, value[name]
        for name in value if closed else ():
            if name not in required and name not in optional:
                yield f"[{short(name)}]", NOTHING, value[name]

    return Kind("a JSON object", lambda value: isinstance(value, dict), parts)


OBJECT = record()
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
TEXT = Kind("a string", lambda value: isinstance(value, str))


def same(value: Any, allowed: Any) -> bool:
    """Are two plain JSON values equal? Python's == would take true for 1."""
    return isinstance(value, bool) == isinstance(allowed, bool) and value == allowed


def short(value: Any) -> str:
    """A value as messages show it: one line, whatever its size."""
    return _repr.repr(value)


def one_line(string: str) -> str:
    """A name out of a file as messages show it: printable, and not long."""
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in string[:200])


def first_line(error: BaseException) -> str:
    """What a library's exception says, in one line, with its type where it says little."""
    line = (str(error).strip().splitlines() or [""])[0][:200]
    return one_line(line if " " in line else f"{type(error).__name__}: {line}")


def misfit(kind: Kind, value: Any, place: str = "") -> str | None:
    """What of the value is not as declared, the first place in a sentence; None if all is."""
    name = place.removeprefix(".") or "it"
    if value is ABSENT:
        return f"{name} is missing, expected {kind.expected}"
    if not kind.holds(value):
        return f"{name} is {short(value)}, expected {kind.expected}"
    return next(
        filter(
            None, (misfit(part, item, place + inner) for inner, part, item in kind.parts(value))
        ),
        None,
    )


def check(path: Path, kind: Kind, value: Any) -> None:
    """Raise ValueError that names the file and the first field that is not as declared."""
    if problem := misfit(kind, value):
        raise ValueError(f"{path}: {problem}")


def is_there(path: Path) -> bool:
    """Is there a file of that name?

    A folder or a broken link in its place is OSError, not an absent file.
    """
    if path.is_file():
        return True
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, expected a file")
    if os.path.lexists(path):
        raise FileNotFoundError(f"{path} is a link that leads to no file")
    return False


def read_json(path: Path, kind: Kind = OBJECT) -> dict[str, Any]:
    """The JSON object in a file of a checkpoint.

    Raises FileNotFoundError, another OSError, or ValueError in one line: for text that
    is not UTF-8 or not JSON, for NaN and infinities, for a key that stands twice in an
    object, and for what is not as `kind` declares.
    """
    if not is_there(path):
        raise FileNotFoundError(f"{path.parent} has no {path.name}: not a checkpoint folder")
    try:
        string = path.read_bytes().decode("utf-8")
        raw = json.loads(
            string, object_pairs_hook=_once, parse_constant=_no_number, parse_float=_finite
        )
        if re.search(r"\\u[dD][89a-fA-F]", string):
            # half a character fails here, and nowhere near its file later
            json.dumps(raw, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not valid JSON: byte {error.start} is not UTF-8 text"
        ) from None
    except UnicodeEncodeError:
        raise ValueError(
            f"{path} is not valid JSON: a string holds half a character (\\ud800 to \\udfff alone)"
        ) from None
    except RecursionError:
        raise ValueError(f"{path} is not valid JSON: it nests too deep") from None
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {one_line(str(error))}") from None
    if not isinstance(raw, dict):
        raise ValueError(f"{path} must hold a JSON object, found {type(raw).__name__}")
    check(path, kind, raw)
    return raw


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{short(twice)} stands twice in an object")
    return found


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _finite(digits: str) -> float:
    if not math.isfinite(value := float(digits)):
        raise ValueError(f"{digits[:40]} is too large a number")
    return value
