"""Peers beside ours, as benchmarks.generation runs them: on the canvas of the measured step."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from llada_plugins.models.llada import LLaDA

from . import peers
from .clock import Clock
from .generation_options import Options
from .random_models import random_tokens


def peer_prompt(model: LLaDA, options: Options) -> Tensor:
    """A prompt (1, P) that fills, with a peer's answer, the canvas of the measured step."""
    length = options.prompt_length + options.gen_length - peers.NUM_BLOCKS * options.block_length
    return random_tokens(model, length, options.seed)


def peer_runs(model: LLaDA, options: Options, clock: Clock) -> dict[str, dict[str, Any]]:
    """Every peer beside ours, on the canvas of the measured step."""
    return peers.compare(
        [peers.load_peer(Path(folder), model) for folder in options.peer],
        model,
        peer_prompt(model, options),
        options.block_length,
        options.temperature,
        options.peer_repetitions,
        clock,
    )


def peer_agreement(model: LLaDA, options: Options) -> dict[str, bool]:
    """Do peers decode our greedy tokens with these weights? By the name of the case."""
    found: dict[str, bool] = {}
    for folder in options.peer:
        peer = peers.load_peer(Path(folder), model)
        found |= peers.agreement(peer, model, peer_prompt(model, options), options.block_length)
    return found


def peer_results(
    model: LLaDA, options: Options, clock: Clock, exactly: Mapping[str, bool]
) -> dict[str, Any]:
    """What peers took beside ours, and the ratios of those that ran.

    exactly: whose greedy tokens are ours in float32, where steps are measured in less.
    """
    model.compile_layers(options.compile)
    runs = peer_runs(model, options, clock) if options.peer else {}
    model.compile_layers("off")
    for name, same in exactly.items():
        runs[name]["same_in_float32"] = same
    return {
        "peers": {name: found["ratio"] for name, found in runs.items() if "ratio" in found},
        "peer_runs": runs,
    }
