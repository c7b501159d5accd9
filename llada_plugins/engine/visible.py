"""Text of models, made to be looked at: what would act on a terminal is written out."""

from __future__ import annotations

import re

BREAK = "↵"
PICTURES = 0x2400  # Unicode's pictures of the control characters 0 to 31 begin here


def visible(string: str) -> str:
    """One line of the same text, with signs for control characters, codes for what shows nothing.

    So neither ANSI codes nor marks that turn the direction of writing have an effect.
    """
    return "".join(map(_visible, string))


def on_terminal(string: str) -> str:
    """The same text with its lines and tabs, without what else would act on a terminal."""
    return re.sub(r"[^\n\t]+", lambda found: visible(found[0]), string)


def _visible(symbol: str) -> str:
    if symbol == "\n":
        return BREAK
    if symbol < " ":
        return chr(PICTURES + ord(symbol))
    return symbol if symbol.isprintable() else f"[U+{ord(symbol):04X}]"
