"""SDAR's mixture of experts in bfloat16, whose public code nobody recorded: as close to the
formulas as a naive reading of them that rounds where that code does.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from llada_plugins.models.loading import load_model
from tests.drawn_shapes import write
from tests.test_block_causal_shapes import Oracle, draw_tensors

pytestmark = pytest.mark.floats

LENGTH, ROWS = 12, 4
CONFIG = {
    "architectures": ["SDARMoeForCausalLM"],
    "model_type": "sdar_moe",
    "hidden_act": "silu",
    "hidden_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_hidden_layers": 2,
    "vocab_size": 61,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "rope_theta": 1e4,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "block_size": 4,
    "num_experts": 12,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 24,
    "norm_topk_prob": True,
    "mask_token_id": 7,
    "eos_token_id": 3,
}


class Rounding(Oracle):
    """The formulas with Qwen3-MoE's casts, and SDAR's norm: float32 inside, rounded after.

    Softmax is in float32 too; everything else in the tensors' dtype.
    """

    def norm(self, x: Tensor, name: str) -> Tensor:
        wide = x.float()
        scale = (wide.pow(2).mean() + self.config["rms_norm_eps"]).rsqrt()
        return (self.tensors[f"{name}.weight"].float() * (wide * scale)).to(x.dtype)

    def rotated(self, x: Tensor, position: int) -> Tensor:
        exponent = -torch.arange(0, self.width, 2).float() / self.width
        angle = position * self.config["rope_theta"] ** exponent
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        a, b = x.chunk(2)
        return torch.cat([a * cos - b * sin, b * cos + a * sin])

    def attention(self, rows: list[Tensor], layer: str, start: int) -> list[Tensor]:
        heads = {
            kind: [list(self.projected(x, layer, kind)) for x in rows] for kind in ("q", "k", "v")
        }
        for kind in "qk":
            norm = f"{layer}self_attn.{kind}_norm"
            heads[kind] = [
                [self.rotated(self.norm(head, norm), place) for head in of_token]
                for place, of_token in enumerate(heads[kind], start)
            ]
        outputs = []
        for i in range(len(rows)):
            seen = (i // self.block + 1) * self.block
            found = []
            for head, query in enumerate(heads["q"][i]):
                keys, values = (
                    torch.stack([token[head // 2] for token in heads[kind][:seen]])
                    for kind in ("k", "v")
                )
                share = (keys @ query * self.width**-0.5).softmax(-1, dtype=torch.float)
                found.append(share.to(values.dtype) @ values)
            outputs.append(self.linear(torch.cat(found), f"{layer}self_attn.o_proj"))
        return outputs

    def among_all(self, logits: Tensor) -> dict[int, Tensor]:
        share = logits.softmax(-1, dtype=torch.float)
        top = share.topk(self.config["num_experts_per_tok"])
        chosen = sorted(top.indices.tolist())  # outputs are added in the experts' order
        return {e: (share[e] / top.values.sum()).to(logits.dtype) for e in chosen}


def of_a_token(error: Tensor) -> float:
    """The median token's root mean square: one whose experts a rounding changes errs far more."""
    return float(error.double().pow(2).mean(-1).sqrt().median())


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(each, marks=pytest.mark.slow) for each in range(1, 6))]
)
def test_its_error_against_exact_logits_is_at_most_twice_a_naive_readings(
    tmp_path: Path, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: each.bfloat16() for name, each in draw_tensors("sdar_moe", CONFIG, generator).items()
    }
    write(tmp_path, CONFIG, tensors)
    model = load_model(tmp_path, device="cpu", dtype="bfloat16")
    ids = torch.randint(8, 61, (ROWS, LENGTH), generator=generator)

    def logits(of: Oracle) -> Tensor:
        return torch.stack([of.logits(row) for row in ids.tolist()])

    in_double = {name: each.double() for name, each in tensors.items()}
    exact = logits(Oracle("sdar_moe", CONFIG, in_double))
    naive = of_a_token(logits(Rounding("sdar_moe", CONFIG, tensors)) - exact)
    found = model(ids)
    assert found.dtype == torch.bfloat16
    assert 0 < of_a_token(found - exact) <= 2 * naive
