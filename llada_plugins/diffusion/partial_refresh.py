"""The answer's columns are computed again in part: in each layer those whose values moved most.

dLLM-Cache (arXiv 2506.06295), an approximation. A block's first step computes everything.
Later ones compute the whole answer every so many steps, the prompt every so many others, and
in between a share of the answer's columns. Which ones, each layer decides (models/features.py).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from llada_plugins.models.features import FeaturePast
from llada_plugins.models.past import Past

from .cache import KeysAndValues, cached_by
from .denoiser import Canvas, Denoiser
from .kept_prompt import PromptRefresh
from .memory import Memory


class PartialRefresh(NamedTuple):
    """A StepRule: what is computed at which steps of a block, which are counted from 0.

    The answer's columns are all from its first token on, finished blocks and later masks
    included. Where logits are shifted, the column left of them is one of them.
    """

    mask_id: int
    share: float  # of the answer's columns, which is rounded down
    every: int | None  # steps from one forward of all these columns to the next; None: no other
    prompt_every: int | None  # steps from one forward of the prompt to the next; None: no other

    @property
    def reads_known(self) -> bool:
        """See StepRule: a block returns all columns of the answer."""
        return False

    def empty_past(self, canvas: Canvas) -> Past:
        """See StepRule."""
        # rows of a canvas end together, so their answers begin at one column
        return FeaturePast(canvas.tokens.shape[1] - int(canvas.answer_start[0]) + 1)

    def columns(
        self, frozen: KeysAndValues, step: int, memory: Memory, canvas: Canvas, window: slice
    ) -> slice:
        """See StepRule; tells the past how many of the answer's columns each layer computes."""
        past, length = frozen.past, canvas.tokens.shape[1]
        assert isinstance(past, FeaturePast)
        first = frozen.prompts is None or bool(frozen.prompts.due)
        of_prompt = first if step == 0 else _is_due(step, self.prompt_every)
        num_left = frozen.num_left
        if step == 0 and of_prompt:
            num_left = 1  # before it is known
        past.num_moving = min(length, past.capacity - 1 + num_left)
        past.number = past.order = None
        if step > 0 and not _is_due(step, self.every):
            past.number = num_columns(self.share, past.num_moving)
            past.order = self.order(canvas.tokens, window, past.num_moving, num_left, step)
        return slice(None) if of_prompt else slice(length - past.num_moving, None)

    def order(
        self, tokens: Tensor, window: slice, num_moving: int, num_left: int, step: int
    ) -> Tensor:
        """The order (B, M) in which the answer's columns are chosen where values have not moved.

        First those that predict the window's masks. Within either kind from a column on that
        goes round by as many as are computed, so that none is left out for long.
        """
        length, device = tokens.shape[1], tokens.device
        predicts = torch.zeros_like(tokens, dtype=torch.bool)
        left = slice(window.start - num_left, window.stop - num_left)
        predicts[:, left] = tokens[:, window] == self.mask_id
        begin = (step - 1) * num_columns(self.share, num_moving)
        turn = (torch.arange(num_moving, device=device) - begin) % num_moving
        return (turn + num_moving * ~predicts[:, length - num_moving :]).argsort(-1)


def _is_due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


def num_columns(share: float, num_moving: int) -> int:
    """How many of so many columns that share is, rounded down."""
    return math.floor(share * num_moving + 1e-9)  # .29 of 100 is 29, whatever floats say


def partly_refreshed(
    denoise: Denoiser, rule: PartialRefresh, prompts: PromptRefresh | None = None
) -> Denoiser:
    """The denoiser, whose steps compute the answer's columns in part.

    prompts: when a first step computes prompts (default: always). A share of 1 computes all.
    """
    return cached_by(denoise, rule, prompts=prompts)
