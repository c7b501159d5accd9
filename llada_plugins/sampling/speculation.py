"""Tokens drafted beyond what a step keeps, which the rows of the next forward verify.

A step keeps what its rule passes. Beside that, in further rows of the next forward, stand
drafts: each has one token more than the row that it goes on from, at the best position that
is left. In that row the forward, which the next step needs anyway, says whether the rule
would have kept the token. So one forward keeps what the rule would have kept in several, one
token after another, and tokens that contradict each other never meet.

Where a rule keeps one token because it must, others are often as likely: other positions, or
other tokens of an answer that may have several. draft_odds lets a draft of these stand too.

The model drafts for itself, and a tree of drafts is verified at once, as in self speculative
decoding (SSD, arXiv 2510.04147) and FreeDave (arXiv 2510.00294).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from llada_plugins.diffusion.denoiser import Prediction, embeddable
from llada_plugins.diffusion.guidance import without
from llada_plugins.models.special_tokens import SpecialTokens

from .config import SamplerConfig
from .decision import Decide, Reasons, ends_in
from .step import Step
from .work import RowsInWork

INF = float("inf")
# a draft is worth a row if its tokens together are so probable, each judged without the others
LEAST = 0.05


class Choices(NamedTuple):
    """What may be drafted for B rows: T tokens at each of K columns, the best column first."""

    columns: Tensor  # (B, K)
    tokens: Tensor  # (B, K, T)
    probability: Tensor  # (B, K, T); 0 where a column is not masked


class Tree(NamedTuple):
    """N nodes: those of an answer side by side, parents before children.

    An answer's first node, its root, is what the step keeps. Every other one is its parent
    with one token more.
    """

    answer: Tensor  # (N,) ascending
    parent: Tensor  # (N,) its place in the tree; of a root its own
    depth: Tensor  # (N,) tokens that it has beyond its root
    column: Tensor  # (N,) where the last of them stands; of a root 0
    tokens: Tensor  # (N, W) of the block
    row: Tensor  # (N,) place of its row in the next forward; full ones have none: -1

    @property
    def token(self) -> Tensor:
        """Each node's last drafted token, (N,)."""
        return self.tokens.gather(1, self.column[:, None])[:, 0]


class _Nodes(NamedTuple):
    """C nodes of each of B answers, all with as many drafted tokens."""

    tokens: Tensor  # (B, C, W)
    probability: Tensor  # (B, C) of the drafted tokens together
    parent: Tensor  # (B, C) place among all nodes of the answer
    column: Tensor  # (B, C)
    depth: Tensor  # (B, C)


def choices_of(
    prediction: Prediction, score: Tensor, masked: Tensor, size: int, mask: int
) -> Choices:
    """The likeliest tokens at the best positions that are left in B rows.

    score: (B, W). masked: (B, W) bool, after the step. size: nodes of an answer, at most.
    mask: the token's id.
    """
    order = score.masked_fill(~masked, -INF).argsort(dim=-1, descending=True, stable=True)
    columns = order[:, : size - 1]  # (B, K)
    logits = prediction.logits_at(columns).float()  # (B, K, V)
    number = min(size - 1, logits.shape[-1])
    likeliest = without(logits, [mask]).topk(number, dim=-1)
    probability = (likeliest.values - logits.logsumexp(-1, keepdim=True)).exp()
    probability = probability.masked_fill(~masked.gather(1, columns)[..., None], 0.0)
    return Choices(columns, likeliest.indices, probability)


def grow(stem: Tensor, choices: Choices, size: int, mask: int) -> Tree:
    """The likeliest drafts that go on from each stem (B, W), at most `size` nodes an answer.

    A draft fills the best columns from the first on. Answers without masks have no node.
    mask: the token's id.
    """
    nothing = choices.columns.new_zeros(len(stem), 1)
    certain = choices.probability.new_ones(len(stem), 1)
    levels = [_Nodes(stem[:, None], certain, nothing, nothing, nothing)]
    first = 0  # place of the last level's first node
    for number in range(choices.columns.shape[1]):
        parents = levels[-1]
        levels.append(_children(parents, choices, number, first, size))
        first += parents.parent.shape[1]
    nodes = _Nodes(*(torch.cat(each, 1) for each in zip(*levels)))
    # a child is never likelier than its parent, which stands before it
    rank = nodes.probability.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    chosen = (rank < size) & (nodes.probability >= LEAST)
    chosen &= (stem == mask).any(-1, keepdim=True)
    answer, place = chosen.nonzero().unbind(-1)  # waits for the device
    in_tree = (chosen.flatten().cumsum(0) - 1).view_as(chosen)
    tokens = nodes.tokens[answer, place]
    runs = (tokens == mask).any(-1)
    return Tree(
        answer,
        in_tree[answer, nodes.parent[answer, place]],
        nodes.depth[answer, place],
        nodes.column[answer, place],
        tokens,
        torch.where(runs, runs.cumsum(0) - 1, -1),
    )


def _children(parents: _Nodes, choices: Choices, number: int, first: int, size: int) -> _Nodes:
    """The likeliest nodes with one token more, at the column of this number.

    first: place of the first parent among all nodes of its answer.
    """
    probability = parents.probability[..., None] * choices.probability[:, number, None]
    num_tokens = probability.shape[-1]
    best = probability.flatten(1).topk(min(size - 1, probability[0].numel()), dim=-1)
    parent = best.indices // num_tokens  # (B, C)
    token = choices.tokens[:, number].gather(1, best.indices % num_tokens)
    tokens = parents.tokens.gather(1, parent[..., None].expand(-1, -1, parents.tokens.shape[-1]))
    column = choices.columns[:, number, None].expand_as(parent)
    tokens = tokens.scatter(2, column[..., None], token[..., None])
    depth = torch.full_like(parent, number + 1)
    return _Nodes(tokens, best.values, parent + first, column, depth)


class Verdict(NamedTuple):
    """What a forward of a tree's rows says of its N nodes."""

    passes: Tensor  # (N,) bool: would its last token have been kept in its parent's row?
    score: Tensor  # (N,) of that token there


def judge(
    tree: Tree, after: Tensor, proposal: Tensor, score: Tensor, threshold: float | None
) -> Verdict:
    """Judge each node's last token by its parent's row.

    after, proposal, score: (R, W) of the R rows, what the rule makes of them and why.
    threshold: a token of at least this score passes too, if it is the proposal.
    """
    row = tree.row[tree.parent]
    token, column = tree.token, tree.column
    passes = after[row, column] == token
    own = score[row, column]
    if threshold is not None:
        passes |= (proposal[row, column] == token) & (own >= threshold)
    return Verdict(passes, own)


def as_likely(tree: Tree, prediction: Prediction, reasons: Reasons, share: float) -> Verdict:
    """Judge each node's last token by its odds in its parent's row.

    It passes if p / (1 - p) is at least that share of the odds of the row's best proposal.
    prediction, reasons: of the R rows, whose scores are probabilities.
    """
    row = tree.row[tree.parent]
    logits = prediction.logits_at(tree.column, rows=row).float()  # (N, V)
    of_token = logits.gather(1, embeddable(tree.token)[:, None])[:, 0]
    own = (of_token - logits.logsumexp(-1)).exp()
    best = reasons.score.masked_fill(~reasons.masked, -INF).amax(-1)[row]
    # the odds, multiplied out: a probability may be 1
    return Verdict(own * (1 - best) >= share * best * (1 - own), own)


class Longest(NamedTuple):
    """The drafts that stand of B answers, and the M nodes with the tokens that they add."""

    ends: Tensor  # (B,) nodes
    drafted: Tensor  # (M,) nodes on the way from a root to its end, without roots
    answer: Tensor  # (M,) place of each among the B


def longest(tree: Tree, passes: Tensor, size: int) -> Longest:
    """Of each answer the longest draft of which every token passes, of such the likeliest.

    passes: (N,) bool.
    """
    is_root = tree.depth == 0
    stands = is_root
    for depth in range(1, size):
        stands = stands | ((tree.depth == depth) & passes & stands[tree.parent])
    roots = is_root.nonzero()[:, 0]  # waits for the device
    answer = is_root.cumsum(0) - 1
    # in an answer, nodes of one depth come by descending probability
    from_end = torch.arange(len(stands), device=stands.device).flip(0)
    order = torch.where(stands, tree.depth * len(stands) + from_end, -1)
    best = torch.full_like(roots, -1).scatter_reduce(0, answer, order, "amax")
    ends = len(stands) - 1 - best % len(stands)
    on_way, node = torch.zeros_like(stands), ends
    for _ in range(size):
        on_way[node] = True
        node = tree.parent[node]
    drafted = (on_way & ~is_root).nonzero()[:, 0]  # waits for the device
    return Longest(ends, drafted, answer[drafted])


class Speculating:
    """Steps whose further rows draft tokens that the next forward verifies.

    num_branches: (B,) of all rows, to which further rows in a forward are added. on_step sees
    a drafted token as kept by the step that verified it.
    """

    def __init__(
        self,
        config: SamplerConfig,
        special: SpecialTokens,
        on_step: Callable[[Step], None] | None,
        num_branches: Tensor,
    ) -> None:
        assert config.draft_rows is not None
        self.special, self.on_step, self.num_branches = special, on_step, num_branches
        self.size = config.draft_rows
        self.draft_threshold, self.draft_odds = config.draft_threshold, config.draft_odds
        # the rule by itself
        self.config = replace(config, draft_rows=None, draft_threshold=None, draft_odds=None)
        self._tree: Tree | None = None  # whose rows are in work

    def take_step(
        self, prediction: Prediction, work: RowsInWork, number: int, num_columns: int, *, last: bool
    ) -> RowsInWork:
        """Take the drafts that a forward of the rows in work verifies, keep, and draft.

        number: of the step. num_columns: of the block that are judged, at most. last: no
        forward is left.
        """
        further = work.rows_of_each(len(self.num_branches)) - 1
        self.num_branches.add_(further.clamp_min(0))  # of rows that are done none
        before = work.before(number, self.config)
        tokens, reasons = Decide(self.config, self.special, last=last)(
            prediction, before, num_columns
        )
        assert reasons is not None
        if self._tree is not None:
            verified = self._verified(self._tree, prediction, work, tokens, reasons)
            work, tokens, reasons, rows = verified
            prediction = prediction.of_rows(rows)
        work.block.copy_(tokens)
        if self.on_step is not None:
            policy, mask = prediction.confidence, self.special.mask
            self.on_step(work.as_step(number, policy, reasons, tokens, mask))
        return work if last else self._drafted(prediction, work, reasons)

    def _judged(
        self, tree: Tree, prediction: Prediction, tokens: Tensor, reasons: Reasons
    ) -> Verdict:
        """Which nodes' last tokens pass; prediction, tokens, reasons: of all rows in work."""
        verdict = judge(tree, tokens, reasons.proposal, reasons.score, self.draft_threshold)
        if self.draft_odds is None:
            return verdict
        likely = as_likely(tree, prediction, reasons, self.draft_odds)
        if self.config.confidence_eos_eot_inf:  # such a token comes last, however likely
            is_end = ends_in(tree.token, self.special)
            likely = likely._replace(passes=likely.passes & ~is_end)
        score = torch.where(verdict.passes, verdict.score, likely.score)
        return Verdict(verdict.passes | likely.passes, score)

    def _verified(
        self,
        tree: Tree,
        prediction: Prediction,
        work: RowsInWork,
        tokens: Tensor,
        reasons: Reasons,
    ) -> tuple[RowsInWork, Tensor, Reasons, Tensor]:
        """One row of each answer, from its longest verified draft; and which rows these are.

        prediction, tokens, reasons: of all rows in work.
        """
        verdict = self._judged(tree, prediction, tokens, reasons)
        found = longest(tree, verdict.passes, self.size)
        chosen = found.ends
        full = tree.row[chosen] < 0
        rows = torch.where(full, tree.row[tree.parent[chosen]], tree.row[chosen])
        after = torch.where(full[:, None], tree.tokens[chosen], tokens[rows])
        roots = tree.tokens[tree.depth == 0]
        score = reasons.score[rows]
        score[found.answer, tree.column[found.drafted]] = verdict.score[found.drafted]
        mask = self.special.mask
        proposal = torch.where(after == mask, reasons.proposal[rows], after)
        told = Reasons(roots == mask, proposal, score, torch.zeros_like(roots, dtype=torch.bool))
        return work.keep_rows(rows), after, told, rows

    def _drafted(self, prediction: Prediction, work: RowsInWork, reasons: Reasons) -> RowsInWork:
        """The rows in work, of which each that has masks comes with its drafts."""
        mask = self.special.mask
        masked = work.block == mask
        choices = choices_of(prediction, reasons.score, masked, self.size, mask)
        tree = self._tree = grow(work.block, choices, self.size, mask)
        runs = tree.row >= 0
        done = (~masked.any(-1)).nonzero()[:, 0]  # waits for the device
        # answers that are done leave before the next forward, and the others keep their order
        places = torch.cat([tree.answer[runs], done])
        tokens = torch.cat([tree.tokens[runs], work.block[done]])
        work = work.keep_rows(places)
        work.block.copy_(tokens)
        return work

    def tell(self) -> None:
        """Every step has been shown."""
