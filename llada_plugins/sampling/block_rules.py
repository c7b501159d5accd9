"""Rules between the options that say how an answer is cut into blocks, and each is filled."""

from __future__ import annotations

from .confidence import POLICY_SOURCES
from .facts import DecodingFacts

# go without multi-block decoding
OF_ONE_BLOCK = (
    "paced",
    "block_steps",
    "sub_block_length",
    "first_token_alone",
    "edit_threshold",
    "shift_cache",
    "cache_prompt_refresh",
)


# what decides otherwise than by a threshold, or knows of one row for each request
BESIDE_BRANCHES = (
    "temperature",
    "max_dependence",
    "revise_below",
    "edit_threshold",
    "sub_block_cache",
    "block_add_threshold",
    "block_steps",
    "at_least",
    "paced",
)


# the same beside rows of drafts; their tokens may stand anywhere in the block
BESIDE_DRAFTS = (
    "branches",
    "temperature",
    "revise_below",
    "edit_threshold",
    "sub_block_length",
    "first_token_alone",
    "block_add_threshold",
    "block_steps",
    "at_least",
    "paced",
)


class BlockRules(DecodingFacts):
    """Checks of these options; each raises ValueError in one line."""

    def _changed(self, *options: str) -> list[str]:
        """Those of the options that are not their defaults; 0 is a value of some."""
        return [name for name in options if getattr(self, name) != getattr(type(self), name)]

    def _check_blocks(self) -> None:
        if self.sampling_method == "fixed_length" and self.num_blocks > 1:
            raise ValueError(
                "sampling_method='fixed_length' decodes one block: leave block_length out or set "
                f"it to gen_length ({self.gen_length}), got {self.block_length}"
            )
        if self.causal and self.block_length is None:
            raise ValueError(
                "sampling_method=block_causal needs block_length, the blocks that the model "
                "attends by: give it"
            )
        if self.blocks_from is not None and self.sampling_method not in (None, "block_causal"):
            raise ValueError(
                f"blocks_from={self.blocks_from} has no effect without "
                "sampling_method=block_causal: leave it out"
            )
        if self.unseen_suffix and self.sampling_method not in (None, "block_causal"):
            raise ValueError(
                "unseen_suffix has no effect without sampling_method=block_causal, under which "
                "alone text goes unseen: leave it out"
            )
        self._check_steps()
        self._check_answer_end()

    def _check_steps(self) -> None:
        if self.steps is not None and self.block_steps is not None:
            raise ValueError("steps and block_steps are alternatives: give one")
        self._check_minimal_topk()
        if self.steps is None or (self.adaptive and not self.paced):
            return
        if self.steps % self.num_blocks and self.schedule != "mdlm":
            rounded = ", rounded up" if self.decoded_length > self.gen_length else ""
            raise ValueError(
                f"steps ({self.steps}) must be a multiple of the number of blocks ("
                f"{self.num_blocks} = gen_length {self.gen_length} / block_length {self.block}"
                f"{rounded})"
            )

    def _check_minimal_topk(self) -> None:
        if self.minimal_topk is not None and self.block_steps is None:
            raise ValueError(
                "minimal_topk has no effect without block_steps: set it, or leave both"
            )
        if self.minimal_topk is not None and self.minimal_topk > self.gen_length:
            raise ValueError(
                f"minimal_topk ({self.minimal_topk}) must not exceed gen_length "
                f"({self.gen_length}): no step would be left"
            )

    def _check_answer_end(self) -> None:
        if self.answer_end == "gen_length":
            return
        if self.sampling_method not in (None, "block_causal") or self.last_block == "rest":
            raise ValueError(
                f"answer_end={self.answer_end} needs sampling_method=block_causal and whole "
                "blocks: leave it out, or the other option"
            )
        if self.answer_end == "next_token" and self.causal and self.gen_length < self.block:
            raise ValueError(
                "answer_end=next_token decodes gen_length // block_length blocks: gen_length "
                f"({self.gen_length}) must be at least block_length ({self.block})"
            )

    def _check_floor(self) -> None:
        """How many tokens a step keeps at least."""
        if self.strict is not None and self.threshold is None and self.threshold_entropy is None:
            raise ValueError(
                "strict has no effect without threshold or threshold_entropy: leave it out"
            )
        if self.at_least is not None and self.block_steps is not None:
            raise ValueError("at_least and block_steps are alternatives: give one")
        if self.block_steps is not None and (self.sub_block_length or self.first_token_alone):
            raise ValueError(
                "block_steps asks each step for its share of the block, which sub_block_length and "
                "first_token_alone may not leave it: give at_least, or leave them out"
            )

    def _check_sub_blocks(self) -> None:
        if self.sub_block_length is not None and self.block % self.sub_block_length:
            raise ValueError(
                f"sub_block_length ({self.sub_block_length}) must divide block_length "
                f"({self.block})"
            )
        if self.sub_block_cache and (self.sub_block_length is None or self.approximates):
            raise ValueError(
                "sub_block_cache needs sub_block_length and goes without cache=prefix, dual or "
                "partial: set it, or leave one out"
            )
        if self.sub_block_cache and self.source in POLICY_SOURCES:
            raise ValueError(
                f"sub_block_cache keeps no scores for confidence_source={self.source}: leave one "
                "out"
            )

    def _check_dependence(self) -> None:
        for name in ("max_dependence", "certain_above"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                raise ValueError(f"{name} must be between 0 and 1, got {value}")
        if self.certain_above is None:
            return
        if self.max_dependence is None:
            raise ValueError(
                "certain_above has no effect without max_dependence: set it, or leave it out"
            )
        if self.threshold is not None and self.certain_above <= self.threshold:
            raise ValueError(
                f"certain_above ({self.certain_above}) must be above threshold "
                f"({self.threshold}): else max_dependence concerns no token that passes"
            )

    def _check_branches(self) -> None:
        if self.branches is None:
            return
        if self.threshold is None:
            raise ValueError("branches need threshold, the rule that they go beyond: give it")
        if self.threshold == 1:
            raise ValueError("branches need a threshold below 1, from which tokens are certain")
        self._check_branch_rules(self.threshold)
        self._check_beside_rows("branches", BESIDE_BRANCHES)

    def _check_beside_rows(self, name: str, without: tuple[str, ...]) -> None:
        """What goes with several rows of one answer. name: of the option that makes them."""
        others = self._changed(*without) + (["cache"] if self.approximates else [])
        if others:
            raise ValueError(f"{name} and {others[0]} do not go together: leave one of them out")
        if self.leaves:
            raise ValueError(
                f"{name} and stop_at={self.stop_at} do not go together: leave one of them out"
            )
        if self.causal and self.cache == "auto":
            raise ValueError(
                f"{name} makes rows of block-causal models, which share no cache: set cache=none, "
                f"or leave {name} out"
            )

    def _check_drafts(self) -> None:
        for name in ("draft_threshold", "draft_odds"):
            value = getattr(self, name)
            if value is not None:
                self._check_verified_from(name, value)
        if self.draft_rows is None:
            return
        if self.draft_rows < 2:
            raise ValueError(
                f"draft_rows must be at least 2, one of them without drafts, got {self.draft_rows}"
            )
        self._check_beside_rows("draft_rows", BESIDE_DRAFTS)

    def _check_verified_from(self, name: str, value: float) -> None:
        """The option of this name, by which drafts stand that the rule would not keep."""
        if self.draft_rows is None:
            raise ValueError(f"{name} has no effect without draft_rows: set it, or leave it out")
        if not 0 < value <= 1:
            raise ValueError(f"{name} must be above 0 and at most 1, got {value}")
        if self.threshold_entropy is not None:
            raise ValueError(
                f"{name} compares probabilities, which threshold_entropy does not compute: give "
                "another rule, or leave it out"
            )
        if name == "draft_odds" and (self.source != "tps_prob" or self.confidence_of == "filtered"):
            raise ValueError(
                "draft_odds compares the model's own probabilities: it goes with "
                "confidence_source=tps_prob alone, and without confidence_of=filtered"
            )

    def _check_branch_rules(self, threshold: float) -> None:
        try:
            rules = self.branch_rules
        except ValueError:
            rules = []
        inside = [0 < lower < threshold and 0 < alike < 1 for lower, alike in rules]
        if not rules or not all(inside):
            raise ValueError(
                f"branches must be THRESHOLD:MAX_DEPENDENCE joined by '+', each threshold below "
                f"threshold ({threshold}) and each dependence between 0 and 1, such as "
                f"0.6:0.02+0.8:0.02, got {self.branches!r}"
            )

    def _check_several_blocks(self) -> None:
        """Multi-block decoding, and what goes with nothing else."""
        for name in ("decoded_token_threshold", "floor_in"):
            if getattr(self, name) is not None and self.block_add_threshold is None:
                raise ValueError(
                    f"{name} has no effect without block_add_threshold: set it, or leave {name} out"
                )
        if self.block_add_threshold is None:
            return
        for name in ("block_add_threshold", "decoded_token_threshold"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} must be from 0 to 1, got {value}")
        if self.decoded_token_threshold is not None and self.floor != "active":
            raise ValueError(
                f"decoded_token_threshold has no effect with floor_in={self.floor_in}: the first "
                "block with masks comes after full ones alone; leave one out"
            )
        if self.num_blocks == 1:
            raise ValueError(
                "block_add_threshold has no effect on a single block: set block_length below "
                f"gen_length ({self.gen_length})"
            )
        self._check_beside_several_blocks()

    def _check_beside_several_blocks(self) -> None:
        if self.sampling_method not in (None, "semi_ar_padding"):
            raise ValueError(
                "block_add_threshold needs a canvas that shows all blocks, "
                f"sampling_method=semi_ar_padding, got {self.sampling_method}"
            )
        if self.stops in ("block", "new_eos"):
            raise ValueError(
                f"stop_at={self.stop_at} waits for a finished block, and with block_add_threshold "
                "several are in work: set stop_at to eos (as early_stop does) or never"
            )
        if self.frozen == "dual":
            raise ValueError(
                "cache=dual freezes what comes after a block, and block_add_threshold works on "
                "later blocks too: set cache to prefix"
            )
        if others := self._changed(*OF_ONE_BLOCK):
            raise ValueError(
                f"{others[0]} fills one block after another, and block_add_threshold several at "
                "once: leave one out"
            )

    def _check_edits(self) -> None:
        if self.max_post_steps is not None and self.edit_threshold is None:
            raise ValueError(
                "max_post_steps has no effect without edit_threshold: set it, or leave it out"
            )
        if self.max_post_steps is not None and self.max_post_steps < 0:
            raise ValueError(f"max_post_steps must be at least 0, got {self.max_post_steps}")
        if self.edit_threshold is None:
            return
        if not 0 <= self.edit_threshold <= 1:
            raise ValueError(f"edit_threshold must be from 0 to 1, got {self.edit_threshold}")
        if self.revise_below is not None or self.sub_block_length is not None:
            raise ValueError(
                "edit_threshold goes without revise_below and sub_block_length: leave one out"
            )
