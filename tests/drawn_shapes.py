"""What tests of checkpoints of any shape draw alike: a decoder's config, its MLPs, its tensors."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

Config = dict[str, Any]
Shape = tuple[int, ...]
Tensors = dict[str, Tensor]


def draw_decoder(
    choose: random.Random, *, num_layers: list[int], may_tie: bool = True, own_width: bool
) -> Config:
    """What all families' config.json say of a decoder.

    own_width: heads have a width of their own, and need not make up the hidden size.
    """
    kv_heads, ratio = choose.choice([1, 2, 3]), choose.choice([1, 2, 4])
    head_dim = choose.choice([4, 8, 12])
    config = {
        "num_attention_heads": kv_heads * ratio,
        "num_key_value_heads": kv_heads,
        "hidden_size": kv_heads * ratio * head_dim,
        "intermediate_size": choose.choice([20, 33]),
        "num_hidden_layers": choose.choice(num_layers),
        "vocab_size": choose.choice([40, 61]),
        "rope_theta": choose.choice([100.0, 10000.0, 5e5]),
        "rms_norm_eps": choose.choice([1e-4, 1e-3, 1e-2]),
        "max_position_embeddings": 64,
        "hidden_act": "silu",
        "tie_word_embeddings": may_tie and choose.random() < 0.5,
    }
    if own_width:
        config |= {"head_dim": head_dim, "hidden_size": choose.choice([16, 24, 40])}
    return config


def head_width(config: Config) -> int:
    return config.get("head_dim", config["hidden_size"] // config["num_attention_heads"])


def projection_rows(config: Config) -> dict[str, int]:
    """Of queries, keys and values."""
    kv_rows = config["num_key_value_heads"] * head_width(config)
    return {"q": config["num_attention_heads"] * head_width(config), "k": kv_rows, "v": kv_rows}


def mlp_shapes(mlp: str, hidden: int, width: int) -> dict[str, Shape]:
    """The matrices of a gated MLP, or of an expert, whose names begin so."""
    shapes: dict[str, Shape] = {
        f"{mlp}{each}_proj.weight": (hidden, width) for each in ("gate", "up")
    }
    return {**shapes, f"{mlp}down_proj.weight": (width, hidden)}


def random_tensors(shapes: Mapping[str, Shape], generator: torch.Generator) -> Tensors:
    """Vectors, which scale, are near 1; the outputs of a matrix are as large as its inputs."""
    return {
        name: torch.randn(shape, generator=generator) * shape[-1] ** -0.5 + (len(shape) == 1)
        for name, shape in shapes.items()
    }


def write(folder: Path, config: Config, tensors: Tensors) -> None:
    """A checkpoint of them in a folder that is there."""
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
