"""Reviews: fill a block several times and keep what a scorer likes best; mask earlier
blocks again that it does not like.

The three samplers of LLaDA-R3 as settings of one loop over closed blocks: `vanilla`
(candidates for every block), `backmask` (and blocks behind are masked and refilled),
`window` (every K blocks are, together). A scorer is any function from answers to one
score per block; this file knows neither text nor process reward models. See
docs/reproduce.md for what R3's code does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from llada_plugins.diffusion.random_streams import request_key, uniform
from llada_plugins.options.fields import arg
from llada_plugins.sampling.config import SamplerConfig
from llada_plugins.sampling.sampler import Draft, Filled

# of an answer's blocks, 0-1, higher is better; None where a block holds nothing to
# judge
Scores = list[float | None]
# which prompts, their answers so far -> scores
Scorer = Callable[[Sequence[int], Sequence[Sequence[int]]], list[Scores]]

# temperature of alternatives where the sampler itself is greedy: equal candidates are
# no choice
SAMPLED = 0.7


@dataclass(frozen=True, kw_only=True)
class ReviewConfig:
    """How much is tried, and what is masked again. Names and defaults are LLaDA-R3's
    where it has them.
    """

    method: Literal["vanilla", "backmask", "window"] = arg(
        "backmask",
        "vanilla: the best of several candidates for every block; backmask: finished blocks that "
        "score low are masked and filled again; window: every backmasking_frequency blocks, all "
        "of them are refined together",
    )
    backmasking_rule: Literal["only_low", "legacy"] = arg(
        "only_low",
        "only_low: blocks below the threshold, and only a result that scores no less is taken; "
        "legacy: R3's random positions of all finished blocks by min-max probabilities, and the "
        "old state is dropped",
    )
    num_candidates_per_block: int | None = arg(
        None,
        "completions of every block to choose from (default: 5 for vanilla and legacy, else 1)",
    )
    num_demasking_candidates: int | None = arg(
        None, "completions of what was masked again (default: 5 for legacy, else 1)"
    )
    backmasking_lookback: int = arg(
        3, "finished blocks that may be masked again, the newest included"
    )
    backmasking_threshold: float | None = arg(
        None, "blocks that score less (0-1) are low (default: 0.5; legacy 0.9; window 0.8)"
    )
    backmasking_min_score_threshold: float | None = arg(
        None, "another published name of backmasking_threshold"
    )
    backmasking_alpha: float = arg(
        5.0,
        "how steeply the masked share falls with the score, exp(-alpha score); legacy and window",
    )
    backmasking_intensity: float = arg(
        0.5, "masked share (0-1) of the worst block; legacy and window"
    )
    backmasking_frequency: int | None = arg(
        None,
        "blocks from one look back to the next (default: 1; window 8); the last block always has "
        "one",
    )
    num_refinement_samples: int = arg(12, "refined copies to choose from; window")
    max_retry_attempts: int | None = arg(
        None, "rounds of masking again at one look back (default: 2; legacy and window 1)"
    )
    global_demasking: bool | None = arg(
        None,
        "fill all masked blocks together rather than one after another (default: legacy and "
        "window)",
    )
    selection_metric: Literal["mean", "product", "min_score", "last"] | None = arg(
        None,
        "what compares answers: over their blocks' scores (default: mean; legacy and window "
        "product)",
    )
    candidate_temperature: float | None = arg(
        None,
        f"of candidates after the first, and of refills (default: temperature, or {SAMPLED} if "
        "that is 0)",
    )
    max_prm_calls: int | None = arg(
        None, "scored answers per request; when they are spent, blocks are filled once and kept"
    )

    def __post_init__(self) -> None:
        for name in (
            "num_candidates_per_block",
            "num_demasking_candidates",
            "backmasking_lookback",
            "backmasking_frequency",
            "num_refinement_samples",
            "max_retry_attempts",
        ):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.max_prm_calls is not None and self.max_prm_calls < 0:
            raise ValueError(f"max_prm_calls must not be negative, got {self.max_prm_calls}")
        for name in (
            "backmasking_threshold",
            "backmasking_min_score_threshold",
            "backmasking_intensity",
        ):
            if (value := getattr(self, name)) is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} must be between 0 and 1, got {value}")
        if self.candidate_temperature is not None and not self.candidate_temperature > 0:
            raise ValueError(
                f"candidate_temperature must be above 0, got {self.candidate_temperature}: greedy "
                "candidates would all be equal"
            )
        if (
            self.backmasking_threshold is not None
            and self.backmasking_min_score_threshold is not None
        ):
            raise ValueError(
                "backmasking_threshold and backmasking_min_score_threshold are two names of one "
                "option: give one"
            )

    @property
    def random_positions(self) -> bool:
        """Are random positions of all blocks masked again, rather than whole blocks
        that score low?
        """
        return self.method == "window" or self.backmasking_rule == "legacy"

    @property
    def replaces(self) -> bool:
        """Is the state before a refill dropped, whatever it scored?"""
        return self.method == "backmask" and self.backmasking_rule == "legacy"

    @property
    def candidates(self) -> int:
        return self.num_candidates_per_block or (
            5 if self.method == "vanilla" or self.replaces else 1
        )

    @property
    def refills(self) -> int:
        return (
            self.num_refinement_samples
            if self.method == "window"
            else self.num_demasking_candidates or (5 if self.replaces else 1)
        )

    @property
    def threshold(self) -> float:
        given = (
            self.backmasking_min_score_threshold
            if self.backmasking_threshold is None
            else self.backmasking_threshold
        )
        return (
            given
            if given is not None
            else 0.8
            if self.method == "window"
            else 0.9
            if self.replaces
            else 0.5
        )

    @property
    def frequency(self) -> int:
        return self.backmasking_frequency or (8 if self.method == "window" else 1)

    @property
    def lookback(self) -> int:
        return self.frequency if self.method == "window" else self.backmasking_lookback

    @property
    def rounds(self) -> int:
        return (
            0
            if self.method == "vanilla"
            else self.max_retry_attempts or (1 if self.random_positions else 2)
        )

    @property
    def together(self) -> bool:
        return self.random_positions if self.global_demasking is None else self.global_demasking

    @property
    def metric(self) -> str:
        return self.selection_metric or ("product" if self.random_positions else "mean")


def summary(scores: Scores, metric: str) -> float:
    """One number for an answer from its blocks' scores; -inf for an answer with nothing
    to judge.
    """
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
    """The share of each block to mask again, 0-1. legacy: exp(-alpha s), min-max scaled
    to [0.01, 1], so the worst block's is the intensity whatever it scores; window:
    relative to the worst block.
    """
    raw = [max(math.exp(-config.backmasking_alpha * score), 0.01) for score in scores]
    if config.replaces:
        low, high = min(raw), max(raw)
        # equal scores: R3 divides by nearly zero; their own probabilities say how bad
        # all of them are
        raw = [0.01 + 0.99 * (value - low) / (high - low) for value in raw] if high > low else raw
    else:
        raw = [value / max(raw) for value in raw]
    return [value * config.backmasking_intensity for value in raw]


class _State(NamedTuple):
    """Rows of a draft with their scores and what this block has cost so far; the
    tensors are written to.
    """

    draft: Draft
    scores: list[Scores]  # of the rows as they stand in draft.tokens; [] where they were not scored
    forwards: Tensor  # (B,)
    num_scored: list[int]  # (B,)


class BlockReview:
    """A Review that tries `config` with the help of a scorer, for prompts of one decode call."""

    def __init__(
        self, config: ReviewConfig, sampler: SamplerConfig, score: Scorer, mask_id: int
    ) -> None:
        self.config, self.sampler, self.score, self.mask_id = config, sampler, score, mask_id
        self.alternative = replace(
            sampler, temperature=config.candidate_temperature or sampler.temperature or SAMPLED
        )
        # at most
        self.block_cost = (
            sampler.forwards_per_block if sampler.adaptive else sampler.steps_per_block
        )

    def __call__(self, draft: Draft) -> Filled:
        size = len(draft.rows)
        state = _State(draft, [[] for _ in range(size)], torch.zeros_like(draft.rows), [0] * size)
        self._choose_candidates(state)
        regular = (
            draft.number == self.sampler.num_blocks - 1
            or (draft.number + 1) % self.config.frequency == 0
        )
        due = [
            row
            for row, answer in enumerate(self._answers(draft, draft.tokens))
            if regular or draft.ended(answer)
        ]
        for attempt in range(1, self.config.rounds + 1):
            self._score_missing(state, due)
            due = self._refill(state, due, attempt)
            if not due:
                break
        return Filled(state.forwards, torch.tensor(state.num_scored, device=draft.rows.device))

    def _choose_candidates(self, state: _State) -> None:
        """Fill the block, and several times where the budgets allow: of its candidates
        every row keeps the best.
        """
        draft = state.draft
        extra = [
            max(0, self._affordable(state, row, self.config.candidates, self.block_cost) - 1)
            for row in range(len(draft.rows))
        ]
        blank, block = draft.tokens.clone(), range(draft.number, draft.number + 1)
        state.forwards.add_(draft.fill(draft.tokens, draft.rows, draft.keys, block))
        owners = [row for row in range(len(extra)) for _ in range(extra[row])]
        if not owners:
            return
        copies = [number for count in extra for number in range(1, count + 1)]
        tokens = self._fill_copies(
            state, blank, owners, [(draft.number, 0, copy) for copy in copies], block
        )
        several = [row for row in range(len(extra)) if extra[row]]
        self._score_missing(state, several)
        for row, owner_scores, candidate in self._scored_copies(state, tokens, owners):
            if summary(owner_scores, "last") > summary(state.scores[row], "last"):
                state.scores[row] = owner_scores
                draft.tokens[row] = candidate

    def _refill(self, state: _State, due: Sequence[int], attempt: int) -> list[int]:
        """Mask low blocks again and fill them; returns the rows that deserve another attempt."""
        draft, config = state.draft, self.config
        first = max(0, draft.number + 1 - config.lookback)
        owners: list[int] = []
        copies: list[int] = []
        blank = draft.tokens.clone()
        for row in due:
            at = self._positions_to_mask(state, row, first, attempt)
            if not at:
                continue
            number = self._affordable(
                state, row, config.refills, self._refill_cost(at, draft.number + 1 - first)
            )
            owners += [row] * number
            copies += range(number)
            if number:
                blank[row, [draft.start + position for position in at]] = self.mask_id
        if not owners:
            return []
        streams = [(draft.number, attempt, copy + 1) for copy in copies]
        tokens = self._fill_copies(state, blank, owners, streams, range(first, draft.number + 1))
        best: dict[int, tuple[float, Scores, Tensor]] = {}
        for row, scores, candidate in self._scored_copies(state, tokens, owners):
            value = summary(scores, config.metric)
            if row not in best or value > best[row][0]:
                best[row] = value, scores, candidate
        for row, (value, scores, candidate) in best.items():
            if config.replaces or value >= summary(state.scores[row], config.metric):
                state.scores[row] = scores
                draft.tokens[row] = candidate
        return list(best)

    def _positions_to_mask(self, state: _State, row: int, first: int, attempt: int) -> list[int]:
        """Answer positions to mask again: none where no judged block from `first` on is low."""
        draft, config, width = state.draft, self.config, self.sampler.block
        judged = {
            number: score
            for number, score in enumerate(state.scores[row])
            if number >= first and score is not None
        }
        low = [number for number, score in judged.items() if score < config.threshold]
        if not low or config.replaces and draft.number + 1 < config.lookback:
            return []
        if not config.random_positions:
            return [number * width + position for number in low for position in range(width)]
        position = torch.arange(width, device=draft.keys.device)
        at = []
        for number, share in zip(judged, masked_shares(list(judged.values()), config)):
            # steps are not negative
            order = uniform(draft.keys[row], number, -attempt, position).argsort().tolist()
            at += sorted(number * width + chosen for chosen in order[: int(width * share)])
        return at

    def _fill_copies(
        self,
        state: _State,
        blank: Tensor,
        owners: Sequence[int],
        streams: Sequence[tuple[int, int, int]],
        blocks: range,
    ) -> Tensor:
        """Copies (N, L) of the owners' rows, their masked tokens of `blocks` filled,
        each with its own random stream.
        """
        draft = state.draft
        owner = torch.tensor(owners, device=blank.device)
        tokens, rows = blank[owner], draft.rows[owner]
        own = draft.keys.tolist()
        keys = torch.tensor(
            [request_key(own[row], stream) for row, stream in zip(owners, streams)],
            device=blank.device,
        )
        if len(blocks) > 1 and self.config.together:
            spent = draft.fill(
                tokens, rows, keys, blocks, self.alternative, self._refill_steps(len(blocks))
            )
            state.forwards.index_add_(0, owner, spent)
            return tokens
        for number in blocks:
            column = draft.start + number * self.sampler.block
            needy = (
                (tokens[:, column : column + self.sampler.block] == self.mask_id)
                .any(-1)
                .nonzero()[:, 0]
            )
            if len(needy):
                part = tokens[needy]
                spent = draft.fill(
                    part, rows[needy], keys[needy], range(number, number + 1), self.alternative
                )
                tokens[needy] = part
                state.forwards.index_add_(0, owner[needy], spent)
        return tokens

    def _refill_steps(self, num_blocks: int) -> int:
        """Steps that fill blocks together: window takes those of one block, legacy
        those of all, never more than the answer's.
        """
        steps = self.sampler.steps_per_block
        return (
            steps
            if self.config.method == "window"
            else min(steps * num_blocks, self.sampler.steps_per_block * self.sampler.num_blocks)
        )

    def _refill_cost(self, at: Sequence[int], num_blocks: int) -> int:
        """Forwards, at most, that filling the answer positions `at` takes."""
        if not self.config.together or num_blocks == 1:
            return len({position // self.sampler.block for position in at}) * self.block_cost
        return (
            num_blocks * self.block_cost
            if self.sampler.adaptive
            else self._refill_steps(num_blocks)
        )

    def _affordable(self, state: _State, row: int, wanted: int, cost: int) -> int:
        """How many copies of `cost` forwards and one scoring each the budgets allow,
        later blocks paid for.
        """
        draft, config = state.draft, self.config
        if self.sampler.max_forwards is not None:
            later = (self.sampler.num_blocks - draft.number - 1) * self.block_cost
            wanted = min(
                wanted,
                (
                    self.sampler.max_forwards
                    - int(draft.forwards[row])
                    - int(state.forwards[row])
                    - later
                )
                // cost,
            )
        if config.max_prm_calls is not None:
            wanted = min(
                wanted, config.max_prm_calls - int(draft.num_scored[row]) - state.num_scored[row]
            )
        return max(wanted, 0)

    def _score_missing(self, state: _State, rows: Sequence[int]) -> None:
        """Score rows as they stand, where that is not known and the budget allows."""
        budget, draft = self.config.max_prm_calls, state.draft
        missing = [
            row
            for row in rows
            if not state.scores[row]
            and (budget is None or int(draft.num_scored[row]) + state.num_scored[row] < budget)
        ]
        if missing:
            for row, scores, _ in self._scored_copies(state, draft.tokens[missing], missing):
                state.scores[row] = scores

    def _scored_copies(
        self, state: _State, tokens: Tensor, owners: Sequence[int]
    ) -> list[tuple[int, Scores, Tensor]]:
        scores = self.score(
            [int(state.draft.rows[row]) for row in owners], self._answers(state.draft, tokens)
        )
        for row, each in zip(owners, scores):
            state.num_scored[row] += any(score is not None for score in each)
        return list(zip(owners, scores, tokens))

    def _answers(self, draft: Draft, tokens: Tensor) -> list[list[int]]:
        # what is cut off in the end is not judged
        length = min((draft.number + 1) * self.sampler.block, self.sampler.gen_length)
        return tokens[:, draft.start : draft.start + length].tolist()
