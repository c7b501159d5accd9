"""Options of a review: how many candidates it tries, and what it masks again."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

from llada_plugins.options.fields import Options, arg

Metric = Literal["mean", "product", "min_score", "last"]
Style = Literal["vanilla", "backmask", "legacy", "window"]

# temperature of alternatives where the sampler itself is greedy: equal candidates are
# no choice
SAMPLED = 0.7


class Defaults(NamedTuple):
    """What options that were left out mean."""

    candidates: int  # of every block
    refills: int  # of what was masked again
    threshold: float  # of a low score
    frequency: int  # blocks from one look back to the next
    rounds: int  # of masking again at one look back
    together: bool  # are masked blocks filled together?
    metric: Metric


# legacy is backmask under R3's own rule; vanilla never looks back. The refills of
# window are num_refinement_samples, an option with a default of its own.
DEFAULTS: dict[Style, Defaults] = {
    "vanilla": Defaults(
        candidates=5, refills=1, threshold=0.5, frequency=1, rounds=0, together=False, metric="mean"
    ),
    "backmask": Defaults(
        candidates=1, refills=1, threshold=0.5, frequency=1, rounds=2, together=False, metric="mean"
    ),
    "legacy": Defaults(
        candidates=5,
        refills=5,
        threshold=0.9,
        frequency=1,
        rounds=1,
        together=True,
        metric="product",
    ),
    "window": Defaults(
        candidates=1,
        refills=1,
        threshold=0.8,
        frequency=8,
        rounds=1,
        together=True,
        metric="product",
    ),
}

COUNTS = (
    "num_candidates_per_block",
    "num_demasking_candidates",
    "backmasking_lookback",
    "backmasking_frequency",
    "num_refinement_samples",
    "max_retry_attempts",
)
THRESHOLDS = ("backmasking_threshold", "backmasking_min_score_threshold")


@dataclass(frozen=True, kw_only=True)
class ReviewConfig(Options):
    """How much is tried, and what is masked again.

    Names and defaults are LLaDA-R3's where it has them. A default that depends on the
    method is None here; the properties below say what holds.
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
    selection_metric: Metric | None = arg(
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
        super().__post_init__()
        for name in COUNTS:
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.max_prm_calls is not None and self.max_prm_calls < 0:
            raise ValueError(f"max_prm_calls must not be negative, got {self.max_prm_calls}")
        self._check_shares()
        temperature = self.candidate_temperature
        if temperature is not None and not 0 < temperature < math.inf:
            raise ValueError(
                f"candidate_temperature must be a number above 0, got {temperature}: greedy "
                "candidates would all be equal"
            )
        if not math.isfinite(self.backmasking_alpha):
            raise ValueError(f"backmasking_alpha must be a number, got {self.backmasking_alpha}")
        if all(getattr(self, name) is not None for name in THRESHOLDS):
            raise ValueError(f"{' and '.join(THRESHOLDS)} are two names of one option: give one")

    def _check_shares(self) -> None:
        for name in (*THRESHOLDS, "backmasking_intensity"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} must be between 0 and 1, got {value}")

    @property
    def style(self) -> Style:
        """The method, where the rule makes `backmask` two."""
        if self.method == "backmask" and self.backmasking_rule == "legacy":
            return "legacy"
        return self.method

    @property
    def _default(self) -> Defaults:
        return DEFAULTS[self.style]

    @property
    def random_positions(self) -> bool:
        """Are random positions of all blocks masked again, rather than whole low blocks?"""
        return self.style in ("legacy", "window")

    @property
    def replaces(self) -> bool:
        """Is the state before a refill dropped, whatever it scored?"""
        return self.style == "legacy"

    @property
    def candidates(self) -> int:
        """Completions of every block to choose from."""
        return self.num_candidates_per_block or self._default.candidates

    @property
    def refills(self) -> int:
        """Completions of what was masked again."""
        if self.style == "window":
            return self.num_refinement_samples
        return self.num_demasking_candidates or self._default.refills

    @property
    def threshold(self) -> float:
        """Blocks that score less are low."""
        for given in (self.backmasking_threshold, self.backmasking_min_score_threshold):
            if given is not None:
                return given
        return self._default.threshold

    @property
    def frequency(self) -> int:
        """Blocks from one look back to the next."""
        return self.backmasking_frequency or self._default.frequency

    @property
    def lookback(self) -> int:
        """Finished blocks that may be masked again."""
        return self.frequency if self.style == "window" else self.backmasking_lookback

    @property
    def rounds(self) -> int:
        """Rounds of masking again at one look back."""
        if self.style == "vanilla":
            return 0
        return self.max_retry_attempts or self._default.rounds

    @property
    def together(self) -> bool:
        """Are masked blocks filled together, rather than one after another?"""
        if self.global_demasking is None:
            return self._default.together
        return self.global_demasking

    @property
    def steps_of_one_block(self) -> bool:
        """Do blocks that are filled together take the steps of one of them, not of all?"""
        return self.style == "window"

    @property
    def metric(self) -> Metric:
        """What compares answers, over their blocks' scores."""
        return self.selection_metric or self._default.metric
