"""Where the blocks of a row lie, and the canvas on which the next of them is filled."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .denoiser import PADDING
from .token_rows import align


class Blocks(NamedTuple):
    """How the answer to a prompt of P tokens is cut into blocks.

    Blocks that are counted from the row's first token hold the end of the prompt too: P
    mod width tokens of it are in the answer's first block.
    """

    width: int
    length: int  # tokens of an answer
    from_row: bool = False  # counted from the row's first token, else from the answer's
    causal: bool = False  # does a token see its own block and earlier ones alone?
    grows: bool = False  # does the canvas end with the block in work?
    whole: bool = True  # is the last block decoded whole, or the rest of the answer alone?
    # where an answer ends: after its length, with a block, or one token beyond whole blocks
    ends: Literal["gen_length", "block", "next_token"] = "gen_length"

    def tail(self, prompt: int) -> int:
        """Prompt tokens in the answer's first block."""
        return prompt % self.width if self.from_row else 0

    def number(self, prompt: int) -> int:
        """Blocks of the answer, the last of which may be cut."""
        if self.ends == "next_token":
            return self.length // self.width + 1
        return -(-(self.tail(prompt) + self.length) // self.width)  # rounded up

    def decoded(self, prompt: int) -> int:
        """Tokens after the prompt in all blocks."""
        if self.ends == "next_token":
            return self.length // self.width * self.width - self.tail(prompt) + 1
        if not self.whole:
            return self.length
        return self.number(prompt) * self.width - self.tail(prompt)

    def answer(self, prompt: int) -> int:
        """Tokens of an answer that nothing stops."""
        return self.length if self.ends == "gen_length" else self.decoded(prompt)

    def row(self, prompt: int) -> int:
        """Tokens of the whole row, prompt included."""
        return prompt + self.decoded(prompt)

    def before(self, prompt: int, number: int) -> int:
        """Tokens of the row that are in blocks before this one of the answer."""
        return prompt - self.tail(prompt) + number * self.width

    def end(self, prompt: int, number: int) -> int:
        """Tokens of the row on the canvas while this block of the answer is filled."""
        if not self.grows:
            return self.row(prompt)
        return min(self.before(prompt, number + 1), self.row(prompt))

    def shown_after(self, prompt: int, number: int) -> int | None:
        """Tokens after the answer on the canvas while this block is filled; None: all there are."""
        if not self.grows:
            return None
        return max(0, self.before(prompt, number + 1) - self.row(prompt))

    def columns_after(self, given: int) -> int:
        """Columns that so many tokens after an answer take, beside those of its blocks."""
        return 0 if self.grows else given

    def room(self, context: int) -> int:
        """Tokens of the longest prompt whose row fits a context of so many."""
        if self.causal and not self.whole:
            context = context // self.width * self.width  # blocks of the canvas are whole
        if self.from_row and self.whole and self.ends != "next_token":
            return context // self.width * self.width - self.length
        if self.causal and not self.from_row:  # the prompt's first block may be padded
            return (context - self.decoded(0)) // self.width * self.width
        return context - self.decoded(0)


class Given(NamedTuple):
    """What is known of a row after its prompt, where spans of it are to be filled in."""

    # of the answer's tokens, the mask where one is to be found; () = all are
    answer: tuple[int, ...] = ()
    after: tuple[int, ...] = ()  # tokens after the answer

    def masks(self, begin: int, end: int, mask_id: int) -> list[int]:
        """The answer's tokens from `begin` to `end`, before any is decoded."""
        return list(self.answer[begin:end]) or [mask_id] * (end - begin)


NOTHING = Given()


class LaidOut(NamedTuple):
    """Rows before one of their blocks is filled, aligned at its first column."""

    tokens: Tensor  # (B, L)
    padded: bool  # is there any PADDING?
    first: int  # column at which the block begins
    answer_starts: list[int]  # column of each row's first answer token


def lay_out(
    blocks: Blocks,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    numbers: Sequence[int],
    mask_id: int,
    device: torch.device,
    given: Sequence[Given] | None = None,
) -> LaidOut:
    """The canvas of rows that fill these numbers of blocks next.

    answers: tokens of the blocks before. given: of each row, what is known after its prompt.
    What stands after an answer is on the canvas, as far as that does not end with the block in
    work, with PADDING on its right where others have more. What is finished has PADDING on its
    left, to a multiple of the width where blocks are causal: so edges of blocks are multiples
    of it in every row. A causal block is always whole, with PADDING for what its row has not.
    """
    finished, begun, starts = [], [], []
    for prompt, answer, number, known in zip(prompts, answers, numbers, given or repeat(NOTHING)):
        row, cut = [*prompt, *answer], blocks.before(len(prompt), number)
        end = blocks.end(len(prompt), number) - len(prompt)
        finished.append(row[:cut])
        after = known.after[: blocks.shown_after(len(prompt), number)]
        begun.append([*row[cut:], *known.masks(len(answer), end, mask_id), *after])
        starts.append(len(prompt) - cut)
    whole, padded = align(finished, device, multiple=blocks.width if blocks.causal else 1)
    width = blocks.width if blocks.causal else max(map(len, begun))
    short = any(len(each) < width for each in begun)
    rest = [each + [PADDING] * (width - len(each)) for each in begun]
    first = whole.shape[1]
    tokens = torch.cat([whole, torch.tensor(rest, device=device)], 1)
    return LaidOut(tokens, padded or short, first, [first + start for start in starts])
