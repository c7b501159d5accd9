"""What lm-eval asks to be generated, as a request of the Engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lm_eval.models.utils import normalize_gen_kwargs

from llada_plugins.engine.engine import Engine
from llada_plugins.engine.request import Request
from llada_plugins.options.fields import names, reject_unknown
from llada_plugins.sampling import published
from llada_plugins.sampling.config import SamplerConfig

LENGTH_NAMES = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
HARNESS_NAMES = ("until", "do_sample", "num_beams", *LENGTH_NAMES)
DEFAULT_MAX_GEN_TOKS = 256  # lm-eval's own default, for tasks that state none


def read_request(engine: Engine, prompt: str, gen_kwargs: Mapping[str, Any]) -> Request:
    """One request from lm-eval's (context, gen_kwargs)."""
    known = [*names(SamplerConfig), *published.NAMES, *HARNESS_NAMES]
    reject_unknown(gen_kwargs, known, "gen_kwarg")
    if int(gen_kwargs.get("num_beams") or 1) != 1:
        raise ValueError(
            f"num_beams={gen_kwargs['num_beams']} has no meaning for a diffusion sampler: "
            "leave it out or set 1"
        )
    options = {name: value for name, value in gen_kwargs.items() if name not in HARNESS_NAMES}
    normal = normalize_gen_kwargs(dict(gen_kwargs), DEFAULT_MAX_GEN_TOKS)
    greedy = gen_kwargs.get("do_sample") is False
    if greedy or "temperature" in gen_kwargs:
        options["temperature"] = normal["temperature"]
    if greedy:  # such a task may still list the sampling options of its authors
        options.pop("top_p", None)
        options.pop("top_k", None)
    asked = any(gen_kwargs.get(name) is not None for name in LENGTH_NAMES)
    length_known = "gen_length" in options or "gen_length" in engine.given
    max_tokens = normal["max_gen_toks"] if asked or not length_known else None
    until = tuple(stop for stop in normal["until"] if stop)
    return Request(prompt, engine.sampler_for(options, max_tokens), until)
