"""Process-reward candidates and back-masking (LLaDA-R3)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

from llada_plugins.diffusion.denoiser import model_denoiser
from llada_plugins.options.fields import arg, build
from llada_plugins.rewards.prm_config import PRMConfig
from llada_plugins.rewards.process_reward_model import open_prm
from llada_plugins.rewards.review_config import ReviewConfig
from llada_plugins.rewards.steps import StepSplit

from .loading import Loading
from .prepared import Judge, Prepared, own_policy

R3_BLOCK_LENGTH = 32


@dataclass(frozen=True, kw_only=True)
class PRMOptions(ReviewConfig, PRMConfig):
    """Which process reward model judges, what it reads, and what its verdicts are used for."""

    prm: str | None = arg(
        None,
        "folder or hub id of a process reward model (default: 'prm' in the checkpoint's folder, "
        "if it is there)",
    )
    step_split: StepSplit | None = arg(
        None,
        "what a step is: block, line or blank_line (default: what the PRM's config.json says, "
        "else blank_line)",
    )
    question_pattern: str | None = arg(
        None,
        "regular expression whose first group, at its last match in the prompt, is the question "
        "for the PRM (default: the whole prompt, special tokens removed)",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.question_pattern is not None:
            try:
                groups = re.compile(self.question_pattern).groups
            except re.error as error:
                raise ValueError(
                    f"question_pattern={self.question_pattern!r} is no regular expression: {error}"
                ) from None
            if not groups:
                raise ValueError(
                    f"question_pattern={self.question_pattern!r} has no group: put the question "
                    "in parentheses"
                )


def judged_blocks(load: Loading, folder: Path, options: PRMOptions) -> Prepared:
    """LLaDA-R3: a process reward model chooses among candidates and has low blocks masked again."""
    beside = folder / "prm"
    if options.prm is None and beside.is_dir():
        options = replace(options, prm=str(beside))
    prm = open_prm(options)
    model = load()

    def defaults(given: Mapping[str, Any]) -> dict[str, Any]:
        if given.get("block_length"):
            return {}
        return {"block_length": prm.config.get("block_length", R3_BLOCK_LENGTH)}

    step_split = options.step_split or prm.config.get("step_split", "blank_line")
    if step_split not in get_args(StepSplit):
        raise ValueError(
            f"{options.prm}: step_split in config.json is {step_split!r}, must be one of "
            f"{', '.join(get_args(StepSplit))}: pass step_split="
        )
    which = build(PRMConfig, asdict(options))
    scorer = load.part(which, lambda: prm.load(model.device))
    judge = Judge(scorer, options, step_split, options.question_pattern)
    return Prepared(model, model_denoiser(model), own_policy(model), defaults, judge)
