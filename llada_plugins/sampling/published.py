"""Option names of other families' published samplers, read as ours.

A row of FAMILIES says whose sampler its publishers use. Their names are accepted where
such a checkpoint is loaded, and mean their sampler: `alg=entropy` of a Dream is its
schedule and its confidence as well. They are no options of ours: elsewhere they are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# by sampler: their name -> ours, where that is all there is to it
RENAMED: dict[str, dict[str, str]] = {
    "dream": {"max_new_tokens": "gen_length", "diffusion_steps": "steps", "eps": "schedule_eps"},
    "mdlm": {"max_new_tokens": "gen_length", "block_size": "block_length"},
}
# by sampler: what its names mean beside that
IMPLIED: dict[str, dict[str, Any]] = {"mdlm": {"schedule": "mdlm", "last_block": "rest"}}
# Dream's alg -> our options; threshold is Fast-dLLM's addition
DREAM = {"schedule": "dream", "confidence_of": "filtered"}
ALGORITHMS: dict[str, dict[str, Any]] = {
    "origin": {**DREAM, "schedule": "independent", "confidence_source": "random"},
    "maskgit_plus": {**DREAM, "confidence_source": "tps_prob"},
    "topk_margin": {**DREAM, "confidence_source": "margin"},
    "entropy": {**DREAM, "confidence_source": "entropy"},
    "confidence_threshold": {"confidence_of": "filtered", "confidence_source": "tps_prob"},
}
WHOSE = {"dream": "Dream", "mdlm": "dllm"}
INSTEAD = {"alg": "confidence_source", **RENAMED["dream"], **RENAMED["mdlm"]}
NAMES = tuple(INSTEAD)  # every name that some sampler has and ours has not


def native(options: Mapping[str, Any], sampler: str) -> dict[str, Any]:
    """The options under our names.

    sampler: of the checkpoint's row in FAMILIES. Raises ValueError on a published name that
    this sampler has not, on a value that its `alg` has not, and on two names of one option.
    """
    theirs = {name: value for name, value in options.items() if name in INSTEAD}
    own = {name: value for name, value in options.items() if name not in INSTEAD}
    renamed = RENAMED.get(sampler, {})
    meant = dict(IMPLIED.get(sampler, {})) if theirs else {}
    for name, value in theirs.items():
        if name in renamed:
            _check_once(name, renamed[name], own)
            meant[renamed[name]] = value
        elif name == "alg" and sampler == "dream":
            _check_once(name, "confidence_source", own)
            _check_once(name, "remasking", own)
            meant |= _by_alg(value, own)
        else:
            whose = [WHOSE[each] for each in RENAMED if name in ("alg", *RENAMED[each])]
            raise ValueError(
                f"{name} is an option of {whose[0]}'s sampler, and this checkpoint comes with "
                f"another: did you mean {INSTEAD[name]!r}?"
            )
    return {**meant, **own}


def _check_once(name: str, ours: str, own: Mapping[str, Any]) -> None:
    if own.get(ours) is not None:
        raise ValueError(f"{name} and {ours} are two names of one option: give one")


def _by_alg(alg: Any, own: Mapping[str, Any]) -> dict[str, Any]:
    """Our options for a value of Dream's `alg`."""
    if alg not in ALGORITHMS:
        raise ValueError(f"alg must be one of {', '.join(ALGORITHMS)}, got {alg!r}")
    if alg != "confidence_threshold":
        return ALGORITHMS[alg]
    if own.get("threshold") is None:
        raise ValueError("alg=confidence_threshold needs threshold: give it, such as 0.9")
    # Fast-dLLM holds it to the schedule where it has no cache
    return {**ALGORITHMS[alg], "paced": own.get("cache", "auto") in ("auto", "none")}
