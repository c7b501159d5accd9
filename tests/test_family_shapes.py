"""Checkpoints of many shapes against a naive reading of the published formulas.

Recorded sets have one shape for each family. Here heads, widths, numbers of experts, thetas
and tying are drawn, and an oracle that loops over heads and experts reads the stored tensors.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from torch import Tensor

from llada_plugins.models.loading import load_model
from tests.drawn_shapes import (
    Config,
    Shape,
    Tensors,
    draw_decoder,
    head_width,
    mlp_shapes,
    projection_rows,
    random_tensors,
    write,
)
from tests.tolerance import EPS, float64_casts, in_float64, largest, twice_naive

pytestmark = pytest.mark.floats

# architecture, model_type; has it q/k norms, q/k/v biases, experts, a width of heads of its own?
KINDS: dict[str, tuple[str, str, set[str]]] = {
    "llada_moe": ("LLaDAMoEModelLM", "llada", {"norms", "experts"}),
    "illada": ("ILLaDAForCausalLM", "illada", set()),
    "dream": ("DreamModel", "Dream", {"biases"}),
    "a2d_qwen3": ("A2DQwen3LMHeadModel", "a2d-qwen3", {"norms", "head_dim"}),
    "a2d_qwen2": ("A2DQwen2LMHeadModel", "a2d-qwen2", {"biases"}),
    "a2d_llama": ("A2DLlamaLMHeadModel", "a2d-llama", {"head_dim"}),
}


def draw_config(family: str, choose: random.Random) -> Config:
    """A config.json of the family, of any shape."""
    architecture, model_type, has = KINDS[family]
    config = {
        "architectures": [architecture],
        "model_type": model_type,
        **draw_decoder(
            choose,
            num_layers=[1, 3],
            own_width="head_dim" in has,
            may_tie=family != "llada_moe",
        ),
        "mask_token_id": 7,
        "eos_token_id": 3,
    }
    if "experts" in has:
        experts = choose.choice([3, 5, 8])
        config |= {
            "qk_layernorm": True,
            "num_experts": experts,
            "num_experts_per_tok": choose.randint(1, experts),
            "expert_intermediate_size": choose.choice([6, 9]),
        }
    return config


def draw_tensors(family: str, config: Config, generator: torch.Generator) -> Tensors:
    """Tensors of that config under their published names."""
    has, width, vocabulary = KINDS[family][2], config["hidden_size"], config["vocab_size"]
    rows = projection_rows(config)
    shapes: dict[str, Shape] = {
        "model.embed_tokens.weight": (vocabulary, width),
        "model.norm.weight": (width,),
    }
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (vocabulary, width)
    for number in range(config["num_hidden_layers"]):
        layer = f"model.layers.{number}."
        shapes |= {f"{layer}self_attn.{each}_proj.weight": (rows[each], width) for each in "qkv"}
        shapes[f"{layer}self_attn.o_proj.weight"] = (width, rows["q"])
        shapes[f"{layer}input_layernorm.weight"] = (width,)
        shapes[f"{layer}post_attention_layernorm.weight"] = (width,)
        if "biases" in has:
            shapes |= {f"{layer}self_attn.{each}_proj.bias": (rows[each],) for each in "qkv"}
        if "norms" in has:
            shapes |= {
                f"{layer}self_attn.{each}_norm.weight": (head_width(config),) for each in "qk"
            }
        mlps, hidden = [f"{layer}mlp."], config["intermediate_size"]
        if "experts" in has:
            shapes[f"{layer}mlp.gate.weight"] = (config["num_experts"], width)
            mlps = [f"{layer}mlp.experts.{each}." for each in range(config["num_experts"])]
            hidden = config["expert_intermediate_size"]
        for mlp in mlps:
            shapes |= mlp_shapes(mlp, hidden, width)
    return random_tensors(shapes, generator)


def naive_logits(config: Config, tensors: Tensors, ids: list[int]) -> Tensor:
    """Logits (L, V) of one row, in the dtype of the tensors, head by head."""
    eps = config["rms_norm_eps"]

    def norm(x: Tensor, name: str) -> Tensor:
        return tensors[f"{name}.weight"] * (x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt())

    def linear(x: Tensor, name: str) -> Tensor:
        product = x @ tensors[f"{name}.weight"].T
        return product + tensors[f"{name}.bias"] if f"{name}.bias" in tensors else product

    def mlp(x: Tensor, name: str) -> Tensor:
        gate, up = (linear(x, f"{name}.{each}_proj") for each in ("gate", "up"))
        return linear(gate * torch.sigmoid(gate) * up, f"{name}.down_proj")

    x = tensors["model.embed_tokens.weight"][ids]
    for number in range(config["num_hidden_layers"]):
        layer = f"model.layers.{number}"
        h = norm(x, f"{layer}.input_layernorm")
        x = x + linear(heads(config, tensors, h, layer, norm, linear), f"{layer}.self_attn.o_proj")
        h = norm(x, f"{layer}.post_attention_layernorm")
        if "num_experts" not in config:
            x = x + mlp(h, f"{layer}.mlp")
            continue
        probability = (h @ tensors[f"{layer}.mlp.gate.weight"].T).softmax(-1)
        rows = []
        for row, of_experts in zip(h, probability):
            best = of_experts.topk(config["num_experts_per_tok"]).indices.tolist()
            terms = [of_experts[e] * mlp(row, f"{layer}.mlp.experts.{e}") for e in best]
            rows.append(torch.stack(terms).sum(0))
        x = x + torch.stack(rows)
    head = "model.embed_tokens" if config["tie_word_embeddings"] else "lm_head"
    return norm(x, "model.norm") @ tensors[f"{head}.weight"].T


def heads(config: Config, tensors: Tensors, h: Tensor, layer: str, norm, linear) -> Tensor:
    """What attention gives before its output projection, (L, heads x width)."""
    number, kv = config["num_attention_heads"], config["num_key_value_heads"]
    width = head_width(config)
    position = torch.arange(len(h), dtype=h.dtype)[:, None]
    pairs = torch.arange(0, width, 2, dtype=h.dtype)
    angle = position * config["rope_theta"] ** (-pairs / width)  # (L, width / 2)

    def part(name: str, head: int) -> Tensor:
        x = linear(h, f"{layer}.self_attn.{name}_proj")[:, head * width : (head + 1) * width]
        if name == "v":
            return x
        if f"{layer}.self_attn.{name}_norm.weight" in tensors:
            x = norm(x, f"{layer}.self_attn.{name}_norm")
        a, b = x.split(width // 2, -1)
        return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)

    found = []
    for head in range(number):
        q, k, v = part("q", head), part("k", head * kv // number), part("v", head * kv // number)
        found.append((q @ k.T * width**-0.5).softmax(-1) @ v)
    return torch.cat(found, -1)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("family", KINDS)
def test_logits_of_any_shape_are_those_of_the_formulas(tmp_path: Path, family: str, seed: int):
    choose, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    config = draw_config(family, choose)
    tensors = draw_tensors(family, config, generator)
    write(tmp_path, config, tensors)
    model = load_model(tmp_path, device="cpu", dtype="float32")
    assert model.config.family == family
    ids = [choose.randrange(config["vocab_size"]) for _ in range(11)]
    naive = naive_logits(config, tensors, ids)
    exact = naive_logits(config, {name: each.double() for name, each in tensors.items()}, ids)
    # in float64, since fused attention may round float32 more coarsely than the formulas do
    with torch.no_grad(), float64_casts():
        found = in_float64(model)(torch.tensor([ids]))[0]
    # EPS in the place of EPS64 / EPS: 64 times what float64 rounds, and no formula's difference
    torch.testing.assert_close(found, exact, rtol=0, atol=twice_naive(naive, exact) * EPS)
    # nothing of the shapes is without effect: another theta or eps gives other logits
    for name in ("rope_theta", "rms_norm_eps"):
        other = naive_logits({**config, name: 3 * config[name]}, tensors, ids)
        assert largest(other - naive) > twice_naive(naive, exact)
