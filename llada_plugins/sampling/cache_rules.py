"""Rules between the options of caches, and what they have an effect with."""

from __future__ import annotations

from .block_rules import BlockRules
from .facts import APPROXIMATE_CACHES

# by the caches that they have an effect with
CACHE_OPTIONS: dict[str, tuple[str, ...]] = {
    "cache_refresh": ("prefix", "dual"),
    "cache_vicinity": ("prefix", "dual"),
    "cache_delayed": ("prefix", "dual"),
    "cache_prompt_refresh": APPROXIMATE_CACHES,
    "cache_delay_iter": ("prefix", "dual"),
    "transfer_ratio": ("partial",),
    "gen_interval_steps": ("partial",),
    "prompt_interval_steps": ("partial",),
}


class CacheRules(BlockRules):
    """Checks of these options; each raises ValueError in one line."""

    def _check_cache(self) -> None:
        for name in ("cache_vicinity", "cache_prompt_refresh", "cache_delay_iter"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")
        for name in self._changed(*CACHE_OPTIONS):
            *others, last = CACHE_OPTIONS[name]
            if self.cache not in (*others, last):
                allowed = f"{', '.join(others)} or {last}" if others else last
                raise ValueError(
                    f"{name} has no effect with cache={self.cache!r}: set cache to {allowed}, or "
                    "leave it out"
                )
        self._check_partial_refresh()
        if self.cache_delay_iter is not None:
            self._check_finished_prefix()
        if self.cache_delayed and self.edits:
            raise ValueError(
                "edit_threshold judges tokens that stand, of which cache_delayed computes none: "
                "leave one of them out"
            )

    def _check_partial_refresh(self) -> None:
        share = self.transfer_ratio
        if share is not None and not 0 <= share <= 1:  # so written, NaN is refused too
            raise ValueError(f"transfer_ratio must be from 0 to 1, got {share}")
        if share is not None and self.gen_interval_steps == 1:
            raise ValueError(
                "transfer_ratio has no effect with gen_interval_steps=1, which computes all of the "
                "answer's columns at every step: leave one of them out"
            )
        if self.prompt_interval_steps is not None and self.cache_prompt_refresh is not None:
            raise ValueError(
                "prompt_interval_steps and cache_prompt_refresh are alternatives, in steps of a "
                "block and in blocks: give one"
            )

    def _check_finished_prefix(self) -> None:
        if self.block_add_threshold is None:
            raise ValueError(
                "cache_delay_iter says when finished blocks are frozen while others are in work: "
                "it has no effect without block_add_threshold, so set that, or leave it out"
            )
        if self.cache_delayed or self.cache_vicinity:
            other = "cache_delayed" if self.cache_delayed else "cache_vicinity"
            raise ValueError(f"cache_delay_iter and {other} are alternatives: give one")
