"""What an observer sees of each step of the loop."""

from __future__ import annotations

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
    kept: Tensor  # (B, W) bool: unmasked by this step
    remasked: Tensor  # (B, W) bool: masked again by this step
    replaced: Tensor  # (B, W) bool: visible, and replaced by the proposal

    def keep_rows(self, places: Tensor) -> Step:
        """The rows at these places alone."""
        of_rows: dict[str, Any] = {
            name: value[places] for name, value in self._asdict().items() if torch.is_tensor(value)
        }
        return self._replace(**of_rows)
