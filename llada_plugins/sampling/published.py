"""Option names of other families' published samplers, read as ours.

A row of FAMILIES says whose sampler its publishers use. Their names are accepted where
such a checkpoint is loaded, and mean their sampler: `alg=entropy` of a Dream is its
schedule and its confidence as well. They are no options of ours: elsewhere they are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from llada_plugins.options.fields import as_flag

Options = Mapping[str, Any]


class Published(NamedTuple):
    """A published sampler."""

    whose: str
    # its name -> ours, where that is all there is to it
    renamed: Mapping[str, str]
    # what its names mean beside that; what is given goes before
    implied: Mapping[str, Any] = {}
    # its name -> ours (a hint), of a name that means more; and what all of them mean, from
    # them and ours
    special: Mapping[str, str] = {}
    read: Callable[[Options, Options], dict[str, Any]] = lambda theirs, own: {}
    # names of ours that mean something else in it
    shadowed: Mapping[str, str] = {}


# Dream's alg -> our options; threshold is Fast-dLLM's addition
DREAM = {"schedule": "dream", "confidence_of": "filtered"}
ALGORITHMS: dict[str, dict[str, Any]] = {
    "origin": {**DREAM, "schedule": "independent", "confidence_source": "random"},
    "maskgit_plus": {**DREAM, "confidence_source": "tps_prob"},
    "topk_margin": {**DREAM, "confidence_source": "margin"},
    "entropy": {**DREAM, "confidence_source": "entropy"},
    "confidence_threshold": {"confidence_of": "filtered", "confidence_source": "tps_prob"},
}


def _by_alg(theirs: Options, own: Options) -> dict[str, Any]:
    """Our options for a value of Dream's `alg`."""
    if "alg" not in theirs:
        return {}
    alg = theirs["alg"]
    for ours in ("confidence_source", "remasking"):
        _check_once("alg", ours, own)
    if alg not in ALGORITHMS:
        raise ValueError(f"alg must be one of {', '.join(ALGORITHMS)}, got {alg!r}")
    if alg != "confidence_threshold":
        return ALGORITHMS[alg]
    if own.get("threshold") is None:
        raise ValueError("alg=confidence_threshold needs threshold: give it, such as 0.9")
    # Fast-dLLM holds it to the schedule where it has no cache
    return {**ALGORITHMS[alg], "paced": own.get("cache", "auto") in ("auto", "none")}


# remasking_strategy of SDAR's generate.py -> our options
STRATEGIES: dict[str, dict[str, Any]] = {
    "sequential": {"schedule": "block_share", "confidence_source": "leftmost"},
    "low_confidence_static": {"schedule": "block_share", "confidence_of": "filtered"},
    "low_confidence_dynamic": {"confidence_of": "filtered"},
}


def _by_strategy(theirs: Options, own: Options) -> dict[str, Any]:
    """Our options for a value of SDAR's `remasking_strategy`; without one, its evaluation's."""
    strategy, threshold = theirs.get("remasking_strategy"), theirs.get("confidence_threshold")
    if strategy is None:
        _check_once("confidence_threshold", "threshold", own if threshold is not None else {})
        return {"threshold": 1.0 if threshold is None else threshold, "strict": True}
    if strategy not in STRATEGIES:
        raise ValueError(
            f"remasking_strategy must be one of {', '.join(STRATEGIES)}, got {strategy!r}"
        )
    for ours in ("confidence_source", "remasking", "threshold"):
        _check_once("remasking_strategy", ours, own)
    if strategy != "low_confidence_dynamic":  # the published code passes over a threshold
        return STRATEGIES[strategy]
    if threshold is None:
        raise ValueError(
            "remasking_strategy=low_confidence_dynamic needs confidence_threshold: give it, such "
            "as 0.85"
        )
    return {**STRATEGIES[strategy], "threshold": threshold, "strict": True}


EDITING = ("editing_threshold", "num_to_transfer")


def _by_version(theirs: Options, own: Options) -> dict[str, Any]:
    """Our options for those of LLaDA2.0's sampler, or of 2.1's, which has others."""
    early = as_flag("eos_early_stop", theirs.get("eos_early_stop", False))
    edits = [*(name for name in EDITING if name in theirs), *own.keys() & {"max_post_steps"}]
    if not edits:
        with_steps = {"minimal_topk": 1} if "steps" in theirs else {}
        return {"stop_at": "new_eos" if early else "block", **with_steps}
    for name in ("steps", "minimal_topk"):
        if name in theirs or name in own:
            raise ValueError(
                f"{name} has no effect beside {edits[0]}: that is LLaDA2.1's sampler, whose steps "
                "end when nothing changes: leave it out"
            )
    return {"stop_at": "block" if early else "never", "edit_threshold": 0.9}


SAMPLERS: dict[str, Published] = {
    "dream": Published(
        "Dream",
        {"max_new_tokens": "gen_length", "diffusion_steps": "steps", "eps": "schedule_eps"},
        special={"alg": "confidence_source"},
        read=_by_alg,
    ),
    "mdlm": Published(
        "dllm",
        {"max_new_tokens": "gen_length", "block_size": "block_length"},
        {"schedule": "mdlm", "last_block": "rest"},
    ),
    "sdar": Published(
        "SDAR",
        {"denoising_steps": "block_steps"},
        {"answer_end": "block"},
        special={"remasking_strategy": "remasking", "confidence_threshold": "threshold"},
        read=_by_strategy,
    ),
    "llada2": Published(
        "LLaDA2",
        {"editing_threshold": "edit_threshold", "num_to_transfer": "at_least"},
        {"threshold": 0.95, "strict": True},
        special={"eos_early_stop": "early_stop"},
        read=_by_version,
        shadowed={"steps": "block_steps"},
    ),
    "fast_dllm_v2": Published(
        "Fast-dLLM v2",
        {
            "max_new_tokens": "gen_length",
            "block_size": "block_length",
            "small_block_size": "sub_block_length",
            "use_block_cache": "sub_block_cache",
        },
        {
            "threshold": 1.0,
            "strict": True,
            "sub_block_length": 8,
            "first_token_alone": True,
            "stop_at": "eos",
            "answer_end": "next_token",
        },
    ),
}
# every name that some sampler has and ours has not -> what it is called here
INSTEAD = {
    name: ours
    for sampler in SAMPLERS.values()
    for name, ours in {**sampler.renamed, **sampler.special}.items()
}
NAMES = tuple(INSTEAD)
# names of ours that some sampler has for something else
SHADOWED = tuple(name for sampler in SAMPLERS.values() for name in sampler.shadowed)
NONE = Published("LLaDA", {})


def native(options: Options, sampler: str) -> dict[str, Any]:
    """The options under our names.

    sampler: of the checkpoint's row in FAMILIES. Raises ValueError on a published name that
    this sampler has not, on a value that is none of its own, and on two names of one option.
    """
    published = SAMPLERS.get(sampler, NONE)
    for name in options:
        if name in INSTEAD and name not in {**published.renamed, **published.special}:
            whose = SAMPLERS[sampler_with(name)].whose
            raise ValueError(
                f"{name} is an option of {whose}'s sampler, and this checkpoint comes with "
                f"another: did you mean {INSTEAD[name]!r}?"
            )
    names = {**published.renamed, **published.shadowed}
    theirs = {name: each for name, each in options.items() if name in {**names, **INSTEAD}}
    own = {name: each for name, each in options.items() if name not in theirs}
    if not theirs:
        return own
    for name in theirs.keys() & names.keys():
        _check_once(name, names[name], own)
    renamed = {names[name]: each for name, each in theirs.items() if name in names}
    return {**published.implied, **published.read(theirs, own), **renamed, **own}


def sampler_with(name: str) -> str:
    """The first published sampler with an option of that name, which is one of NAMES."""
    return next(key for key, each in SAMPLERS.items() if name in {**each.renamed, **each.special})


def _check_once(name: str, ours: str, own: Options) -> None:
    if own.get(ours) is not None:
        raise ValueError(f"{name} and {ours} are two names of one option: give one")
