"""The options of decoding under the rules between them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llada_plugins.options.fields import build, coerce, settle

from .cache_rules import CacheRules
from .confidence import CONFIDENCE, OF_VISIBLE, PROBABILITIES, PUBLISHED_NAMES
from .facts import ADAPTIVE_RULES, BY_TIMESTEPS

COUNTS = (
    "gen_length",
    "steps",
    "block_steps",
    "minimal_topk",
    "block_length",
    "at_least",
    "sub_block_length",
    "top_k",
    "max_forwards",
    "cache_refresh",
    "gen_interval_steps",
    "prompt_interval_steps",
)
# what has no effect under a fixed schedule
OF_ADAPTIVE_RULES = (
    "revise_below",
    "edit_threshold",
    "at_least",
    "sub_block_length",
    "first_token_alone",
    "max_dependence",
    "branches",
    "draft_rows",
    "block_add_threshold",
)


@dataclass(frozen=True, kw_only=True)
class SamplerConfig(CacheRules):
    """How an answer is decoded.

    The defaults are LLaDA's: one block, one token a step, greedy, low-confidence
    remasking.
    """

    def __post_init__(self) -> None:
        settle(self)
        for name in COUNTS:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self._check_cache()
        self._check_blocks()
        self._check_several_blocks()
        self._check_sampling()
        self._check_names()
        self._check_kept()
        self._check_adaptive()
        self._check_edits()
        self._check_schedule()
        self._check_trust()
        self._check_shift_cache()
        self._check_budgets()

    def _check_sampling(self) -> None:
        # so written, NaN is refused too
        if not (0 <= self.temperature < math.inf and 0 <= self.cfg_scale < math.inf):
            raise ValueError(
                f"temperature and cfg_scale must be numbers from 0 up, got {self.temperature} and "
                f"{self.cfg_scale}"
            )
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p}")
        filters = self.top_k is not None or self.top_p is not None
        if filters and self.temperature == 0 and self.confidence_of != "filtered":
            raise ValueError(
                "top_k and top_p have no effect at temperature=0: set a temperature or leave them "
                "out; with confidence_of=filtered they decide what is trusted"
            )

    def _check_names(self) -> None:
        for name in ("remasking", "confidence_source"):
            value = getattr(self, name)
            if value is not None and PUBLISHED_NAMES.get(value, value) not in CONFIDENCE:
                known = ", ".join([*PUBLISHED_NAMES, *CONFIDENCE])
                raise ValueError(f"{name} must be one of {known}, got {value!r}")
        if not self.remasking or not self.confidence_source:
            return
        if PUBLISHED_NAMES.get(self.remasking, self.remasking) != self.source:
            raise ValueError(
                f"remasking={self.remasking!r} and confidence_source={self.confidence_source!r} "
                "are two names of one option: give one"
            )

    def _given(self, *options: str) -> list[str]:
        """Those of the options that are set and not switched off."""
        return [name for name in options if not _is_off(getattr(self, name))]

    def _check_kept(self) -> None:
        given = self._given(*ADAPTIVE_RULES, "remask_ratio", "revise")
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are alternatives: give one")
        for name in self._given("threshold", "remask_ratio"):
            value = getattr(self, name)
            inside = 0 < value < 1 or (value == 1 and name == "threshold")
            if not inside:
                raise ValueError(f"{name} must be between 0 and 1, got {value}")
        for name in self._given("factor", "error_budget"):
            value = getattr(self, name)
            if not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}")
        # so written, NaN is refused too
        if self.threshold_entropy is not None and not self.threshold_entropy >= 0:
            raise ValueError(
                f"threshold_entropy must be 0 or more (nats), got {self.threshold_entropy}"
            )
        if self.revise_below is not None and not 0 < self.revise_below <= 1:
            raise ValueError(f"revise_below must be above 0 and at most 1, got {self.revise_below}")

    def _check_adaptive(self) -> None:
        """What goes with adaptive rules alone."""
        for name in self._given(*OF_ADAPTIVE_RULES):
            if not self.adaptive:
                raise ValueError(
                    f"{name} has no effect without {', '.join(ADAPTIVE_RULES[:-1])} or "
                    f"{ADAPTIVE_RULES[-1]}: set one of them, or leave it out"
                )
            if self.paced and name not in ("revise_below", "sub_block_length", "max_dependence"):
                raise ValueError(f"{name} and paced are alternatives: give one")
        self._check_floor()
        self._check_sub_blocks()
        self._check_dependence()
        self._check_branches()
        self._check_drafts()

    def _check_schedule(self) -> None:
        if self.schedule != "llada":
            for name in self._given(*ADAPTIVE_RULES, "remask_ratio"):
                raise ValueError(
                    f"schedule={self.schedule} has no effect with {name}, which decides itself how "
                    "many tokens a step keeps: give one of the two"
                )
        if self.schedule_eps is not None and self.schedule not in BY_TIMESTEPS:
            raise ValueError(
                f"schedule_eps has no effect with schedule={self.schedule}: leave it out, or set "
                f"schedule to {' or '.join(BY_TIMESTEPS)}"
            )
        if self.schedule_eps is not None and not 0 < self.schedule_eps < 1:
            raise ValueError(f"schedule_eps must be between 0 and 1, got {self.schedule_eps}")
        if self.schedule == "independent" and (self.source != "random" or self.revise):
            raise ValueError(
                "schedule=independent draws which tokens a step unmasks: it needs "
                "confidence_source=random, and goes without revise"
            )
        if self.paced and self.threshold is None:
            raise ValueError("paced has no effect without threshold: set it, or leave paced out")

    def _check_trust(self) -> None:
        if self.alg_temp is None:
            return
        if not 0 <= self.alg_temp < math.inf:
            raise ValueError(f"alg_temp must be a number from 0 up, got {self.alg_temp}")
        if self.alg_temp > 0 and (self.adaptive or self.source == "random"):
            what = "adaptive rules" if self.adaptive else "confidence_source=random"
            raise ValueError(
                f"alg_temp draws which tokens a step keeps by their confidence, which {what} "
                "cannot use: leave one of them out"
            )

    def _check_shift_cache(self) -> None:
        if self.shift_cache == "exact":
            return
        if self.frozen is None:
            raise ValueError(
                f"shift_cache has no effect with cache={self.cache!r}: set cache to prefix or "
                "dual, or leave it out"
            )
        if self._given(
            *("threshold_entropy", "factor", "error_budget"),
            *("remask_ratio", "revise", "paced", "cache_delayed"),
        ):
            raise ValueError(
                "shift_cache=published is Fast-dLLM's decoder for Dream, which has a threshold or "
                "a schedule and no other rule: leave the others out"
            )
        if not self.adaptive and self.steps_per_block < min(2, self.block):
            raise ValueError(
                "shift_cache=published spends a block's first step on its first token: it needs "
                "at least 2 steps a block"
            )

    def _check_budgets(self) -> None:
        if self.max_forwards is not None and self.max_forwards < self.most_blocks:
            raise ValueError(
                f"max_forwards ({self.max_forwards}) must be at least the number of blocks "
                f"({self.most_blocks}): each needs one"
            )
        self._check_source()

    def _check_source(self) -> None:
        """Is what adaptive rules compare on the scale of their numbers?"""
        if not self.adaptive:
            return
        if self.threshold_entropy is None and self.source not in PROBABILITIES:
            rules = [rule for rule in ADAPTIVE_RULES if rule != "threshold_entropy"]
            raise ValueError(
                f"{', '.join(rules)} compare probabilities: they need confidence_source "
                f"{', '.join(PROBABILITIES)}, got {self.source!r}"
            )
        if self.threshold_entropy is None:
            return
        if self.edits:
            raise ValueError(
                "edit_threshold compares probabilities of proposals, which threshold_entropy does "
                "not compute: give threshold in its place"
            )
        allowed = ("entropy",) if self.revise_below is None else OF_VISIBLE
        if self.source not in allowed:
            raise ValueError(
                "threshold_entropy judges masked tokens by their entropy: confidence_source can "
                f"be {', '.join(allowed)} here, got {self.source!r}"
            )

    def check_budget(self, reviewed: bool) -> None:
        """Raise ValueError where max_forwards could change nothing, or cannot be kept.

        reviewed: are there candidates to save on? Those must end where all others do.
        """
        if reviewed:
            self._check_reviewed()
        if self.max_forwards is None or self.adaptive:
            return
        if not reviewed:
            raise ValueError(
                f"max_forwards has no effect without {', '.join(ADAPTIVE_RULES)} or a process "
                "reward model: use one of them, or leave it out"
            )
        least = self.steps_per_block * self.most_blocks
        if self.max_forwards < least:
            raise ValueError(
                f"max_forwards ({self.max_forwards}) must be at least steps ({least}): "
                "a single candidate of every block takes as many"
            )

    def _check_reviewed(self) -> None:
        """Can a process reward model compare what these options decode?"""
        for name in self._given("branches", "draft_rows"):
            raise ValueError(
                f"{name} and a process reward model, whose candidates are rows too, do not go "
                "together: leave one of them out"
            )
        if self.block_add_threshold is not None:
            raise ValueError(
                "block_add_threshold goes without a process reward model, which judges one block "
                "after another: leave it out"
            )
        if self.leaves or self.answer_end != "gen_length":
            option = f"stop_at={self.stops}" if self.leaves else f"answer_end={self.answer_end}"
            raise ValueError(
                f"{option} goes without a process reward model, which compares whole blocks: leave "
                "it out"
            )


def _is_off(value: object) -> bool:
    return value is None or value is False


def build_sampler(options: Mapping[str, Any], base: SamplerConfig) -> SamplerConfig:
    """The sampler of options that may leave the answer's length to a task.

    Without gen_length it has the fewest whole blocks that the other options allow.
    ValueError where no length would do, so that those are refused before there is a
    request.
    """
    if "gen_length" in options:
        return build(SamplerConfig, options, base)
    known = coerce(SamplerConfig, options)
    steps = max(1, known.get("steps") or 1)
    block = max(1, known.get("block_length") or steps)
    refusals: list[ValueError] = []
    for num_blocks in range(1, steps + 1):
        try:
            return build(SamplerConfig, {**options, "gen_length": num_blocks * block}, base)
        except ValueError as error:
            refusals.append(error)
    raise refusals[0]
