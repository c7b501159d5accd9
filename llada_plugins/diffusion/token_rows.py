"""Token rows as callers give them: one tensor of them, and what they may not hold."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence, Set, Sized
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .arguments import is_whole
from .denoiser import PADDING

# bytes are read as numbers, and the others have no order, or keys in place of values
NO_ROWS = (str, bytes, bytearray, Set, Mapping)


class Aligned(NamedTuple):
    """Token rows that end together."""

    tokens: Tensor  # (B, L) with PADDING on the left of shorter rows
    padded: bool  # was any needed?


def align(rows: Sequence[Sequence[int]], device: torch.device, *, multiple: int = 1) -> Aligned:
    """Token rows as one tensor, with PADDING on the left of shorter ones.

    multiple: what their common length is rounded up to.
    """
    longest = max(len(row) for row in rows)
    longest = -(-longest // multiple) * multiple
    aligned = [[PADDING] * (longest - len(row)) + list(row) for row in rows]
    padded = any(len(row) < longest for row in rows)
    return Aligned(torch.tensor(aligned, dtype=torch.long, device=device), padded)


def token_rows(rows: Iterable[Any], vocabulary: int, what: str = "prompt") -> list[list[int]]:
    """Rows of token ids as lists, from lists, arrays or tensors of whole numbers.

    vocabulary: how many tokens there are. what: a row is called in an error. Raises ValueError
    on what is no row of ids; a tensor would cut 17.5 to 17, and take -1 for no token.
    """
    if isinstance(rows, NO_ROWS) or not isinstance(rows, Iterable):
        raise _no_rows(rows, what)
    found = []
    for number, row in enumerate(rows):
        row = row.tolist() if hasattr(row, "tolist") else row
        if isinstance(row, NO_ROWS) or not isinstance(row, Iterable):
            raise _no_rows(row, what)
        ids = list(row)
        if set(map(type, ids)) - {int}:  # a fast look, for millions of tokens
            ids = [_token(token, f"{what} {number}") for token in ids]
        if ids and not 0 <= min(ids) <= max(ids) < vocabulary:
            wrong = next(token for token in ids if not 0 <= token < vocabulary)
            raise ValueError(
                f"{what} {number} holds {wrong}, and the model's tokens are 0 to {vocabulary - 1}"
            )
        found.append(ids)
    return found


def token_pairs(pairs: Any, vocabulary: int) -> list[tuple[list[int], list[int]]]:
    """(prompt ids, answer ids) as lists, under the rules of `token_rows`."""
    if not isinstance(pairs, Sequence) or not all(map(_is_pair, pairs)):
        raise ValueError(
            "pairs must be a list of (prompt ids, answer ids), such as [([17, 13], [19, 18])]"
        )
    prompts = token_rows([prompt for prompt, _ in pairs], vocabulary)
    answers = token_rows([answer for _, answer in pairs], vocabulary, "answer")
    return list(zip(prompts, answers))


def _is_pair(pair: object) -> bool:
    return isinstance(pair, Sized) and len(pair) == 2


def _token(token: Any, where: str) -> int:
    if is_whole(token):
        return operator.index(token)
    raise ValueError(f"{where} holds {token!r}: token ids are whole numbers")


def _no_rows(given: Any, what: str) -> ValueError:
    return ValueError(
        f"{what}s must be rows of token ids, such as [[17, 13], [18]], got {given!r}: a tokenizer "
        "makes ids of text"
    )


def check_unmasked(
    rows: Sequence[Sequence[int]],
    mask_id: int,
    what: str = "prompt",
    why: str = "it would never be filled in",
) -> None:
    """Raise ValueError on a row with the mask token: only the answer after a prompt is filled in.

    what: a row is called in the error; why: the mask is out of place in it.
    """
    for number, row in enumerate(rows):
        if mask_id in row:
            place = list(row).index(mask_id)
            raise ValueError(
                f"{what} {number} holds the mask token (id {mask_id}) at position {place}: "
                f"{why}, take it out"
            )
