"""Stop strings as tasks and configs of both harnesses give them."""

from __future__ import annotations

from typing import Any


def stop_strings(given: Any, name: str) -> tuple[str, ...]:
    """One string or several, or None, as a tuple without empty ones.

    name: of the option that has them, for the ValueError where one is no string.
    """
    if given is None:
        return ()
    several = [given] if isinstance(given, str) else given
    if not isinstance(several, (list, tuple)) or not all(isinstance(each, str) for each in several):
        raise ValueError(f"{name} must be a string or a list of strings, got {given!r}")
    return tuple(dict.fromkeys(each for each in several if each))
