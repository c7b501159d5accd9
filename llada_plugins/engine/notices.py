"""Warnings that are logged once, and those about a request's sampler."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from llada_plugins.sampling.config import SamplerConfig


class WarnOnce:
    """Logs each warning once, or once all that are about one thing."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._told: set[str] = set()

    def warn(self, message: str, about: str | None = None) -> None:
        """Log the message unless it, or another one about the same thing, was logged."""
        subject = about or message
        if subject not in self._told:
            self._told.add(subject)
            self._logger.warning(message)


class Notice(NamedTuple):
    """Something that a user should know."""

    message: str
    about: str | None = None  # notices about one thing are told once


def surprises(
    sampler: SamplerConfig,
    options: Mapping[str, Any],
    given: Mapping[str, Any],
    max_tokens: int | None,
) -> Iterator[Notice]:
    """What of a request's sampler is not as the task, or the user, may expect it.

    options: the request's own. given: the model's. max_tokens: the task's answer length.
    """
    for name in sorted(options.keys() & given.keys()):
        value, before = getattr(sampler, name), given[name]
        if value != before:
            yield Notice(
                f"{name}={value!r} of the task or of --gen_kwargs overrides {name}={before!r} "
                "of the model"
            )
    if max_tokens is not None and max_tokens != sampler.gen_length:
        yield Notice(
            f"gen_length={sampler.gen_length} overrides the task's answer length of "
            f"{max_tokens} tokens"
        )
    if sampler.decoded_length > sampler.gen_length and not sampler.causal:
        yield Notice(
            f"answers that blocks of {sampler.block} tokens do not divide are decoded "
            f"in whole blocks and cut: {sampler.gen_length} tokens cost what "
            f"{sampler.decoded_length} do",
            about="whole blocks",
        )
    if sampler.num_idle_steps:
        yield Notice(
            f"steps={sampler.steps} exceeds {sampler.answer_in_words}: as each step unmasks at "
            f"least one token, {sampler.num_idle_steps} of them would change nothing and are "
            "left out",
            about="idle steps",
        )
