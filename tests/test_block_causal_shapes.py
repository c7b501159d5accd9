"""Block-causal checkpoints of many shapes against a naive reading of the published formulas.

Recorded sets have one shape each, and none of SDAR's mixtures. Here heads, widths, experts,
groups, shared experts, dense layers, rotated shares, blocks and tying are drawn, and an oracle
that goes token by token reads the stored tensors.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from llada_plugins.models.llada import LLaDA
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
from tests.tolerance import largest, measured

pytestmark = pytest.mark.floats

LENGTH = 9


class Names:
    """How most of the families call the tensors of a layer, or with `llada2` how that does."""

    def __init__(self, llada2: bool) -> None:
        self.embedding = "model.word_embeddings" if llada2 else "model.embed_tokens"
        self.attention = "attention" if llada2 else "self_attn"
        self.out = "attention.dense" if llada2 else "self_attn.o_proj"
        self.norms = {
            "q": "attention.query_layernorm" if llada2 else "self_attn.q_norm",
            "k": "attention.key_layernorm" if llada2 else "self_attn.k_norm",
        }


def draw_config(family: str, choose: random.Random) -> Config:
    """A config.json of the family, of any shape."""
    architecture, model_type, more = FAMILIES[family]
    config = {
        "architectures": [architecture],
        "model_type": model_type,
        **draw_decoder(choose, num_layers=[2, 3], own_width=family != "fast_dllm_v2"),
    }
    return config | more(choose, config)


def draw_experts(choose: random.Random, number: int) -> Config:
    return {
        "num_experts": number,
        "num_experts_per_tok": choose.randint(1, number),
        "moe_intermediate_size": choose.choice([6, 9]),
    }


def draw_sdar(choose: random.Random, config: Config) -> Config:
    return {"block_size": choose.choice([2, 3, 4, 8])}


def draw_sdar_moe(choose: random.Random, config: Config) -> Config:
    normalised = {"norm_topk_prob": choose.random() < 0.5}
    return draw_sdar(choose, config) | draw_experts(choose, choose.choice([3, 5, 8])) | normalised


def draw_fast_dllm_v2(choose: random.Random, config: Config) -> Config:
    return {"bd_size": choose.choice([2, 4, 5])}


def draw_llada2(choose: random.Random, config: Config) -> Config:
    groups, size = choose.choice([1, 2, 3]), choose.choice([2, 3, 4])
    of_a_token = choose.randint(1, groups)
    return {
        **draw_experts(choose, groups * size),
        "num_experts_per_tok": choose.randint(1, of_a_token * size),
        "n_group": groups,
        "topk_group": of_a_token,
        "routed_scaling_factor": choose.choice([1.0, 2.5]),
        "num_shared_experts": choose.choice([0, 1, 2]),
        "first_k_dense_replace": choose.choice([0, 1]),
        # at least two planes: the first turns alike whatever theta is
        "partial_rotary_factor": choose.choice([0.5, 1.0]) if config["head_dim"] > 4 else 1.0,
    }


Draw = Callable[[random.Random, Config], Config]
FAMILIES: dict[str, tuple[str, str, Draw]] = {
    "sdar": ("SDARForCausalLM", "sdar", draw_sdar),
    "sdar_moe": ("SDARMoeForCausalLM", "sdar_moe", draw_sdar_moe),
    "fast_dllm_v2": ("Fast_dLLM_QwenForCausalLM", "Fast_dLLM_Qwen", draw_fast_dllm_v2),
    "llada2": ("LLaDA2MoeModelLM", "llada2_moe", draw_llada2),
}


def has_experts(config: Config, layer: int) -> bool:
    return "num_experts" in config and layer >= config.get("first_k_dense_replace", 0)


def draw_tensors(family: str, config: Config, generator: torch.Generator) -> Tensors:
    """Tensors of that config under their published names."""
    width, vocabulary = config["hidden_size"], config["vocab_size"]
    rows, names = projection_rows(config), Names(family == "llada2")
    shapes: dict[str, Shape] = {
        f"{names.embedding}.weight": (vocabulary, width),
        "model.norm.weight": (width,),
    }
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (vocabulary, width)
    for number in range(config["num_hidden_layers"]):
        layer = f"model.layers.{number}."
        shapes[f"{layer}{names.out}.weight"] = (width, rows["q"])
        shapes[f"{layer}input_layernorm.weight"] = (width,)
        shapes[f"{layer}post_attention_layernorm.weight"] = (width,)
        if family == "llada2":
            shapes[f"{layer}attention.query_key_value.weight"] = (sum(rows.values()), width)
        for each in "" if family == "llada2" else "qkv":
            shapes[f"{layer}self_attn.{each}_proj.weight"] = (rows[each], width)
            if family == "fast_dllm_v2":
                shapes[f"{layer}self_attn.{each}_proj.bias"] = (rows[each],)
        if family != "fast_dllm_v2":
            shapes |= {
                f"{layer}{norm}.weight": (head_width(config),) for norm in names.norms.values()
            }
        shapes |= shapes_of_layer(config, number, f"{layer}mlp.")
    return random_tensors(shapes, generator)


def shapes_of_layer(config: Config, layer: int, mlp: str) -> dict[str, Shape]:
    width, mlps = config["hidden_size"], {mlp: config["intermediate_size"]}
    shapes: dict[str, Shape] = {}
    if has_experts(config, layer):
        number, hidden = config["num_experts"], config["moe_intermediate_size"]
        mlps = {f"{mlp}experts.{each}.": hidden for each in range(number)}
        shapes[f"{mlp}gate.weight"] = (number, width)
        if "n_group" in config:
            shapes[f"{mlp}gate.expert_bias"] = (number,)
        if config.get("num_shared_experts"):
            mlps[f"{mlp}shared_experts."] = hidden * config["num_shared_experts"]
    for name, hidden in mlps.items():
        shapes |= mlp_shapes(name, hidden, width)
    return shapes


class Oracle:
    """The published formulas, token by token, in the dtype of the tensors."""

    def __init__(self, family: str, config: Config, tensors: Tensors) -> None:
        self.family, self.config, self.tensors = family, config, tensors
        self.names = Names(family == "llada2")
        self.width = head_width(config)
        self.block = config.get("block_size") or config.get("bd_size") or 32

    def logits(self, ids: list[int], start: int = 0) -> Tensor:
        """(L, V) of one row, whose first token stands at position `start`."""
        rows = list(self.tensors[f"{self.names.embedding}.weight"][ids])
        for number in range(self.config["num_hidden_layers"]):
            layer = f"model.layers.{number}."
            h = [self.norm(x, f"{layer}input_layernorm") for x in rows]
            rows = [x + y for x, y in zip(rows, self.attention(h, layer, start))]
            h = [self.norm(x, f"{layer}post_attention_layernorm") for x in rows]
            mixes = has_experts(self.config, number)
            mlp = self.mixture if mixes else self.mlp
            rows = [x + mlp(y, f"{layer}mlp.") for x, y in zip(rows, h)]
        tied = self.config["tie_word_embeddings"]
        head = self.tensors[f"{self.names.embedding if tied else 'lm_head'}.weight"]
        return torch.stack([head @ self.norm(x, "model.norm") for x in rows])

    def norm(self, x: Tensor, name: str) -> Tensor:
        scale = (x.pow(2).mean() + self.config["rms_norm_eps"]).sqrt()
        return self.tensors[f"{name}.weight"] * x / scale

    def linear(self, x: Tensor, name: str) -> Tensor:
        product = self.tensors[f"{name}.weight"] @ x
        return product + self.tensors.get(f"{name}.bias", 0)

    def mlp(self, x: Tensor, name: str) -> Tensor:
        gate, up = (self.linear(x, f"{name}{each}_proj") for each in ("gate", "up"))
        return self.linear(gate * torch.sigmoid(gate) * up, f"{name}down_proj")

    def projected(self, x: Tensor, layer: str, kind: str) -> Tensor:
        """The heads (H, width) of a token's queries, keys or values."""
        heads = {"q": self.config["num_attention_heads"]}
        heads |= dict.fromkeys("kv", self.config["num_key_value_heads"])
        if self.family != "llada2":
            return self.linear(x, f"{layer}self_attn.{kind}_proj").view(heads[kind], self.width)
        fused = self.linear(x, f"{layer}attention.query_key_value").view(-1, self.width)
        return dict(zip("qkv", fused.split(list(heads.values()))))[kind]

    def rotated(self, x: Tensor, position: int) -> Tensor:
        """A head at a position: a plane for each pair of dimensions, half the width apart."""
        turned, whole = x.clone(), int(self.width * self.config.get("partial_rotary_factor", 1))
        for pair in range(whole // 2):
            exponent = torch.tensor(-2 * pair / whole, dtype=x.dtype)
            angle = position * self.config["rope_theta"] ** exponent
            a, b = x[pair], x[pair + whole // 2]
            turned[pair] = a * angle.cos() - b * angle.sin()
            turned[pair + whole // 2] = b * angle.cos() + a * angle.sin()
        return turned

    def attention(self, rows: list[Tensor], layer: str, start: int) -> list[Tensor]:
        def heads(kind: str) -> list[list[Tensor]]:
            found = []
            for position, x in enumerate(rows, start):
                of_token = list(self.projected(x, layer, kind))
                if kind != "v":
                    norm = f"{layer}{self.names.norms[kind]}"
                    if f"{norm}.weight" in self.tensors:
                        of_token = [self.norm(each, norm) for each in of_token]
                    of_token = [self.rotated(each, position) for each in of_token]
                found.append(of_token)
            return found

        q, k, v = heads("q"), heads("k"), heads("v")
        ratio = len(q[0]) // len(k[0])
        outputs = []
        for i in range(len(rows)):
            last = (i + start) // self.block
            seen = [j for j in range(len(rows)) if (j + start) // self.block <= last]
            found = []
            for head, query in enumerate(q[i]):
                scores = torch.stack([query @ k[j][head // ratio] for j in seen])
                share = (scores * self.width**-0.5).softmax(-1)
                found.append(sum(each * v[j][head // ratio] for each, j in zip(share, seen)))
            outputs.append(self.linear(torch.cat(found), f"{layer}{self.names.out}"))
        return outputs

    def mixture(self, x: Tensor, mlp: str) -> Tensor:
        logits = self.tensors[f"{mlp}gate.weight"] @ x
        weights = self.grouped(logits, mlp) if self.family == "llada2" else self.among_all(logits)
        output = sum(weight * self.mlp(x, f"{mlp}experts.{e}.") for e, weight in weights.items())
        if self.config.get("num_shared_experts"):
            output = output + self.mlp(x, f"{mlp}shared_experts.")
        assert isinstance(output, Tensor)
        return output

    def among_all(self, logits: Tensor) -> dict[int, Tensor]:
        """Weights of the experts that a token takes: Qwen3-MoE's."""
        share = logits.softmax(-1)
        best = sorted(range(len(share)), key=lambda e: -float(share[e]))
        chosen = best[: self.config["num_experts_per_tok"]]
        total = sum(share[e] for e in chosen) if self.config["norm_topk_prob"] else 1
        return {e: share[e] / total for e in chosen}

    def grouped(self, logits: Tensor, mlp: str) -> dict[int, Tensor]:
        """The same of LLaDA2: the bias chooses, and is no part of a weight."""
        score = torch.sigmoid(logits)
        biased = [float(each) for each in score + self.tensors[f"{mlp}gate.expert_bias"]]
        size = len(biased) // self.config["n_group"]
        groups = [range(g, g + size) for g in range(0, len(biased), size)]
        worth = [sum(sorted(biased[e] for e in group)[-2:]) for group in groups]
        best = sorted(range(len(groups)), key=lambda g: -worth[g])[: self.config["topk_group"]]
        eligible = sorted((e for g in best for e in groups[g]), key=lambda e: -biased[e])
        chosen = eligible[: self.config["num_experts_per_tok"]]
        total = sum(score[e] for e in chosen) if len(chosen) > 1 else 1
        scale = self.config["routed_scaling_factor"]
        return {e: scale * score[e] / total for e in chosen}


SEEDS = [pytest.param(seed, marks=[pytest.mark.slow] if seed else []) for seed in range(12)]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_of_any_shape_are_those_of_the_formulas(tmp_path: Path, family: str, seed: int):
    choose, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    config = draw_config(family, choose)
    tensors = draw_tensors(family, config, generator)
    write(tmp_path, config, tensors)
    model = load_model(tmp_path, device="cpu", dtype="float32")
    assert model.config.family == family
    ids = [choose.randrange(config["vocab_size"]) for _ in range(LENGTH)]
    starts = torch.tensor([0, 3])
    positions = torch.arange(LENGTH) + starts[:, None]

    def logits(of: LLaDA) -> Tensor:
        return of(torch.tensor([ids, ids]), position_ids=positions)

    in_double = {name: each.double() for name, each in tensors.items()}
    exact = Oracle(family, config, in_double)
    expected = torch.stack([exact.logits(ids, start) for start in starts.tolist()])
    error = measured(logits, model)
    torch.testing.assert_close(logits(model).double(), expected, rtol=0, atol=error)
    # nothing of the shapes is without effect: another theta or eps gives other logits
    for name in ("rope_theta", "rms_norm_eps"):
        other = Oracle(family, {**config, name: 3 * config[name]}, in_double).logits(ids)
        assert largest(other - expected[0]) > 10 * error
