"""Options that OpenCompass passes to a model or a call beside the sampler's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from llada_plugins.options.fields import as_flag, names, reject_unknown
from llada_plugins.settings.table import find

from .do_sample import with_do_sample

# of generation_kwargs, beside the sampler's options
GENERATION_NAMES = ("do_sample", "num_beams", "num_return_sequences")


class OfEntry(NamedTuple):
    """What an entry has beside its engine's options."""

    path: str | None
    chat: bool
    stop_words: str | Sequence[str]


def of_preset(
    name: str | None,
    path: str | None,
    chat: bool | None,
    stop_words: str | Sequence[str] | None,
    *,
    wrapped: bool,
) -> OfEntry:
    """These, and from the preset of that name what is not given; wrapped: by a meta_template."""
    preset = find(name) if name else None
    if preset is not None:
        path = path or preset.pretrained
        chat = preset.chat and not wrapped if chat is None else chat
        stop_words = preset.stop_words if stop_words is None else stop_words
    return OfEntry(path, bool(chat), () if stop_words is None else stop_words)


def check_exclusive(
    meta_template: Mapping[str, Any] | None, *, chat: bool, record_stats: bool
) -> None:
    """Raise ValueError where meta_template stands beside what it excludes."""
    if not meta_template:
        return
    if chat:
        raise ValueError("meta_template and chat exclude each other: both wrap the turns")
    if record_stats:
        raise ValueError(
            "meta_template and record_stats exclude each other: OpenCompass then cuts predictions "
            "as plain strings"
        )


def check_generation_kwargs(generation_kwargs: Mapping[str, Any]) -> None:
    """Raise ValueError on what a model's entry may not have among its generation_kwargs."""
    others = [name for name in generation_kwargs if name != "num_return_sequences"]
    if others:
        raise ValueError(
            f"generation_kwargs takes num_return_sequences only, got {', '.join(others)}: "
            "write sampler options flat in the model's entry"
        )


def num_answers(generation_kwargs: Mapping[str, Any], default: int = 1) -> int:
    """How many answers to each prompt are asked for."""
    number = generation_kwargs.get("num_return_sequences", default)
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise ValueError(f"num_return_sequences must be a whole number, at least 1, got {number!r}")
    return number


def sampler_options(
    generation_kwargs: Mapping[str, Any], given: Mapping[str, Any]
) -> dict[str, Any]:
    """The sampler's options of an inferencer's generation_kwargs; given: the model's own.

    What do_sample means: harness/do_sample.py.
    """
    from llada_plugins.sampling import published
    from llada_plugins.sampling.config import SamplerConfig

    known = [*names(SamplerConfig), *published.NAMES, *GENERATION_NAMES]
    reject_unknown(generation_kwargs, known, "generation_kwarg")
    if (beams := generation_kwargs.get("num_beams") or 1) != 1:
        raise ValueError(
            f"num_beams={beams} has no meaning for a diffusion sampler: leave it out or set 1"
        )
    options = {
        name: value for name, value in generation_kwargs.items() if name not in GENERATION_NAMES
    }
    do_sample = generation_kwargs.get("do_sample")
    if do_sample is not None:
        do_sample = as_flag("do_sample", do_sample)
    return with_do_sample(options, do_sample, given)
