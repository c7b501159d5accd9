"""Tokens of texts in the forms in which lm-eval's own models give them."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from llada_plugins.engine.engine import Engine

logger = logging.getLogger(__name__)


def encode(
    engine: Engine,
    string: str,
    add_special_tokens: bool | None = None,
    left_truncate_len: int | None = None,
) -> list[int]:
    """Token ids, the last left_truncate_len of them.

    By default special tokens are added as the tokenizer does, never a second BOS.
    """
    if add_special_tokens is None:
        ids = engine.encode(string)
    else:
        ids = engine.tokenizer.encode(string, add_special_tokens=add_special_tokens)
    return ids[-left_truncate_len:] if left_truncate_len else ids


def encode_batch(
    engine: Engine,
    strings: Sequence[str],
    padding_side: str = "left",
    left_truncate_len: int | None = None,
    truncation: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, both (B, L).

    truncation: to the tokenizer's model_max_length. left_truncate_len: the last columns.
    """
    rows = [encode(engine, each) for each in strings]
    if truncation:
        rows = [row[: engine.tokenizer.model_max_length] for row in rows]
    padding = engine.tokenizer.pad_token_id
    if padding is None:
        padding = engine.special.eos
    ids = _padded(rows, padding, padding_side)
    mask = _padded([[1] * len(row) for row in rows], 0, padding_side)
    if not left_truncate_len:
        return ids, mask
    if ids.shape[1] > left_truncate_len:
        logger.warning(
            "of %d columns of tokens the last %d are kept", ids.shape[1], left_truncate_len
        )
    return ids[:, -left_truncate_len:], mask[:, -left_truncate_len:]


def _padded(rows: Sequence[list[int]], filler: int | None, side: str) -> torch.Tensor:
    """The rows as (B, L), filled to the longest of them."""
    longest = max(len(row) for row in rows)
    padded = []
    for row in rows:
        missing = [filler] * (longest - len(row))
        padded.append([*missing, *row] if side == "left" else [*row, *missing])
    return torch.tensor(padded)
