"""What OpenCompass wants scored, as token pairs: a context and the answer after it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from llada_plugins.models import text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Pair = tuple[list[int], list[int]]


def whole(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> Pair:
    """All of a text, given BOS if the tokenizer has one."""
    bos = tokenizer.bos_token_id
    if bos is None:
        return [], ids
    return [bos], ids[1:] if ids[:1] == [bos] else ids


def ending(string: str, cont: str) -> tuple[str, str]:
    """A prompt without its ending `cont`, and that ending, as text."""
    if not cont or not string.endswith(cont):
        raise ValueError(
            f"a prompt must end with its column 'cont', {cont[:40]!r}; it ends with "
            f"{string[-40:]!r}"
        )
    return string[: -len(cont)], cont


def labelled(
    tokenizer: PreTrainedTokenizerBase, string: str, label: Sequence[Sequence[int]], given: int
) -> list[Pair]:
    """The labelled parts of a text, each given the text before it; parts that touch are one.

    label: parts as (begin, end, …) in characters. given: tokens at the start of the text
    that are never scored.
    """
    ids, spans = text.encode_with_spans(tokenizer, string)
    scored = [
        number
        for number, (begin, end) in enumerate(spans)
        if number >= given
        and begin < end
        and any(begin < right and left < end for left, right, *_ in label)
    ]
    bos = tokenizer.bos_token_id
    prefix = [] if bos is None or ids[:1] == [bos] else [bos]
    return [(prefix + ids[: run.start], ids[run.start : run.stop]) for run in neighbours(scored)]


def neighbours(numbers: Sequence[int]) -> list[range]:
    """Rising numbers as runs without gaps."""
    runs = []
    # within a run, a number less its place in the list stays the same
    for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        members = [number for _, number in run]
        runs.append(range(members[0], members[-1] + 1))
    return runs
