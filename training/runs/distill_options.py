"""Options of distillation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from llada_plugins.options.fields import arg
from training.loop.distillation import CertaintyOf, OrderOf, Recipe

from .distill_presets import DISTILL_PRESETS
from .options import AdaptingOptions

COUNTS = (
    "teacher_length",
    "teacher_block",
    "teacher_steps",
    "teacher_batch",
    "first_window",
    "last_window",
)


@dataclass(frozen=True, kw_only=True)
class DistillOptions(AdaptingOptions):
    """What is learned from which teacher, and how."""

    preset: str | None = arg(
        None,
        f"a student with its teacher and data: {', '.join(DISTILL_PRESETS)}; it sets the other "
        "flags' defaults",
    )
    teacher: str | None = arg(
        None,
        "checkpoint folder or hub id that decodes the data's prompts, of the same tokenizer "
        "(default: the model that training starts from)",
    )
    teacher_length: int | None = arg(
        None, "tokens of the teacher's answers (default: those of the data's longest answer)"
    )
    teacher_block: int | None = arg(
        None, "tokens of a block of the teacher's decoding (default: one block)"
    )
    teacher_steps: int | None = arg(
        None, "forwards of the teacher's answer (default: one a token, as d3LLM has it)"
    )
    teacher_threshold: float | None = arg(
        None,
        "the teacher unmasks all tokens at least so probable, 0-1, in place of teacher_steps: "
        "fewer forwards, and an order of tokens of one forward by their probability",
    )
    canonical: list[float] | None = arg(
        None,
        "where the teacher is sure of no token, by teacher_threshold, it unmasks the leftmost one: "
        "of those at least this share as probable as the best, 0-1, the one with the smallest id. "
        "So answers that are as good follow a rule, which a student can learn. Of several shares "
        "each is for the prompts whose answers were wrong with those before it (default: the most "
        "probable token)",
    )
    teacher_batch: int = arg(64, "rows that the teacher decodes at once")
    answers: Literal["teacher", "right"] = arg(
        "teacher",
        "which of the teacher's answers are learned: teacher (all) or right (those that the "
        "preset's rule accepts; of --data, those equal to the data's answer up to EOS)",
    )
    trajectories: str | None = arg(
        None,
        "folder that keeps what the teacher decoded, which any run may share: found again by "
        "content of teacher and data, and options (default: decoded at every start)",
    )
    order: OrderOf = arg(
        "teacher",
        "masks of a window: teacher (those of its state with as many) or random (dParallel, and "
        "the control)",
    )
    least_masked: float = arg(
        0.0,
        "share of a window's tokens that is masked, 0-1: drawn between a lower end, which rises "
        "from this to last_least_masked over the run, and most_masked",
    )
    last_least_masked: float | None = arg(
        None, "see least_masked (default: most_masked, as d3LLM has it)"
    )
    most_masked: float = arg(0.8, "see least_masked")
    first_window: int = arg(
        16,
        "tokens of a window of the answer at the beginning of the run: what is before it is clean, "
        "what is after it masked; a shorter answer is one window",
    )
    last_window: int = arg(32, "the same at the end; between them it grows linearly")
    complement: bool = arg(
        True, "learn each state's complement as well, its masks and tokens exchanged"
    )
    certainty: float = arg(
        2.0, "weight of the entropy of tokens that are predicted as the teacher has them; 0 = none"
    )
    certainty_temperature: float = arg(
        0.5, "temperature of the probabilities whose entropy that is"
    )
    certainty_of: CertaintyOf = arg(
        "masked", "entropy of the states' tokens: masked (d3LLM), or all, the complement's too"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in COUNTS:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name} must be at least 1, got {value}")
        if self.teacher_steps is not None and self.teacher_threshold is not None:
            raise ValueError("--teacher_steps and --teacher_threshold are alternatives: give one")
        if self.teacher_threshold is not None and not 0 < self.teacher_threshold <= 1:
            raise ValueError(
                f"--teacher_threshold must be above 0 and at most 1, got {self.teacher_threshold}"
            )
        self._check_canonical()
        self._check_recipe()

    def _check_canonical(self) -> None:
        if self.canonical is None:
            return
        if not self.canonical or not all(0 < share <= 1 for share in self.canonical):
            raise ValueError(f"--canonical must be above 0 and at most 1, got {self.canonical}")
        if len(self.canonical) > 1 and self.answers != "right":
            raise ValueError(
                "--canonical of several shares needs --answers right, which says which is wrong: "
                "give one share, or --answers right"
            )
        if self.teacher_threshold is None:
            raise ValueError(
                "--canonical needs --teacher_threshold, which says of what the teacher is sure"
            )

    def _check_recipe(self) -> None:
        if not 0 <= self.least_masked <= self.most_masked <= 1:
            raise ValueError(
                "--least_masked and --most_masked must be between 0 and 1, the first at most the "
                f"second, got {self.least_masked} and {self.most_masked}"
            )
        last = self.last_least_masked
        if last is not None and not self.least_masked <= last <= self.most_masked:
            raise ValueError(
                "--last_least_masked must be between --least_masked and --most_masked, "
                f"{self.least_masked} and {self.most_masked}, got {last}"
            )
        if not 0 <= self.certainty < math.inf:
            raise ValueError(f"--certainty must be a number from 0 up, got {self.certainty}")
        if not 0 < self.certainty_temperature < math.inf:
            raise ValueError(
                f"--certainty_temperature must be above 0, got {self.certainty_temperature}"
            )
        if self.certainty_of == "all" and not self.complement:
            raise ValueError(
                "--certainty_of all is of the complement too, which --complement false leaves "
                "out: leave one of them out"
            )

    @property
    def recipe(self) -> Recipe:
        """How noise and window grow, and what is rewarded."""
        last = self.last_least_masked
        return Recipe(
            least_masked=self.least_masked,
            last_least_masked=self.most_masked if last is None else last,
            most_masked=self.most_masked,
            first_window=self.first_window,
            last_window=self.last_window,
            order=self.order,
            complement=self.complement,
            certainty=self.certainty,
            temperature=self.certainty_temperature,
            certainty_of=self.certainty_of,
        )
