"""One line of the doctor's report."""

from __future__ import annotations

from typing import NamedTuple

OK, NOTE, FAIL = "ok", "note", "FAIL"


class Finding(NamedTuple):
    """One line of the report, and what to do about it."""

    state: str
    subject: str
    text: str
    remedy: str = ""

    def __str__(self) -> str:
        line = f"{self.state:<5}{self.subject:<16}{self.text}"
        return f"{line}\n{'':21}do: {self.remedy}" if self.remedy else line
