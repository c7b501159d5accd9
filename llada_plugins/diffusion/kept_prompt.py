"""Prompts' keys and values that outlive a block, so that a block's first step computes no prompt.

An approximation: what stands in the prompt was computed when later tokens of the answer
were masks still. dLLM-Cache (arXiv 2506.06295) refreshes prompts rarely as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar, NamedTuple

from torch import Tensor

from llada_plugins.models.past import LayerPast, Past

from .denoiser import PADDING, Canvas


class PromptRefresh(NamedTuple):
    """When prompts are computed again."""

    every: int  # blocks; 0: never after the first
    block: int  # tokens of a block


class Prompt(NamedTuple):
    """Of one row, as of the first step of a block of this number."""

    number: int
    layers: list[LayerPast]  # (H, P, head_dim) each, P tokens


class KeptPrompts:
    """The prompts of a decode's rows, by the ids of those; each stays until its row ends."""

    exact: ClassVar = False

    def __init__(self) -> None:
        self.by_id: dict[int, Prompt] = {}
        # columns left of a window that its logits need; known after the first prediction
        self.num_left = 0

    def forget(self, ids: Iterable[int]) -> None:
        """Drop what is kept of these rows."""
        for each in ids:
            self.by_id.pop(each, None)

    def is_due(self, each: int, number: int, every: int) -> bool:
        """Is a row's prompt to be computed at this block, by the rule or as there is none?

        Once a block: candidates for it share what its first one computed.
        """
        kept = self.by_id.get(each)
        if kept is None:
            return True
        return every > 0 and number % every == 0 and kept.number < number

    def fill(self, past: Past, ids: Sequence[int], start: int, length: int) -> None:
        """Fill an empty past of these rows, whose prompts end before column `start` of `length`.

        What is not of a prompt is zero, and written before it is attended to, or padding.
        """
        layers = []
        first = self.by_id[ids[0]].layers
        for layer, (keys, _) in enumerate(first):
            num_heads, _, head_dim = keys.shape
            shape = 2, len(ids), num_heads, length, head_dim
            memory = LayerPast(*keys.new_zeros(shape))
            for row, each in enumerate(ids):
                for own, kept in zip(memory, self.by_id[each].layers[layer]):
                    own[row, :, start - kept.shape[1] : start] = kept
            layers.append(memory)
        past.fill(layers, len(ids), length)

    def store(self, row: int, each: int, number: int, columns: slice, past: Past) -> None:
        """Keep a row's prompt, which stands in these columns of the past."""
        layers = [
            LayerPast(*(own[row, :, columns].clone() for own in layer)) for layer in past.present()
        ]
        self.by_id[each] = Prompt(number, layers)


class BlockPrompts:
    """The prompts of one block's rows: loaded before its first step, or kept after it."""

    def __init__(
        self, kept: KeptPrompts, canvas: Canvas, window: slice, rule: PromptRefresh
    ) -> None:
        assert canvas.ids is not None
        # rows of a canvas end together, so their answers begin at one column
        self.kept, self.start = kept, int(canvas.answer_start[0])
        self.number = (window.start - self.start) // rule.block
        self.ids: list[int] = canvas.ids.tolist()
        self.due = [each for each in self.ids if kept.is_due(each, self.number, rule.every)]

    def load(self, past: Past, length: int) -> None:
        """Fill an empty past with the rows' prompts, of which none is due."""
        self.kept.fill(past, self.ids, self.start, length)

    def keep(self, tokens: Tensor, past: Past) -> None:
        """Keep what the block's first step has computed of the prompts that are due."""
        lengths = (tokens[:, : self.start] != PADDING).sum(1).tolist()
        for row, (each, length) in enumerate(zip(self.ids, lengths)):
            if each in self.due:
                columns = slice(self.start - length, self.start)
                self.kept.store(row, each, self.number, columns, past)
        self.due = []

    @property
    def first_column(self) -> int:
        """The first that is computed where the prompt is not."""
        return max(0, self.start - self.kept.num_left)
