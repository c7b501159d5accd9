"""How masked rows become the canvas of one forward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from llada_plugins.diffusion.denoiser import PADDING, Canvas
from llada_plugins.diffusion.noisy_clean import ABSENT, CLEAN, layout
from llada_plugins.diffusion.token_rows import align


class Row(NamedTuple):
    """A masked sequence to run."""

    tokens: list[int]  # mask ids in place, and what is shown after the answer
    start: int  # which of them is the first that may be masked
    columns: list[int]  # tokens to score, counted from there
    # of a block-causal model `tokens` are of one block, after these clean ones
    before: list[int]
    prompt: int  # how many of all these tokens are the prompt


class Laid(NamedTuple):
    """A canvas with rows on it."""

    canvas: Canvas
    window: slice
    begins: list[tuple[int, int]]  # of each row: canvas row, and window column of its start


def lay_out(rows: Sequence[Row], device: torch.device) -> Laid:
    """Each row by itself, ends aligned."""
    tokens, padded = align([row.tokens for row in rows], device)  # (B, L)
    lengths = [len(row.tokens) - row.start for row in rows]
    width, total = max(lengths), tokens.shape[1]
    start = torch.tensor([total - length for length in lengths], device=device)
    begins = [(number, width - length) for number, length in enumerate(lengths)]
    return Laid(Canvas(tokens, start, padded), slice(total - width, total), begins)


def lay_beside_clean(
    sheets: Sequence[Sequence[Row]], block_length: int, device: torch.device
) -> Laid:
    """The rows of each sheet, blocks of one text, beside its clean tokens: noisy_clean.py."""
    begins: list[tuple[int, int]] = []
    columns: list[list[_Column]] = []  # of every sheet, the noisy ones
    for number, sheet in enumerate(sheets):
        noisy: list[_Column] = []
        for copy, row in enumerate(sheet, 1):
            begins.append((number, len(noisy) + row.start))
            noisy += [
                _Column(token, copy, position)
                for position, token in enumerate(row.tokens, len(row.before))
            ]
        columns.append(noisy)
    width = max(map(len, columns))
    for noisy, sheet in zip(columns, sheets):
        noisy += [NOTHING] * (width - len(noisy))
        before = max((row.before for row in sheet), key=len)
        noisy += [_Column(token, CLEAN, position) for position, token in enumerate(before)]
    total = max(map(len, columns))
    padded = [row + [NOTHING] * (total - len(row)) for row in columns]
    tokens, copies, positions = torch.tensor(padded, device=device).unbind(-1)  # (B, C) each
    canvas = Canvas(
        tokens,
        torch.tensor([sheet[0].prompt for sheet in sheets], device=device),
        layout=layout(copies, positions, block_length),
    )
    return Laid(canvas, slice(0, width), begins)


class _Column(NamedTuple):
    token: int
    copy: int
    position: int


NOTHING = _Column(PADDING, ABSENT, 0)
