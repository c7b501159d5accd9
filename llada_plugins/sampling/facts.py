"""What follows from the options of decoding: blocks, steps, which rules there are."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

from llada_plugins.diffusion.blocks import Blocks
from llada_plugins.diffusion.kept_prompt import PromptRefresh
from llada_plugins.diffusion.partial_refresh import PartialRefresh

from .confidence import PUBLISHED_NAMES
from .options import SamplerOptions

# rules by which the number of tokens kept depends on their scores
ADAPTIVE_RULES = ("threshold", "threshold_entropy", "factor", "error_budget")
# how improbable a token may be that one of them keeps alone
ERROR_ALONE: dict[str, Callable[[float], float]] = {
    "threshold": lambda threshold: 1 - threshold,
    "threshold_entropy": lambda entropy: 1 - math.exp(-entropy),  # p of the best >= exp(-entropy)
    "factor": lambda factor: factor / 2,
    "error_budget": lambda budget: budget,
}
# how many tokens stand after each step, where that does not depend on scores
Schedule = Literal[
    "linear",
    "linear_revised",
    "block_share",
    "mask_and_refine",
    "dream",
    "independent",
    "mdlm",
]
APPROXIMATE_CACHES = ("prefix", "dual", "partial")  # values of cache that change answers
StopAt = Literal["never", "block", "eos", "new_eos"]
FloorIn = Literal["active", "first", "first_and_best"]
BY_TIMESTEPS = ("dream", "independent")  # schedules that end at schedule_eps


class DecodingFacts(SamplerOptions):
    """Options of decoding and what follows from them."""

    @property
    def block(self) -> int:
        """Tokens of a block."""
        return self.block_length or self.gen_length

    @property
    def causal(self) -> bool:
        """Does a token see its own block and earlier ones alone?"""
        return self.sampling_method == "block_causal"

    @property
    def blocks(self) -> Blocks:
        """How the answer to a prompt is cut."""
        return Blocks(
            self.block,
            self.gen_length,
            from_row=self.causal and self.blocks_from != "answer",
            causal=self.causal,
            grows=self.grows,
            whole=self.last_block == "whole",
            ends=self.answer_end,
        )

    @property
    def frozen(self) -> Literal["prefix", "dual"] | None:
        """Which keys and values stay as a block's first step made them, if any do."""
        return self.cache if self.cache in ("prefix", "dual") else None

    @property
    def approximates(self) -> bool:
        """Does a cache change answers?"""
        return self.cache in APPROXIMATE_CACHES

    def partial_refresh(self, mask_id: int) -> PartialRefresh | None:
        """At which steps a cache computes what, where each layer chooses columns itself."""
        if self.cache != "partial":
            return None
        share = 0.25 if self.transfer_ratio is None else self.transfer_ratio
        return PartialRefresh(mask_id, share, self.gen_interval_steps, self.prompt_interval_steps)

    @property
    def prompt_refresh(self) -> PromptRefresh | None:
        """When a cache computes prompts again; None: whenever it computes everything."""
        if self.cache_prompt_refresh is None:
            return None
        return PromptRefresh(self.cache_prompt_refresh, self.block)

    @property
    def num_blocks(self) -> int:
        """Blocks that the answer fills, the last of which may be cut.

        Where they are counted from the row's first token, it may lie in one more.
        """
        return -(-self.gen_length // self.block)  # rounded up

    @property
    def blocks_at_once(self) -> int:
        """Blocks whose tokens may be decoded by the same forwards."""
        return 1 if self.block_add_threshold is None else self.num_blocks

    @property
    def floor(self) -> FloorIn:
        """The name in several_blocks.FLOORS."""
        return self.floor_in or "active"

    @property
    def most_blocks(self) -> int:
        """Blocks that an answer may lie in, whatever its prompt."""
        return self.blocks.number(self.block - 1)

    @property
    def decoded_length(self) -> int:
        """Tokens of all blocks: gen_length, rounded up unless the last block has only the rest.

        An answer keeps the first gen_length; so do published wrappers whose tasks ask for
        any length.
        """
        return self.blocks.decoded(0)

    @property
    def answer_in_words(self) -> str:
        """The answer's length for messages."""
        rounded = self.decoded_length > self.gen_length
        whole = f", {self.decoded_length} in whole blocks" if rounded else ""
        return f"gen_length ({self.gen_length}{whole})"

    @property
    def steps_per_block(self) -> int:
        """Denoising steps of each block under a fixed schedule, idle ones left out."""
        if self.steps is None and self.block_steps is None:
            return self.block
        # only dllm's schedule rounds
        steps = self.block_steps or -(-(self.steps or 0) // self.num_blocks)
        if self.minimal_topk is not None:
            steps = min(steps, self.gen_length // self.minimal_topk)
        return min(steps, self.block) if self.fixed_schedule == "linear" else steps

    @property
    def num_idle_steps(self) -> int:
        """Steps of an answer in which nothing is left to unmask under LLaDA's schedule.

        The published code spends a forward on each, and no answer depends on them.
        """
        if self.steps is None or self.adaptive or self.fixed_schedule != "linear":
            return 0
        return self.steps - self.steps_per_block * self.num_blocks

    @property
    def source(self) -> str:
        """The name in CONFIDENCE."""
        name = self.confidence_source or self.remasking
        if name is None:
            by_entropy = self.threshold_entropy is not None and self.revise_below is None
            name = "entropy" if by_entropy else "tps_prob"
        return PUBLISHED_NAMES.get(name, name)

    @property
    def source_of_masked(self) -> str:
        """The name in CONFIDENCE of what judges masked positions: a rule may have its own."""
        return self.source if self.threshold_entropy is None else "entropy"

    @property
    def adaptive(self) -> bool:
        """Does the number of tokens kept depend on their scores?"""
        return any(getattr(self, rule) is not None for rule in ADAPTIVE_RULES)

    @property
    def branch_rules(self) -> list[tuple[float, float]]:
        """Threshold and max_dependence of each branch."""
        pairs = [each.split(":") for each in (self.branches or "").split("+") if each]
        return [(float(threshold), float(dependence)) for threshold, dependence in pairs]

    @property
    def rows_of_each(self) -> int:
        """Rows that an answer has in a forward, at most, where a step tries several."""
        return self.draft_rows or 1 + len(self.branch_rules)

    @property
    def certainty(self) -> float:
        """With max_dependence, the probability from which a token depends on none."""
        if self.certain_above is not None:
            return self.certain_above
        [rule] = [name for name in ADAPTIVE_RULES if getattr(self, name) is not None]
        return 1 - ERROR_ALONE[rule](getattr(self, rule)) / 150

    @property
    def fixed_schedule(self) -> Schedule:
        """The name in unmask_schedule.SCHEDULES; of an adaptive rule that is paced, its limit."""
        if self.remask_ratio is not None:
            return "mask_and_refine"
        if self.schedule != "llada":
            return self.schedule
        return "linear_revised" if self.revise else "linear"

    @property
    def may_idle(self) -> bool:
        """Are there steps that change nothing, whatever the model says?"""
        return self.schedule != "llada" and not self.revises

    @property
    def opens_with_one(self) -> bool:
        """Does a block's first step keep its first token, and no other?"""
        return self.shift_cache == "published"

    @property
    def last_timestep(self) -> float:
        """Where the timesteps of BY_TIMESTEPS end."""
        return 1e-3 if self.schedule_eps is None else self.schedule_eps

    @property
    def draws(self) -> bool:
        """Do answers depend on random numbers?"""
        return self.temperature > 0 or self.source == "random" or bool(self.alg_temp)

    @property
    def edits(self) -> bool:
        """May a token that was kept be replaced by another?"""
        return self.edit_threshold is not None

    @property
    def post_steps(self) -> int:
        """Forwards of a block after its last mask, at most."""
        if not self.edits:
            return 0
        return 16 if self.max_post_steps is None else self.max_post_steps

    @property
    def revises(self) -> bool:
        """May a token that was kept be masked again, or replaced?"""
        taken_back = self.revise or self.remask_ratio is not None or self.revise_below is not None
        return taken_back or self.edits

    @property
    def shares_block(self) -> bool:
        """Does each step of an adaptive rule keep at least its share of the block?"""
        return self.adaptive and not self.paced and self.block_steps is not None

    def at_least_in(self, step: int) -> int:
        """Tokens that a step of an adaptive rule keeps at least, if there are so many masks."""
        if not self.shares_block:
            return self.at_least or 1
        share, remainder = divmod(self.block, self.steps_per_block)
        return share + (step < remainder)

    @property
    def forwards_per_block(self) -> int:
        """Upper bound under adaptive rules; one a token lets every rule finish."""
        if self.max_forwards is not None:
            return self.max_forwards // self.most_blocks
        unmasking = self.steps_per_block if self.shares_block else self.block
        return unmasking + self.post_steps

    @property
    def stops(self) -> StopAt:
        """When EOS or EoT ends an answer."""
        if self.stop_at is not None:
            return self.stop_at
        if self.block_add_threshold is not None:
            return "eos" if self.early_stop else "never"
        return "block" if self.early_stop or self.grows else "never"

    @property
    def leaves(self) -> bool:
        """May an EOS end a block that still has masks?"""
        return self.stops in ("eos", "new_eos")

    @property
    def fills_after_end(self) -> bool:
        """Does everything after the first end token that stands become EOS?"""
        return self.block_add_threshold is not None and self.stops == "eos"

    @property
    def most_forwards(self) -> int:
        """Forwards of an answer, at most."""
        of_block = self.forwards_per_block if self.adaptive else self.steps_per_block
        return of_block * self.most_blocks

    @property
    def grows(self) -> bool:
        """Does the canvas grow block by block, so that no later masks are seen?"""
        return self.sampling_method in ("semi_ar_origin", "block_causal")
