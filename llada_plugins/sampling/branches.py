"""Several sets of tokens for one step, of which the next forward chooses.

A step keeps what its rule passes, and beside it, in further rows of the next forward, what
others pass: lower thresholds with max_dependence. That forward, which the next step needs
anyway, says which row it is surest of, and a policy stream what it thinks of the tokens
just kept. The best row goes on; the others are dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from llada_plugins.diffusion.denoiser import Prediction, masked_first
from llada_plugins.models.special_tokens import SpecialTokens

from .config import SamplerConfig
from .decision import Decide, Decision, Reasons
from .propose import ActiveBlock, proposals_at
from .step import Step
from .work import RowsInWork

# a branch that fills its block is taken at once if all that it kept are so probable
SURE = 0.9


def configs_of(config: SamplerConfig) -> list[SamplerConfig]:
    """The rule of the step itself, then those of its branches; none of them branches."""
    plain = replace(config, branches=None)
    found = [plain]
    for threshold, dependence in config.branch_rules:
        certain = config.threshold
        found.append(
            replace(plain, threshold=threshold, max_dependence=dependence, certain_above=certain)
        )
    return found


class Judged(NamedTuple):
    """N branches, and what a forward of them says."""

    prediction: Prediction
    block: ActiveBlock
    kept: Tensor  # (N, W) bool: tokens that the last step kept
    numbers: Tensor  # (N,) of the row that each is of, ascending


def surest(branches: Judged, config: SamplerConfig, special: SpecialTokens) -> Tensor:
    """The place of each row's best branch among N, (B,), of rows in their order.

    A branch's score is the mean log probability of the best token over its masks and, with
    a policy stream, the mean log sigmoid(h) over the tokens just kept. config: its scores are
    probabilities, of end tokens as well.
    """
    prediction, block, kept, numbers = branches
    masked = block.tokens == special.mask  # (N, W)
    columns = masked_first(masked)
    probability = proposals_at(prediction, columns, block, config, special).score
    score = _mean(probability.log(), masked)
    if prediction.confidence is not None:
        score = score + _mean(logsigmoid(prediction.confidence.float()), kept)
    order = score.argsort(descending=True, stable=True)
    order = order[numbers[order].argsort(stable=True)]  # by row, each row's best first
    of_row = numbers[order]
    return order[of_row.diff(prepend=of_row[:1] - 1) != 0]


def remembering(prediction: Prediction, block: Tensor) -> Prediction:
    """The same of a block (B, W), whose logits are computed once for all rules."""
    columns = torch.arange(block.shape[1], device=block.device).expand_as(block)
    known = Prediction.from_logits(prediction.logits_at(columns))
    return prediction._replace(logits_at=known.logits_at)


def _mean(values: Tensor, chosen: Tensor) -> Tensor:
    """Mean of the chosen values (N, W) of each row; 0 where none are."""
    total = torch.where(chosen, values, 0.0).sum(-1)
    return total / chosen.sum(-1).clamp_min(1)


class Spread(NamedTuple):
    """The N branches that go on from B rows."""

    places: Tensor  # (N,) rows that they are of, ascending
    tokens: Tensor  # (N, W) of their blocks
    kept: Tensor  # (N, W) bool: what they keep that was masked
    ended: Tensor  # (N,) bool: has no masks; then it is its row's only one


def spread(decisions: list[Decision], mask: int) -> Spread:
    """The different branches of each row, from what each rule decides for B rows.

    decisions: the step's own rule first. A branch that fills its block ends the row, if the
    step's rule made it or it is SURE; else it is dropped.
    """
    tokens = torch.stack([each.tokens for each in decisions], 1)  # (B, K, W)
    masked = tokens == mask
    reasons = decisions[0].reasons
    assert reasons is not None
    kept = reasons.masked[:, None] & ~masked
    ended = ~masked.any(-1)  # (B, K)
    least = reasons.score[:, None].masked_fill(~kept, torch.inf).amin(-1)
    accepted = ended & (least >= SURE)
    accepted[:, 0] = ended[:, 0]
    first = accepted & (accepted.cumsum(-1) == 1)
    number = tokens.shape[1]
    earlier = torch.ones(number, number, dtype=torch.bool, device=tokens.device).tril(-1)
    same = (tokens[:, :, None] == tokens[:, None]).all(-1)  # (B, K, K)
    open_ones = ~ended & ~(same & earlier).any(-1)
    live = torch.where(accepted.any(-1, keepdim=True), first, open_ones)
    places, which = live.nonzero().unbind(-1)  # waits for the device
    return Spread(places, tokens[places, which], kept[places, which], ended[places, which])


class Branching:
    """Steps of which several sets of tokens go on, as rows of the next forward.

    on_step sees a step once the choice among its branches is known. num_branches: (B,) of
    all rows, to which further rows in a forward are added.
    """

    def __init__(
        self,
        config: SamplerConfig,
        special: SpecialTokens,
        on_step: Callable[[Step], None] | None,
        num_branches: Tensor,
    ) -> None:
        self.special, self.on_step, self.num_branches = special, on_step, num_branches
        self.rules = configs_of(config)
        # how probable a token is, and not when it may be kept
        self.judging = replace(self.rules[0], confidence_eos_eot_inf=False)
        self._untold: Step | None = None  # the last step, of all branches
        self._ended: Tensor | None = None  # (N,) bool: which of them have no masks

    def take_step(
        self, prediction: Prediction, work: RowsInWork, number: int, num_columns: int, *, last: bool
    ) -> RowsInWork:
        """Choose among the branches in work by a forward of them, and branch.

        number: of the step. num_columns: of the block that are judged, at most. last: no
        forward is left.
        """
        plain = self.rules[0]
        further = work.rows_of_each(len(self.num_branches)) - 1
        self.num_branches.add_(further.clamp_min(0))  # of rows that are done none
        if number > 0:
            assert work.kept is not None
            judged = Judged(prediction, work.before(number, plain).block, work.kept, work.numbers)
            places = surest(judged, self.judging, self.special)
            self.tell(places)
            work, prediction = work.keep_rows(places), prediction.of_rows(places)
        prediction = remembering(prediction, work.block)
        before = work.before(number, plain)
        rules = [plain] if last else self.rules
        decisions = [
            Decide(rule, self.special, last=last)(prediction, before, num_columns) for rule in rules
        ]
        found = spread(decisions, self.special.mask)
        work = work.keep_rows(found.places)._replace(kept=found.kept)
        work.block.copy_(found.tokens)
        if self.on_step is not None:
            self._show_later(number, work, prediction.confidence, decisions[0].reasons, found)
        return work

    def _show_later(
        self,
        number: int,
        work: RowsInWork,
        policy: Tensor | None,
        reasons: Reasons | None,
        found: Spread,
    ) -> None:
        assert reasons is not None
        of_branches = Reasons(*(each[found.places] for each in reasons))
        own_policy = None if policy is None else policy[found.places]
        mask = self.special.mask
        self._untold = work.as_step(number, own_policy, of_branches, found.tokens, mask)
        self._ended = found.ended

    def tell(self, places: Tensor | None = None) -> None:
        """Show the last step: its ended branches, and those at these places of the others."""
        if self.on_step is None or self._untold is None or self._ended is None:
            return
        shown = self._ended.nonzero()[:, 0]
        if places is not None:
            others = (~self._ended).nonzero()[:, 0]
            shown = torch.cat([shown, others[places]]).sort().values
        self.on_step(self._untold.keep_rows(shown))
