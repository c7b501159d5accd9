"""A terminal screen on which an answer is drawn again after every step."""

from __future__ import annotations

import os
import shutil
import unicodedata
from typing import TextIO


def redraws(out: TextIO) -> bool:
    """Does the stream go to a terminal on which lines can be drawn again?"""
    return out.isatty() and os.environ.get("TERM") != "dumb"


class Screen:
    """The last lines of an answer in work, each drawing in place of the one before."""

    def __init__(self, out: TextIO) -> None:
        self.out = out
        self.num_lines = 0

    def draw(self, string: str) -> None:
        """Show as much of the string's end as there is room for; control characters as spaces."""
        columns, rows = shutil.get_terminal_size()
        shown = "".join(each if each.isprintable() or each == "\n" else " " for each in string)
        lines = wrap(shown, columns - 1)[-max(rows - 1, 1) :]
        self.out.write(self._home() + "\n".join(lines))
        self.out.flush()
        self.num_lines = len(lines)

    def clear(self) -> None:
        """Take the drawing away."""
        self.out.write(self._home())
        self.num_lines = 0

    def _home(self) -> str:
        up = f"\x1b[{self.num_lines - 1}A" if self.num_lines > 1 else ""
        return f"\r{up}\x1b[J" if self.num_lines else ""


def wrap(string: str, columns: int) -> list[str]:
    """Lines that fill no more than `columns` cells of a terminal."""
    lines, used = [""], 0
    for symbol in string:
        cells = num_cells(symbol)
        if symbol == "\n" or used + cells > columns:
            lines.append("")
            used = 0
        if symbol != "\n":
            lines[-1] += symbol
            used += cells
    return lines


def num_cells(symbol: str) -> int:
    """Cells of a terminal that a character fills: 2 for wide ones, 0 for combining ones."""
    if unicodedata.east_asian_width(symbol) in "WF":
        return 2
    return 0 if unicodedata.combining(symbol) else 1
