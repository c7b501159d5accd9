"""The stream of random numbers of each repeat of a prompt, in both harnesses."""

from __future__ import annotations

Stream = tuple[tuple[int, ...], ...]  # `stream` of engine.Request


def stream(number: int, copy: str = "") -> Stream:
    """Of the repeat of a prompt with that number; copy: the data set's name if it is one.

    Number 0 has the engine's plain stream.
    """
    if copy:
        return (number,), tuple(copy.encode())
    return ((number,),) if number else ()
