"""Spans of a text are filled in, whatever stands before, between and after them.

Any pattern of masks in token rows: the answer reaches from the first mask to the last, and
what is given in it and after it stands on the canvas and stays. How text becomes such rows
is the engine's.

Where attention is block-causal a block is drawn from p(block | earlier blocks, what is given
in it). So a span follows from no text after its block: that is what unseen_suffix accepts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from llada_plugins.diffusion.arguments import (
    check_functions,
    check_keys,
    check_model,
    check_special,
)
from llada_plugins.diffusion.blocks import Given
from llada_plugins.diffusion.denoiser import Denoiser, model_denoiser
from llada_plugins.diffusion.random_streams import request_key
from llada_plugins.diffusion.token_rows import token_rows
from llada_plugins.models.families import FAMILIES
from llada_plugins.models.folder import known_special_tokens
from llada_plugins.models.llada import LLaDA
from llada_plugins.models.special_tokens import SpecialTokens

from .config import SamplerConfig
from .decode import decode
from .draft import Sample
from .for_model import fitted
from .generate import with_options
from .step import Step

# go without effect where there is one block
OF_SEVERAL_BLOCKS = (
    "block_add_threshold",
    "decoded_token_threshold",
    "floor_in",
    "cache_delay_iter",
)


class Cut(NamedTuple):
    """A row of tokens with masks, as it is decoded."""

    prompt: tuple[int, ...]  # before the first mask
    given: Given  # what is known from there on


class Infilled(NamedTuple):
    """A row whose masks are filled in."""

    tokens: list[int]  # all of the row; what was given is as it was
    spans: list[list[int]]  # those that were masked, run by run
    num_forwards: int
    num_branches: int = 0  # further rows that it had in these passes, where steps branch


def cut(row: Sequence[int], mask_id: int) -> Cut:
    """The row as prompt and answer. ValueError where nothing of it is masked."""
    places = [place for place, token in enumerate(row) if token == mask_id]
    if not places:
        raise ValueError(
            f"nothing is to be filled in: no token is the mask (id {mask_id}): mark a span"
        )
    first, end = places[0], places[-1] + 1
    return Cut(tuple(row[:first]), Given(tuple(row[first:end]), tuple(row[end:])))


def spans(answer: Sequence[int], given: Given, mask_id: int) -> list[list[int]]:
    """The runs of an answer's tokens that were masked."""
    found: list[list[int]] = []
    open_before = False
    for token, known in zip(answer, given.answer):
        is_open = known == mask_id
        if is_open and not open_before:
            found.append([])
        if is_open:
            found[-1].append(token)
        open_before = is_open
    return found


def for_infilling(config: SamplerConfig, length: int) -> SamplerConfig:
    """The sampler for an answer of `length` tokens, first mask to last, whose rest is given.

    Its blocks take as many steps as those of `config`; the last has the rest of the tokens.
    No end token ends anything. Raises ValueError on options that need an open end.
    """
    check_infilling(config)
    changes: dict[str, Any] = {"gen_length": length, "last_block": "rest", "early_stop": False}
    if config.causal:  # else neither is set
        changes.update(answer_end="gen_length", stop_at="never")
    if config.sampling_method == "fixed_length":
        changes["block_length"] = None
    if config.block_steps is not None or (config.steps is not None and paces(config)):
        changes["block_steps"] = config.steps_per_block
        changes["minimal_topk"] = None
    changes["steps"] = None
    if length <= (changes.get("block_length", config.block_length) or length):
        changes.update(dict.fromkeys(OF_SEVERAL_BLOCKS))
    return replace(config, **changes)


def paces(config: SamplerConfig) -> bool:
    """Does the number of steps decide how many tokens one keeps?"""
    return not config.adaptive or config.paced


def check_infilling(config: SamplerConfig, *, reviewed: bool = False) -> None:
    """Raise ValueError on what decodes a text from its beginning only.

    reviewed: does a process reward model judge the answer?
    """
    if reviewed:
        raise ValueError(
            "a process reward model judges a solution's steps from its beginning, and infilling "
            "gives its end: use another method, such as llada"
        )
    if config.causal and not config.unseen_suffix:
        raise ValueError(
            "a token of this checkpoint sees its own block and earlier ones alone, so that a span "
            "does not follow from the text after its block: set unseen_suffix=true to fill it in "
            "all the same, or use a model whose tokens see all"
        )
    if config.grows and not config.causal:
        raise ValueError(
            f"sampling_method={config.sampling_method} shows a block nothing that comes after it, "
            "and infilling the text after a span: leave it out"
        )
    if config.stop_at not in (None, "never"):
        raise ValueError(
            f"stop_at={config.stop_at} ends an answer at an end token, and a text that is filled "
            "in goes on after it: leave it out"
        )


def check_beginning(prompt: Sequence[int], *, shifted: bool) -> None:
    """Raise ValueError on a row that begins with a mask, if logits come from the left."""
    if shifted and not len(prompt):
        raise ValueError(
            "a text begins with a span, and this model predicts a token from the one before it: "
            "put text before the span"
        )


def infill(
    model: LLaDA,
    rows: Sequence[Sequence[int]],
    config: SamplerConfig | None = None,
    *,
    special: SpecialTokens | None = None,
    denoise: Denoiser | None = None,
    keys: Sequence[int] | None = None,
    on_step: Callable[[Step], None] | None = None,
) -> list[Infilled]:
    """Fill in the masks of token rows, any number of them anywhere; all else stays as it is.

    config: of it, gen_length and where an answer ends do not count; see `for_infilling`.
    special, denoise, keys, on_step: as of `generate`. A row's result depends on no other
    row. Raises ValueError on a row without a mask, with what is no token of the model, or that
    does not fit its context, and on arguments of another kind.
    """
    check_model(model)
    check_functions(denoise=denoise, on_step=on_step)
    rows = token_rows(rows, model.config.num_embeddings, "row")
    check_keys(keys, len(rows))
    config = fitted(SamplerConfig() if config is None else config, model.config)
    special = known_special_tokens(model) if special is None else special
    check_special(special, model.config.num_embeddings)
    check_infilling(config)
    for row in rows:
        known = cut(row, special.mask)
        check_beginning(known.prompt, shifted=FAMILIES[model.config.family].shift)
        check_fits(known, config, model.config.max_sequence_length)
    return infill_rows(
        denoise or model_denoiser(model),
        rows,
        config,
        special,
        device=model.device,
        keys=keys,
        on_step=on_step,
    )


def infill_rows(
    denoise: Denoiser,
    rows: Sequence[Sequence[int]],
    config: SamplerConfig,
    special: SpecialTokens,
    *,
    device: torch.device | str = "cpu",
    keys: Sequence[int] | None = None,
    on_step: Callable[[Step], None] | None = None,
) -> list[Infilled]:
    """See `infill`; of a denoiser, which gets the options that concern it."""
    cuts = [cut(row, special.mask) for row in rows]
    keys = keys or [request_key(config.seed, row) for row in rows]
    found: dict[int, Infilled] = {}
    for length, numbers in by_length(cuts).items():
        sampler = for_infilling(config, length)
        sampler.check_budget(reviewed=False)
        samples = decode(
            with_options(denoise, sampler, special),
            [cuts[number].prompt for number in numbers],
            sampler,
            special,
            device=device,
            keys=[keys[number] for number in numbers],
            given=[cuts[number].given for number in numbers],
            on_step=None if on_step is None else Renumbered(on_step, numbers),
        )
        for number, sample in zip(numbers, samples):
            found[number] = filled(cuts[number], sample, special.mask)
    return [found[number] for number in range(len(rows))]


def by_length(cuts: Sequence[Cut]) -> dict[int, list[int]]:
    """The numbers of the rows by the length of their answers: these share a batch."""
    found: dict[int, list[int]] = defaultdict(list)
    for number, each in enumerate(cuts):
        found[len(each.given.answer)].append(number)
    return dict(found)


def filled(row: Cut, sample: Sample, mask_id: int) -> Infilled:
    """The row with what was decoded."""
    return Infilled(
        [*row.prompt, *sample.answer, *row.given.after],
        spans(sample.answer, row.given, mask_id),
        sample.num_forwards,
        sample.num_branches,
    )


def check_fits(row: Cut, config: SamplerConfig, limit: int) -> None:
    """Raise ValueError on a text of more tokens than the model's context has."""
    prompt, (answer, after) = row
    blocks = for_infilling(config, len(answer)).blocks
    if len(prompt) > blocks.room(limit) - blocks.columns_after(len(after)):
        number = len(prompt) + len(answer) + len(after)
        counted = ", as far as the last one's block" if config.causal else ""
        raise ValueError(
            f"a text of {number} tokens, spans included, exceeds the model's context of {limit}"
            f"{counted}: shorten it, or its spans"
        )


class Renumbered(NamedTuple):
    """An observer of a part of the rows, which is told their numbers among all."""

    on_step: Callable[[Step], None]
    numbers: Sequence[int]

    def __call__(self, step: Step) -> None:
        """See `Step`."""
        numbers = step.rows.new_tensor(self.numbers)
        self.on_step(step._replace(rows=numbers[step.rows]))
