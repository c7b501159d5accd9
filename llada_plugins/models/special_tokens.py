"""Ids of the tokens that mean something to decoding."""

from __future__ import annotations

from typing import NamedTuple

from .llada_config import token_ids


class SpecialTokens(NamedTuple):
    """Ids that the sampler must know; from the config and the tokenizer, never literals."""

    mask: int
    eos: int | None = None
    eot: int | None = None
    more_eos: tuple[int, ...] = ()  # further ids of eos_token_id, where that is a list

    @property
    def ends(self) -> tuple[int, ...]:
        """Ids after which no text survives."""
        return token_ids([self.eos, self.eot, *self.more_eos])
