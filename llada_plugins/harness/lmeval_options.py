"""Options that lm-eval passes beside model_args, and those of its own that reach no model."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from llada_plugins.engine.notices import WarnOnce
from llada_plugins.engine.request import Request
from llada_plugins.settings.table import Preset

from .lmeval_tasks import drawing_examples, renamed_documents

logger = logging.getLogger(__name__)

# of model_args, what lm-eval names a results folder after
NAMING = {"peft", "delta", "pretrained", "model", "path", "engine"}
LM_EVAL_SEED = 1234  # what lm-eval seeds torch with unless --seed says otherwise


def check_given_once(
    model_args: Mapping[str, Any], additional_config: Mapping[str, Any] | None
) -> None:
    """Raise ValueError on an option of model_args that lm-eval passes by itself.

    Python's TypeError would not say what to do.
    """
    for name, value in sorted((additional_config or {}).items()):
        if value is not None and name in model_args:
            raise ValueError(
                f"{name}={model_args[name]} stands in model_args, where lm-eval passes "
                f"{name}={value} by itself: give it as --{name}, outside model_args"
            )


def warn_of_chat(preset: Preset | None, *, chats: bool) -> None:
    """Say so where prompts are chats in one of the two, this run and its preset, alone.

    Only lm-eval's command line decides that, so a preset cannot.
    """
    if preset is not None and preset.chat != chats:
        do = "give" if preset.chat else "leave out"
        logger.warning("preset %s is not this: %s --apply_chat_template", preset.name, do)


def warn_of_drawn_examples(warnings: WarnOnce) -> None:
    """Say which tasks of a run in several processes have other prompts than in one."""
    for name in drawing_examples():
        warnings.warn(
            f"{name}: lm-eval draws few-shot examples for one document after another, and each "
            "process begins anew: prompts are not those of a run in another number of "
            "processes, unless the task sets fewshot_config: {sampler: first_n}"
        )


def warn_of_samples(warnings: WarnOnce) -> None:
    """Say in which tasks lm-eval's files of samples name other documents than were evaluated."""
    for name in renamed_documents():
        warnings.warn(
            f"{name}: --samples gives documents out of order or twice, and lm-eval writes doc_id "
            "in that order beside answers in the task's: give each number once, rising"
        )


def refuse_chats(requests: Sequence[Request]) -> None:
    """Raise ValueError where a text is to be filled in that was rendered as a chat."""
    if any(request.rest for request in requests):
        raise ValueError(
            "infill fills in spans of a text as it stands, and a chat's turn is no such text: "
            "leave out --apply_chat_template"
        )


class SeedWarnings:
    """Says that lm-eval's --seed reaches torch, from which no random number here comes."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def warn(self, what: str, option: str) -> None:
        """Say so once, if a --seed was given; option: the one that counts for `what`."""
        seed = torch.initial_seed()  # of a torch that nobody seeded: 64 random bits
        if seed == LM_EVAL_SEED or seed >= 1 << 32 or option in self._told:
            return
        self._told.add(option)
        logger.warning(
            "--seed (torch's is %d) has no effect on %s: give %s= in model_args", seed, what, option
        )
