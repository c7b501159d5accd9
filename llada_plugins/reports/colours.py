"""The colours that pages/*.css declares, for what is drawn without a style sheet."""

from __future__ import annotations

import functools
import re
from typing import NamedTuple

from .page import source

SHEETS = ("page.css", "view.css")
DECLARED = re.compile(r"^ *--(\w+): light-dark\((#\w{6}), (#\w{6})\);", re.M)


class Colour(NamedTuple):
    """What a name stands for, as #rrggbb."""

    light: str
    dark: str


@functools.cache
def colours() -> dict[str, Colour]:
    """Every colour by its name in the style sheets, without the dashes."""
    found = [each for sheet in SHEETS for each in DECLARED.findall(source(sheet))]
    return {name: Colour(*pair) for name, *pair in found}


def light(name: str) -> str:
    """The colour on light paper."""
    return colours()[name].light
