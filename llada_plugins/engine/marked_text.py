"""A text with spans that are to be filled in: how it is written, and the request that it is.

Spans are marked <|infill|>, <|infill:8|> (tokens) or <|infill:4,8,16|> (tokens to choose
from); what becomes of them: infilling.py.
"""

from __future__ import annotations

import itertools
import math
import operator
import re
from collections.abc import Sequence

from llada_plugins.diffusion.arguments import is_whole
from llada_plugins.sampling.config import SamplerConfig
from llada_plugins.tasks.spans import BEGINS, WRITTEN

from .request import Completion, Request

MARKER = re.compile(r"<\|infill(?::([0-9, ]*))?\|>")
MOST_TOKENS = 1_000_000  # of a span; more than any context holds
MOST_CHOICES = 64  # combinations of lengths that are tried for a text

Piece = str | tuple[int, ...]  # text, or the lengths of a span to choose from


def marked(string: str, length: int) -> list[Piece]:
    """The pieces of a text with marked spans; length: tokens of one that states none.

    ValueError where nothing is marked, or something looks like a mark and is none.
    """
    pieces: list[Piece] = []
    parts = MARKER.split(string)
    for number, part in enumerate(parts):
        if number % 2:
            pieces.append((length,) if part is None else _lengths(part))
        elif BEGINS in part:
            place = part.index(BEGINS)
            raise ValueError(f"{WRITTEN}, got {part[place : place + 30]!r}: mend the mark")
        elif part:
            pieces.append(part)
    return checked(pieces)


def _lengths(part: str) -> tuple[int, ...]:
    numbers = [each.strip() for each in part.split(",")]
    if not all(numbers):
        raise ValueError(f"{WRITTEN}, got '<|infill:{part}|>': give each length")
    if max(map(len, numbers)) > len(str(MOST_TOKENS)):
        raise ValueError(f"a span has at most {MOST_TOKENS:,} tokens, got {part[:40]}: give fewer")
    return tuple(map(int, numbers))


def checked(pieces: Sequence[str | int | Sequence[int]]) -> list[Piece]:
    """The same, a length as a choice of one. ValueError on what cannot be filled in."""
    if isinstance(pieces, bytes) or not isinstance(pieces, Sequence):
        raise ValueError(
            f"a text must be a string with marked spans, or a list of strings and numbers of "
            f"tokens, got {pieces!r}"
        )
    found: list[Piece] = [_piece(each) for each in pieces]
    found = [each for each in found if each != ""]
    lengths = [each for each in found if not isinstance(each, str)]
    if not lengths:
        raise ValueError(f"nothing is to be filled in: the text has no span ({WRITTEN})")
    for each in lengths:
        _check_lengths(each)
    for one, other in itertools.pairwise(found):
        if not isinstance(one, str) and not isinstance(other, str):
            raise ValueError(
                f"two spans, of {_told(one)} and {_told(other)} tokens, have no text between them: "
                "make one of them"
            )
    number = math.prod(map(len, lengths))
    if number > MOST_CHOICES:
        raise ValueError(
            f"the lengths of the spans have {number} combinations, and at most {MOST_CHOICES} are "
            "tried: name fewer lengths"
        )
    return found


def _check_lengths(lengths: Sequence[int]) -> None:
    if not lengths or min(lengths) < 1:
        raise ValueError(f"a span has at least 1 token, got {_told(lengths)}: give its length")
    if max(lengths) > MOST_TOKENS:
        raise ValueError(
            f"a span has at most {MOST_TOKENS:,} tokens, got {_told(lengths)}: give fewer"
        )
    if len(set(lengths)) < len(lengths):
        raise ValueError(f"a span's lengths differ, got {_told(lengths)}: name each once")


def _piece(each: str | int | Sequence[int]) -> Piece:
    if isinstance(each, str):
        return each
    lengths = each if isinstance(each, list | tuple) else [each]
    if not all(map(is_whole, lengths)):
        raise ValueError(
            "a piece of a text must be a string, or a span's number of tokens, or several to "
            f"choose from, got {each!r}"
        )
    return tuple(map(operator.index, lengths))


def _told(lengths: Sequence[int]) -> str:
    return ",".join(map(str, lengths)) or "none"


def request_of(pieces: Sequence[str | int | Sequence[int]], sampler: SamplerConfig) -> Request:
    """The request to fill in the spans among these pieces, text and lengths."""
    found = checked(pieces)
    prompt = found.pop(0) if isinstance(found[0], str) else ""
    assert isinstance(prompt, str)
    return Request(prompt, sampler, rest=tuple(found))


def marked_request(string: str, sampler: SamplerConfig, until: Sequence[str] = ()) -> Request:
    """The request to fill in a text's marked spans; gen_length: of one that states no length.

    ValueError where stop strings are given: a text that goes on after a span has no end.
    """
    if until:
        raise ValueError(
            f"stop strings ({', '.join(map(repr, until))}) have no effect in a span, after which "
            "the text goes on: leave them out (until: [])"
        )
    return request_of(marked(string, sampler.gen_length), sampler)


def whole_text(request: Request, completion: Completion) -> str:
    """The text of a request with what was filled in, from its beginning to its end."""
    after = request.rest[-1]
    return request.prompt + completion.text + (after if isinstance(after, str) else "")
