"""The list of families: a row for each, and sizes that follow from the published configs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from llada_plugins import families
from llada_plugins.models.bitower import BiTowerLLaDA
from llada_plugins.models.families import FAMILIES
from llada_plugins.models.llada import LLaDA
from llada_plugins.models.llada_config import LLaDAConfig
from llada_plugins.reports.families import KNOWN

COMMON: dict[str, Any] = dict(
    rope_theta=1e4,
    rms_norm_eps=1e-6,
    max_sequence_length=64,
    weight_tying=False,
    include_bias=False,
    include_qkv_bias=False,
    rope_full_precision=False,
)
LLADA = dict(d_model=4096, n_heads=32, n_layers=32, mlp_hidden_size=12288, vocab_size=126464)
MOE = dict(
    d_model=2048,
    n_heads=16,
    n_layers=16,
    mlp_hidden_size=1024,
    vocab_size=157184,
    num_experts=64,
    experts_per_token=8,
    qk_norm=True,
)
QWEN3_8B = dict(
    d_model=4096,
    n_heads=32,
    n_kv_heads=8,
    head_width=128,
    n_layers=36,
    mlp_hidden_size=12288,
    vocab_size=151936,
    qk_norm=True,
)
LLADA2_MINI = dict(
    d_model=2048,
    n_heads=16,
    n_kv_heads=4,
    head_width=128,
    n_layers=20,
    mlp_hidden_size=5120,
    expert_hidden_size=512,
    vocab_size=157184,
    num_experts=256,
    experts_per_token=8,
    expert_groups=8,
    groups_per_token=4,
    num_dense_layers=1,
    num_shared_experts=1,
    router="sigmoid",
    fused_qkv=True,
    qk_norm=True,
)
QWEN2_7B = dict(
    d_model=3584,
    n_heads=28,
    n_kv_heads=4,
    n_layers=28,
    mlp_hidden_size=18944,
    vocab_size=152064,
    include_qkv_bias=True,
)
# of the published config.json
SHAPES: dict[str, dict[str, Any]] = {
    "remedi": LLADA,
    "llada": LLADA,
    "llada_moe": MOE,
    "llada_moe_fused": MOE,
    "illada": dict(
        d_model=4096,
        n_heads=32,
        n_kv_heads=8,
        n_layers=32,
        mlp_hidden_size=14336,
        vocab_size=155136,
        weight_tying=True,
    ),
    "dream": QWEN2_7B,
    "a2d_qwen3": dict(
        d_model=1024,
        n_heads=16,
        n_kv_heads=8,
        head_width=128,
        n_layers=28,
        mlp_hidden_size=3072,
        vocab_size=151936,
        qk_norm=True,
        weight_tying=True,
    ),
    "a2d_qwen2": dict(
        d_model=896,
        n_heads=14,
        n_kv_heads=2,
        n_layers=24,
        mlp_hidden_size=4864,
        vocab_size=151936,
        include_qkv_bias=True,
        weight_tying=True,
    ),
    "sdar": QWEN3_8B,
    "sdar_moe": dict(
        d_model=2048,
        n_heads=32,
        n_kv_heads=4,
        head_width=128,
        n_layers=48,
        mlp_hidden_size=6144,
        expert_hidden_size=768,
        vocab_size=151936,
        num_experts=128,
        experts_per_token=8,
        qk_norm=True,
    ),
    "llada2": LLADA2_MINI,
    "llada2_stacked": LLADA2_MINI,
    "fast_dllm_v2": QWEN2_7B,
}


def test_every_family_has_a_row():
    assert KNOWN.keys() == FAMILIES.keys()


@pytest.mark.parametrize("family", SHAPES)
def test_sizes_follow_from_the_published_configs(family):
    config = LLaDAConfig(**{**COMMON, **SHAPES[family]})
    with torch.device("meta"):
        model = (BiTowerLLaDA if family == "remedi" else LLaDA)(config)
    counted = sum(parameter.numel() for parameter in model.parameters())
    assert round(counted / 1e9, 2) == KNOWN[family].parameters


def test_the_command_prints_a_paragraph_for_each_family(capsys):
    assert families.main([]) == 0
    paragraphs = capsys.readouterr().out.split("\n\n")
    assert [each.splitlines()[0] for each in paragraphs[:-1]] == list(FAMILIES)
    for name, paragraph in zip(FAMILIES, paragraphs):
        for shown in (*FAMILIES[name].architectures, KNOWN[name].licence, KNOWN[name].mask):
            assert shown in paragraph
        assert paragraph.count("verified") == len(KNOWN[name].verified) > 0
    assert "No real weights were run" in paragraphs[-1]


def test_published_ids_are_those_of_the_list():
    for name, family in FAMILIES.items():
        if family.mask_id is not None:
            assert KNOWN[name].mask.endswith(f" {family.mask_id}")
        if family.eos_id is not None:
            assert str(family.eos_id) in KNOWN[name].ends.replace(",", "").split()


def test_words_that_mean_nothing_end_in_one_line():
    with pytest.raises(SystemExit, match="error: unrecognized arguments: dream"):
        families.main(["dream"])
