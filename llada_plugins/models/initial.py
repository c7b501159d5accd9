"""A model before it is trained or loaded: without weights, or with random ones."""

from __future__ import annotations

import torch

from .llada import LLaDA


def empty_like(model: LLaDA) -> LLaDA:
    """A model of the same class, config and origin, on the meta device."""
    with torch.device("meta"):
        empty = type(model)(model.config)
    empty.origin = model.origin
    return empty


def initialise(model: LLaDA, generator: torch.Generator) -> None:
    """Random weights for training from scratch, in place.

    N(0, 0.02) embeddings, fan-in scaled projections, residual outputs shrunk by depth.
    """
    depth = (2 * model.config.n_layers) ** -0.5
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() < 2:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
                continue
            if "wte" in name:
                std = 0.02
            else:
                std = parameter.shape[-1] ** -0.5
                residual = (".attn_out.", ".ff_out.", ".mixture.down.")
                if ".blocks." in name and any(part in name for part in residual):
                    std *= depth
            parameter.normal_(0.0, std, generator=generator)
