"""What an observer sees of each step of the loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Step(NamedTuple):
    """What one step did, for observers: B rows, the W positions of the block.

    rows: which of the prompts; under a Review a prompt may come several times, once for
    each candidate, which `places` tells apart. proposal: where nothing was proposed, the
    token that stands there.
    """

    block: int  # number of the block, from 0
    step: int  # number of the step in the block, from 0
    rows: Tensor  # (B,)
    # (B,) position in the answer of the block's first column; negative where the prompt's
    # end lies in the block
    start: Tensor
    places: Tensor  # (B,) rows of the canvas, the same in all steps that fill it
    proposal: Tensor  # (B, W) tokens
    score: Tensor  # (B, W) fp32; inf where a token is pinned
    policy: Tensor | None  # (B, W) score h of a policy stream, if the model has one
    masked: Tensor  # (B, W) bool: masked before this step
    replaced: Tensor  # (B, W) bool: visible, and replaced by the proposal
    tokens: Tensor  # (B, W) after this step
    mask: int  # the mask's id

    # Not fields: most observers look at a whole block's steps at once, and a small model's
    # step is short enough for two kernels of each to show.

    @property
    def kept(self) -> Tensor:
        """Which tokens were unmasked by this step, (B, W) bool."""
        return self.masked & (self.tokens != self.mask)

    @property
    def remasked(self) -> Tensor:
        """Which tokens were masked again by this step, (B, W) bool."""
        return ~self.masked & (self.tokens == self.mask)

    def keep_rows(self, places: Tensor) -> Step:
        """The rows at these places alone."""
        return self._replace(**{name: each[places] for name, each in self.tensors.items()})

    @property
    def tensors(self) -> dict[str, Any]:
        """The fields that have a value for each row, by name."""
        return {name: each for name, each in self._asdict().items() if torch.is_tensor(each)}

    @classmethod
    def joined(cls, steps: Sequence[Step]) -> Step:
        """All rows of steps of one window, one step after another, as if they were one step."""
        fields: dict[str, Any] = {
            name: torch.cat([getattr(step, name) for step in steps]) for name in steps[0].tensors
        }
        return steps[0]._replace(**fields)
