"""Reviews: fill a block several times, keep what a scorer likes best, mask again what it does not.

The three samplers of LLaDA-R3 as settings of one loop over closed blocks: `vanilla`
(candidates for every block), `backmask` (and finished blocks are masked and refilled),
`window` (every K blocks are, together). A scorer is any function from answers to one
score per block; this file knows neither text nor process reward models. See
docs/reproduce.md for what R3's code does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from llada_plugins.diffusion.random_streams import request_key, uniform
from llada_plugins.sampling.config import SamplerConfig
from llada_plugins.sampling.draft import Draft, Filled

from .review_config import SAMPLED, Metric, ReviewConfig

# of an answer's blocks, 0-1, higher is better; None where a block holds nothing to judge
Scores: TypeAlias = Sequence[float | None]
# which prompts, their answers so far -> scores
Scorer: TypeAlias = Callable[[Sequence[int], Sequence[Sequence[int]]], Sequence[Scores]]


def summary(scores: Scores, metric: Metric) -> float:
    """One number for an answer from its blocks' scores; -inf where there is nothing to judge."""
    judged = [score for score in scores if score is not None]
    if not judged:
        return -math.inf
    return {
        "mean": sum(judged) / len(judged),
        "product": math.prod(judged),
        "min_score": min(judged),
        "last": judged[-1],
    }[metric]


def masked_shares(scores: Sequence[float], config: ReviewConfig) -> list[float]:
    """The share of each block to mask again, 0-1.

    legacy: exp(-alpha s), min-max scaled to [0.01, 1], so the worst block's is the
    intensity whatever it scores; window: relative to the worst block.
    """
    badness = [max(math.exp(-config.backmasking_alpha * score), 0.01) for score in scores]
    low, high = min(badness), max(badness)
    if not config.replaces:
        scaled = [value / high for value in badness]
    elif high > low:
        # so written, the highest gives exactly 1: a token more or less would hang on rounding
        scaled = [0.01 + 0.99 * ((value - low) / (high - low)) for value in badness]
    else:
        # equal scores: R3 divides by nearly zero; their own probabilities say how bad
        # all of them are
        scaled = badness
    return [value * config.backmasking_intensity for value in scaled]


@dataclass(frozen=True)
class _Progress:
    """What a block has come to, by row of its draft; lists and tensors are written to."""

    draft: Draft
    scores: list[Scores]  # of the rows as they stand in draft.tokens; [] where they were not scored
    forwards: Tensor  # (B,) spent on this block
    num_scored: list[int]  # (B,) answers scored for this block
    num_revised: list[int]  # (B,) tokens masked again, in all refills

    @classmethod
    def of(cls, draft: Draft) -> _Progress:
        """Nothing done yet."""
        size = len(draft.rows)
        return cls(
            draft, [[] for _ in range(size)], torch.zeros_like(draft.rows), [0] * size, [0] * size
        )

    def forwards_so_far(self, row: int) -> int:
        """Forwards of a row, earlier blocks included."""
        return int(self.draft.forwards[row]) + int(self.forwards[row])

    def scored_so_far(self, row: int) -> int:
        """Scored answers of a row, for earlier blocks as well."""
        return int(self.draft.num_scored[row]) + self.num_scored[row]

    def keep(self, copy: _Copy) -> None:
        """Put a copy in the place of its row."""
        self.scores[copy.owner] = copy.scores
        self.draft.tokens[copy.owner] = copy.tokens


class _Copies(NamedTuple):
    """N copies of rows, to be filled each with its own random stream."""

    owners: list[int]  # rows of the draft
    streams: list[tuple[int, int, int]]  # block, attempt (0 for candidates) and number of the copy


class _Copy(NamedTuple):
    """A copy that was filled and scored."""

    owner: int
    scores: Scores
    tokens: Tensor  # (L,)


class BlockReview:
    """A Review that tries `config` with the help of a scorer, for prompts of one decode call."""

    def __init__(
        self, config: ReviewConfig, sampler: SamplerConfig, score: Scorer, mask_id: int
    ) -> None:
        self.config, self.sampler, self.score, self.mask_id = config, sampler, score, mask_id
        temperature = config.candidate_temperature or sampler.temperature or SAMPLED
        self.alternative = replace(sampler, temperature=temperature)
        # forwards that fill a block, at most
        self.block_cost = sampler.steps_per_block
        if sampler.adaptive:
            self.block_cost = sampler.forwards_per_block

    def __call__(self, draft: Draft) -> Filled:
        progress = _Progress.of(draft)
        self._choose_candidates(progress)
        due = self._rows_to_look_back(draft)
        for attempt in range(1, self.config.rounds + 1):
            self._score_missing(progress, due)
            due = self._refill(progress, due, attempt)
            if not due:
                break
        counts = torch.tensor([progress.num_scored, progress.num_revised], device=draft.rows.device)
        return Filled(progress.forwards, *counts)

    def _rows_to_look_back(self, draft: Draft) -> list[int]:
        """All rows, every `frequency` blocks and after the last; else those that have ended."""
        rows = range(len(draft.rows))
        if (draft.number + 1) % self.config.frequency == 0:
            return list(rows)
        answers = self._answers(draft, draft.tokens, rows)
        return [
            row
            for row, answer in enumerate(answers)
            if draft.number == draft.num_blocks[row] - 1 or draft.ended(answer)
        ]

    def _choose_candidates(self, progress: _Progress) -> None:
        """Fill the block, several times where the budgets allow; every row keeps the best."""
        draft = progress.draft
        block = range(draft.number, draft.number + 1)
        copies = self._further_candidates(progress)
        blank = draft.tokens.clone()
        progress.forwards.add_(draft.fill(draft.tokens, draft.rows, draft.keys, block))
        if not copies.owners:
            return
        tokens = self._fill_copies(progress, blank, copies, block)
        self._score_missing(progress, sorted(set(copies.owners)))
        for copy in self._scored_copies(progress, tokens, copies.owners):
            if summary(copy.scores, "last") > summary(progress.scores[copy.owner], "last"):
                progress.keep(copy)

    def _further_candidates(self, progress: _Progress) -> _Copies:
        """What is tried of this block beside the plain fill."""
        copies = _Copies([], [])
        for row in range(len(progress.draft.rows)):
            num_candidates = self._affordable(
                progress, row, self.config.candidates, self.block_cost
            )
            for number in range(1, num_candidates):
                copies.owners.append(row)
                copies.streams.append((progress.draft.number, 0, number))
        return copies

    def _refill(self, progress: _Progress, due: Sequence[int], attempt: int) -> list[int]:
        """Mask low blocks again and fill them; returns the rows that deserve another attempt."""
        draft = progress.draft
        blocks = range(max(0, draft.number + 1 - self.config.lookback), draft.number + 1)
        blank = draft.tokens.clone()
        copies = _Copies([], [])
        for row in due:
            masked = self._positions_to_mask(progress, row, blocks, attempt)
            if not masked:
                continue
            cost = self._refill_cost(masked, len(blocks))
            num_refills = self._affordable(progress, row, self.config.refills, cost)
            if num_refills:
                blank[row, [draft.start + position for position in masked]] = self.mask_id
                progress.num_revised[row] += num_refills * len(masked)
            for number in range(1, num_refills + 1):
                copies.owners.append(row)
                copies.streams.append((draft.number, attempt, number))
        if not copies.owners:
            return []
        tokens = self._fill_copies(progress, blank, copies, blocks)
        return self._keep_best(progress, self._scored_copies(progress, tokens, copies.owners))

    def _keep_best(self, progress: _Progress, copies: Sequence[_Copy]) -> list[int]:
        """Of every row's refills take the best, unless the row as it stood is better.

        Returns the rows that had any.
        """

        def value(scores: Scores) -> float:
            return summary(scores, self.config.metric)

        best: dict[int, _Copy] = {}
        for copy in copies:
            if copy.owner not in best or value(copy.scores) > value(best[copy.owner].scores):
                best[copy.owner] = copy
        for row, copy in best.items():
            if self.config.replaces or value(copy.scores) >= value(progress.scores[row]):
                progress.keep(copy)
        return list(best)

    def _positions_to_mask(
        self, progress: _Progress, row: int, blocks: range, attempt: int
    ) -> list[int]:
        """Places from block 0 on to mask again: none where no judged one of the blocks is low."""
        draft, config, width = progress.draft, self.config, self.sampler.block
        judged = {
            number: score
            for number, score in enumerate(progress.scores[row])
            if number >= blocks.start and score is not None
        }
        low = [number for number, score in judged.items() if score < config.threshold]
        # R3's own rule waits until there are as many blocks as it looks back on
        too_early = config.replaces and draft.number + 1 < config.lookback
        if not low or too_early:
            return []
        if config.random_positions:
            masked = self._random_positions(draft.keys[row], judged, attempt)
        else:
            blocks_to_mask = [range(number * width, (number + 1) * width) for number in low]
            masked = [place for block in blocks_to_mask for place in block]
        return [place for place in masked if place in draft.in_answer[row]]

    def _random_positions(
        self, key: Tensor, judged: Mapping[int, float], attempt: int
    ) -> list[int]:
        """Of each judged block a share of its positions, drawn by the row's key.

        judged: scores by the number of the block.
        """
        width = self.sampler.block
        position = torch.arange(width, device=key.device)
        masked = []
        for number, share in zip(judged, masked_shares(list(judged.values()), self.config)):
            # the attempt is negative, since steps are not: no random number is used twice
            order = uniform(key, number, -attempt, position).argsort().tolist()
            chosen = sorted(order[: int(width * share)])
            masked += [number * width + place for place in chosen]
        return masked

    def _fill_copies(
        self, progress: _Progress, blank: Tensor, copies: _Copies, blocks: range
    ) -> Tensor:
        """Copies (N, L) of the owners' rows of `blank`, their masked tokens of `blocks` filled."""
        draft = progress.draft
        owner = torch.tensor(copies.owners, device=blank.device)
        tokens, rows = blank[owner], draft.rows[owner]
        own = draft.keys.tolist()
        streams = [request_key(own[row], stream) for row, stream in zip(*copies)]
        keys = torch.tensor(streams, device=blank.device)
        if len(blocks) > 1 and self.config.together:
            steps = self._steps_together(len(blocks))
            spent = draft.fill(tokens, rows, keys, blocks, self.alternative, steps)
            progress.forwards.index_add_(0, owner, spent)
            return tokens
        for number in blocks:
            column = draft.start + number * self.sampler.block
            is_masked = tokens[:, column : column + self.sampler.block] == self.mask_id
            needy = is_masked.any(-1).nonzero()[:, 0]  # copies with something to fill there
            if not len(needy):
                continue
            block = range(number, number + 1)
            filled = tokens[needy]
            spent = draft.fill(filled, rows[needy], keys[needy], block, self.alternative)
            tokens[needy] = filled
            progress.forwards.index_add_(0, owner[needy], spent)
        return tokens

    def _steps_together(self, num_blocks: int) -> int:
        """Steps that fill blocks together, never more than the answer's."""
        steps = self.sampler.steps_per_block
        if self.config.steps_of_one_block:
            return steps
        return min(steps * num_blocks, steps * self.sampler.num_blocks)

    def _refill_cost(self, masked: Sequence[int], num_blocks: int) -> int:
        """Forwards, at most, that filling these answer positions takes."""
        if not self.config.together or num_blocks == 1:
            touched = {position // self.sampler.block for position in masked}
            return len(touched) * self.block_cost
        if self.sampler.adaptive:
            return num_blocks * self.block_cost
        return self._steps_together(num_blocks)

    def _affordable(self, progress: _Progress, row: int, wanted: int, cost: int) -> int:
        """How many copies the budgets allow, at `cost` forwards and one scoring each.

        Forwards that later blocks may need are set aside.
        """
        if self.sampler.max_forwards is not None:
            num_later = progress.draft.num_blocks[row] - progress.draft.number - 1
            later = num_later * self.block_cost
            left = self.sampler.max_forwards - progress.forwards_so_far(row) - later
            wanted = min(wanted, left // cost)
        if self.config.max_prm_calls is not None:
            wanted = min(wanted, self.config.max_prm_calls - progress.scored_so_far(row))
        return max(wanted, 0)

    def _score_missing(self, progress: _Progress, rows: Sequence[int]) -> None:
        """Score rows as they stand, where that is not known and the budget allows."""
        budget = self.config.max_prm_calls
        missing = [
            row
            for row in rows
            if not progress.scores[row] and (budget is None or progress.scored_so_far(row) < budget)
        ]
        if missing:
            tokens = progress.draft.tokens[missing]
            for copy in self._scored_copies(progress, tokens, missing):
                progress.scores[copy.owner] = copy.scores

    def _scored_copies(
        self, progress: _Progress, tokens: Tensor, owners: Sequence[int]
    ) -> list[_Copy]:
        prompts = [int(progress.draft.rows[row]) for row in owners]
        scores = self.score(prompts, self._answers(progress.draft, tokens, owners))
        for row, each in zip(owners, scores):
            if any(score is not None for score in each):
                progress.num_scored[row] += 1
        return [_Copy(*copy) for copy in zip(owners, scores, tokens)]

    def _answers(self, draft: Draft, tokens: Tensor, owners: Sequence[int]) -> list[list[int]]:
        """The answers in tokens (N, L) as far as they are filled; owners: rows of the draft."""
        end = (draft.number + 1) * self.sampler.block
        answers = []
        for owner, row in zip(owners, tokens[:, draft.start :].tolist()):
            places = draft.in_answer[owner]
            # what is cut off in the end is not judged
            stop = min(end, places.stop, places.start + self.sampler.gen_length)
            answers.append(row[places.start : stop])
        return answers
