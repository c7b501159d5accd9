"""What lm-eval asks to be generated, as a request of the Engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lm_eval.models.utils import normalize_gen_kwargs

from llada_plugins.engine.engine import Engine
from llada_plugins.engine.marked_text import marked_request
from llada_plugins.engine.request import Request
from llada_plugins.options.fields import coerce, names, reject_unknown
from llada_plugins.sampling import published
from llada_plugins.sampling.config import SamplerConfig

from .do_sample import with_do_sample
from .stop_strings import stop_strings

LENGTH_NAMES = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
DEFAULT_MAX_GEN_TOKS = 256  # lm-eval's own default, for tasks that state none


@dataclass(frozen=True, kw_only=True)
class GenKwargs:
    """What lm-eval has beside the sampler's options; a task or a command line may write strings.

    infill: the prompt is a text with marked spans that are filled in.
    """

    do_sample: bool | None = None
    num_beams: int | None = None
    max_gen_toks: int | None = None
    max_new_tokens: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    infill: bool | None = None


HARNESS_NAMES = ("until", *names(GenKwargs))


def read_request(engine: Engine, prompt: str, gen_kwargs: Mapping[str, Any]) -> Request:
    """One request from lm-eval's (context, gen_kwargs)."""
    known = [*names(SamplerConfig), *published.NAMES, *HARNESS_NAMES]
    reject_unknown(gen_kwargs, known, "gen_kwarg")
    own = coerce(GenKwargs, gen_kwargs)
    if own.get("num_beams") not in (None, 1):
        raise ValueError(
            f"num_beams={gen_kwargs['num_beams']} has no meaning for a diffusion sampler: "
            "leave it out or set 1"
        )
    options = {name: value for name, value in gen_kwargs.items() if name not in HARNESS_NAMES}
    stated = {**engine.given, **coerce(SamplerConfig, options)}.get("temperature", 0.0)
    options = with_do_sample(options, own.get("do_sample"), engine.given)
    temperature = stated or coerce(SamplerConfig, options).get("temperature", 0.0)
    # lm-eval's own reading; it warns where do_sample and the temperature disagree
    normal = normalize_gen_kwargs({**own, "temperature": temperature}, DEFAULT_MAX_GEN_TOKS)
    asked = any(own.get(name) is not None for name in LENGTH_NAMES)
    length_known = "gen_length" in options or "gen_length" in engine.given
    max_tokens = normal["max_gen_toks"] if asked or not length_known else None
    until = stop_strings(gen_kwargs.get("until"), "until")
    sampler = engine.sampler_for(options, max_tokens)
    if own.get("infill"):
        return marked_request(prompt, sampler, until)
    return Request(prompt, sampler, until)
