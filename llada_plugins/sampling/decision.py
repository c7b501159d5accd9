"""What one step decides: which tokens of a block stand after it.

A function of tensors alone, of each row by itself, which keeps nothing: so a GPU may replay it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from llada_plugins.diffusion.denoiser import Prediction, masked_first
from llada_plugins.models.special_tokens import SpecialTokens

from .active import next_to_unmask, to_judge
from .config import SamplerConfig
from .keep_rules import keep
from .propose import INF, ActiveBlock, proposals_at
from .several_blocks import BlocksInWork


class Before(NamedTuple):
    """A block before a step, of B rows."""

    block: ActiveBlock
    standing: Tensor | None  # (B,) tokens that stand after the step, if a plan says so
    # (B, W) bool: which columns stay, as they hold no token of the answer; None where no
    # token is taken back or written behind an end
    fixed: Tensor | None
    blocks: BlocksInWork | None = None  # where the window spans several


class Reasons(NamedTuple):
    """Why a step made that of a block, of B rows."""

    masked: Tensor  # (B, W) bool: before it
    proposal: Tensor  # (B, W) tokens; where nothing was proposed, the one that stands there
    score: Tensor  # (B, W) fp32; inf where a token is pinned
    replaced: Tensor  # (B, W) bool: visible, and replaced by the proposal


class Decision(NamedTuple):
    """What a step makes of a block, of B rows."""

    tokens: Tensor  # (B, W) after it
    reasons: Reasons | None  # where they are asked for


@dataclass(frozen=True)
class Decide:
    """How steps of a kind decide.

    at_least: tokens that an adaptive rule keeps. last: no forward is left. opens: is it the
    first token alone that the step keeps? explains: are reasons asked for?
    """

    config: SamplerConfig
    special: SpecialTokens
    at_least: int = 1
    last: bool = False
    opens: bool = False
    explains: bool = True

    @property
    def waits(self) -> bool:
        """Does the host look at values, so that no graph can be made of it?"""
        return self.config.max_dependence is not None

    def __call__(self, prediction: Prediction, before: Before, num_columns: int) -> Decision:
        """What a step makes of a block.

        num_columns: how many of a row are judged, at least all that the step needs. Of others
        that are judged as well nothing comes.
        """
        config, block, fixed = self.config, before.block, before.fixed
        masked = block.tokens == self.special.mask  # (B, W)
        judged = to_judge(masked, config, before.blocks)  # (B, W)
        columns = masked_first(judged)[:, :num_columns]  # (B, M)
        proposal, score, dependent = proposals_at(prediction, columns, block, config, self.special)
        if before.blocks is not None:  # others fill up the columns of rows with fewer to judge
            proposal = torch.where(judged, proposal, block.tokens)
            score = score.masked_fill(~judged, INF)
        if self.opens:
            score[:, 0] = INF
        if fixed is not None:
            score = score.masked_fill(fixed, INF)
        eligible = next_to_unmask(masked & judged, config) if config.adaptive else masked
        standing = keep(
            score,
            masked,
            eligible,
            before.standing,
            self.last,
            config,
            at_least=self.at_least,
            dependent=dependent,
            blocks=before.blocks,
        )
        replaced = torch.zeros_like(masked)
        if fixed is not None:
            standing = standing | fixed
        if config.edits:
            assert fixed is not None
            replaced = edited(proposal, score, block.tokens, masked | fixed, config)
            proposal = torch.where(masked | replaced, proposal, block.tokens)
        tokens = torch.where(standing, proposal, self.special.mask)
        if config.fills_after_end:
            assert fixed is not None and self.special.eos is not None  # check_special_tokens
            after = after_end(tokens, fixed, self.special)
            replaced = replaced | (after & ~masked & (tokens != self.special.eos))
            tokens = tokens.masked_fill(after, self.special.eos)
            proposal = proposal.masked_fill(after, self.special.eos)
        reasons = Reasons(masked, proposal, score, replaced)
        return Decision(tokens, reasons if self.explains else None)


def after_end(tokens: Tensor, fixed: Tensor, special: SpecialTokens) -> Tensor:
    """Which columns of the answer stand after its first EOS or EoT, (B, W) bool.

    fixed: (B, W) bool, columns without a token of the answer.
    """
    is_end = (ends_in(tokens, special) & ~fixed).long()
    return (is_end.cumsum(-1) > is_end) & ~fixed


def ends_in(tokens: Tensor, special: SpecialTokens) -> Tensor:
    """Which tokens are EOS or EoT, bool of their shape."""
    is_end = torch.zeros_like(tokens, dtype=torch.bool)
    for token in special.ends:
        is_end |= tokens == token
    return is_end


def edited(
    proposal: Tensor,
    score: Tensor,
    block: Tensor,
    spared: Tensor,
    config: SamplerConfig,
) -> Tensor:
    """Which tokens of the block (B, W) a step replaces by their proposals, bool.

    So does LLaDA2.1: by other tokens that are more probable than edit_threshold. spared:
    (B, W) bool, masks and what is not of the answer.
    """
    assert config.edit_threshold is not None  # config.edits
    return (proposal != block) & (score > config.edit_threshold) & ~spared
