"""A checkpoint folder of each family: the recorded ones, and others made of these."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from llada_plugins.models.families import FAMILIES
from training.data.byte_tokenizer import EOS, MASK, byte_tokenizer

GOLDEN = Path(__file__).parent / "golden"
RECORDED = {"llada": GOLDEN / "llada", "remedi": GOLDEN / "remedi"}
HF = [name for name in FAMILIES if name not in RECORDED]


def stack_experts(tensors: dict[str, Tensor]) -> None:
    """As dInfer's conversion stores them."""
    experts = [name for name in tensors if ".mlp.experts." in name]
    number = 1 + max(int(name.split(".")[5]) for name in experts)
    for layer in sorted({name.split(".experts.")[0] for name in experts}):
        of = [f"{layer}.experts.{each}" for each in range(number)]
        gate, up, down = (
            torch.stack([tensors.pop(f"{each}.{part}_proj.weight") for each in of])
            for part in ("gate", "up", "down")
        )
        tensors[f"{layer}.w1"], tensors[f"{layer}.w2"] = torch.cat([gate, up], 1), down


def stack_projections(tensors: dict[str, Tensor]) -> None:
    """As dFactory's conversion stores experts."""
    of_experts = [name for name in tensors if ".mlp.experts." in name]
    stacks: dict[str, dict[int, Tensor]] = {}
    for name in of_experts:
        layer, _, rest = name.partition(".experts.")
        number, projection, _ = rest.split(".")
        stacks.setdefault(f"{layer}.experts.{projection}", {})[int(number)] = tensors.pop(name)
    for name, stack in stacks.items():
        tensors[name] = torch.stack([stack[number] for number in range(len(stack))])


def with_experts(tensors: dict[str, Tensor]) -> None:
    """Six random experts of width 16 in the place of each MLP."""
    generator = torch.Generator().manual_seed(0)
    for name in [name for name in tensors if name.endswith(".mlp.gate_proj.weight")]:
        layer = name.removesuffix(".gate_proj.weight")
        width = tensors[name].shape[1]
        for part in ("gate", "up", "down"):
            del tensors[f"{layer}.{part}_proj.weight"]
        shapes = {"gate_proj": (16, width), "up_proj": (16, width), "down_proj": (width, 16)}
        for number in range(6):
            for part, shape in shapes.items():
                weight = torch.randn(shape, generator=generator) * shape[1] ** -0.5
                tensors[f"{layer}.experts.{number}.{part}.weight"] = weight
        router = torch.randn((6, width), generator=generator) * width**-0.5
        tensors[f"{layer}.gate.weight"] = router


def without_norms(tensors: dict[str, Tensor]) -> None:
    for name in [name for name in tensors if "q_norm" in name or "k_norm" in name]:
        del tensors[name]


# family -> the recorded set that it is made of, and how its config and tensors are changed
MADE_OF: dict[str, tuple[str, dict[str, Any], Callable[[dict[str, Tensor]], None]]] = {
    "llada_moe_fused": (
        "llada_moe",
        {"architectures": ["FusedLLaDAMoEModelLM"]},
        stack_experts,
    ),
    "sdar_moe": (
        "sdar",
        {
            "architectures": ["SDARMoeForCausalLM"],
            "model_type": "sdar_moe",
            "moe_intermediate_size": 16,
            "num_experts": 6,
            "num_experts_per_tok": 2,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        },
        with_experts,
    ),
    "llada2_stacked": ("llada2", {"model_type": "llada2_moe_veomni"}, stack_projections),
    "a2d_qwen2": (
        "dream",
        {"architectures": ["A2DQwen2LMHeadModel"], "model_type": "a2d-qwen2"},
        lambda tensors: None,
    ),
    "a2d_llama": (
        "a2d_qwen3",
        {"architectures": ["A2DLlamaLMHeadModel"], "model_type": "a2d-llama"},
        without_norms,
    ),
}


def write_checkpoint(family: str, folder: Path) -> Path:
    """A checkpoint of the family in a new folder; no tokenizer."""
    source, said, change = MADE_OF.get(family, (family, {}, lambda tensors: None))
    recorded = RECORDED.get(source, GOLDEN / "families" / source)
    shutil.copytree(recorded / "checkpoint", folder)
    rewrite(folder, **said)
    retensor(folder, change)
    return folder


def with_tokenizer(family: str, folder: Path) -> Path:
    """A checkpoint of the family with the byte tokenizer, in a new folder."""
    write_checkpoint(family, folder)
    ids = byte_tokenizer(folder)
    rewrite(folder, mask_token_id=ids[MASK], eos_token_id=ids[EOS], pad_token_id=ids[EOS])
    return folder


def rewrite(folder: Path, **fields: Any) -> None:
    """Set fields of config.json; ... removes one."""
    raw = {**json.loads((folder / "config.json").read_text()), **fields}
    kept = {name: value for name, value in raw.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(kept))


def retensor(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    """Change the tensors, by stored name, in place."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
