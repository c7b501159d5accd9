"""Families in the layout of transformers' decoders: their config.json and their tensors.

What a config may not ask for, which tensors there must be, and experts in one stack.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from llada_plugins.files.json_files import read_json
from llada_plugins.models.families import FAMILIES
from llada_plugins.models.fingerprint import backbone_fingerprint
from llada_plugins.models.folder import read_config, special_tokens
from llada_plugins.models.llada import LLaDA
from llada_plugins.models.loading import load_model, save_model
from llada_plugins.models.mixture import StackedLinear
from tests.family_checkpoints import HF, retensor, rewrite, write_checkpoint

pytestmark = pytest.mark.floats


@pytest.fixture
def copied(tmp_path) -> Callable[[str], Path]:
    """A function from a family to a checkpoint of it, which a test may change."""
    return lambda family: write_checkpoint(family, tmp_path / family)


def error_of(folder: Path) -> str:
    with pytest.raises(ValueError) as error:
        load_model(folder, device="cpu")
    assert "\n" not in str(error.value)
    return str(error.value)


def logits(model: LLaDA) -> Tensor:
    return model(torch.arange(40).view(2, 20))


@pytest.mark.parametrize("family", HF)
def test_a_checkpoint_is_saved_as_it_was_stored(copied, tmp_path, family):
    folder = copied(family)
    model = load_model(folder, device="cpu", dtype="float32")
    assert model.config.family == family
    save_model(model, tmp_path / "saved")
    assert read_json(tmp_path / "saved" / "config.json") == read_json(folder / "config.json")
    before, after = (load_file(each / "model.safetensors") for each in (folder, tmp_path / "saved"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(logits(model), logits(load_model(tmp_path / "saved", device="cpu")))


@pytest.mark.parametrize("family", HF)
def test_a_config_of_our_own_is_written_so_that_it_is_read_again(copied, tmp_path, family):
    config = read_config(copied(family))
    raw = FAMILIES[family].write_config(config)
    assert FAMILIES[family].read_config(raw, "config.json") == config
    assert not FAMILIES[family].unknown_fields(raw)


def test_stacked_experts_are_the_same_model_as_those_stored_one_by_one(copied):
    one, other = (
        load_model(copied(each), device="cpu", dtype="float32")
        for each in ("llada_moe", "llada_moe_fused")
    )
    assert torch.equal(logits(one), logits(other))
    assert backbone_fingerprint(one) == backbone_fingerprint(other)


def test_experts_have_one_module_for_each_projection(copied):
    model = load_model(copied("llada_moe"), device="cpu")
    stacks = [module for module in model.modules() if isinstance(module, StackedLinear)]
    assert len(stacks) == 2 * model.config.n_layers
    assert {stack.weight.shape[0] for stack in stacks} == {model.config.num_experts}


def test_a_fingerprint_tells_every_expert(copied):
    folder = copied("llada_moe")
    before = backbone_fingerprint(load_model(folder, device="cpu"))
    name = "model.layers.2.mlp.experts.4.up_proj.weight"
    retensor(folder, lambda tensors: tensors[name].mul_(2))
    assert backbone_fingerprint(load_model(folder, device="cpu")) != before


CONFIG_MISTAKES = [
    ("llada_moe", dict(clip_qkv=8.0), "clip_qkv is 8.0, which is not implemented"),
    (
        "llada_moe",
        dict(shared_expert_intermediate_size=16),
        "shared_expert_intermediate_size is 16, which is not implemented",
    ),
    (
        "llada_moe",
        dict(moe_router_enable_expert_bias=True),
        "moe_router_enable_expert_bias is True, which is not implemented",
    ),
    ("llada_moe", dict(moe_layer_freq=[0, 1, 1]), "moe_layer_freq is .* not implemented"),
    ("llada_moe", dict(partial_rotary_factor=0.5), "partial_rotary_factor is 0.5, which"),
    ("llada_moe", dict(router_num_group=2), "router_num_group is 2, which is not implemented"),
    ("llada_moe", dict(num_experts_per_tok=7), "takes 7 experts of 6"),
    ("llada_moe", dict(num_experts=...), "needs num_experts; the config.json of a LLaDAMoEModelLM"),
    ("llada_moe", dict(attention_bias=True), "attention_bias is True, which is not implemented"),
    ("illada", dict(layer_norm_eps=1e-5), "layer_norm_eps is 1e-05, which is not implemented"),
    ("illada", dict(mlp_bias=True), "mlp_bias is True, which is not implemented"),
    ("illada", dict(hidden_act="gelu"), "hidden_act is 'gelu', which is not implemented"),
    ("illada", dict(num_experts=8), "num_experts is 8, which is not implemented"),
    ("illada", dict(rope_theta=...), "needs rope_theta"),
    ("dream", dict(use_sliding_window=True), "use_sliding_window is True, which is not"),
    ("dream", dict(use_mrope=True), "use_mrope is True, which is not implemented"),
    ("dream", dict(mask_token_id=336), "mask token's id 336 is outside the vocabulary of 336"),
    ("dream", dict(eos_token_id=400), "eos_token_id names 400, outside the vocabulary of 336"),
    (
        "dream",
        dict(rope_scaling={"rope_type": "yarn", "factor": 4.0}),
        "rope_scaling is .*yarn.*, which is not implemented",
    ),
    (
        "a2d_qwen3",
        dict(layer_types=["full_attention", "sliding_attention", "full_attention"]),
        "layer_types is .*, which is not implemented",
    ),
    ("a2d_qwen3", dict(sliding_window=32, use_sliding_window=...), "sliding_window is 32, which"),
    ("a2d_qwen3", dict(hidden_size="48"), "hidden_size is '48', expected a whole number"),
]


@pytest.mark.parametrize("family, fields, problem", CONFIG_MISTAKES)
def test_what_a_config_asks_for_and_is_not_here_is_refused_by_name(copied, family, fields, problem):
    folder = copied(family)
    rewrite(folder, **fields)
    message = error_of(folder)
    assert message.startswith(str(folder))
    assert re.search(problem, message), message


@pytest.mark.parametrize("stated", (None, ...), ids=("null", "absent"))
@pytest.mark.parametrize(
    "family, field, meant",
    (
        ("llada_moe", "num_key_value_heads", 4),  # as many as it has heads
        ("llada_moe", "tie_word_embeddings", False),
        ("illada", "tie_word_embeddings", True),
        ("dream", "tie_word_embeddings", False),
    ),
)
def test_null_or_absent_means_what_the_published_class_takes(copied, family, field, meant, stated):
    folder = copied(family)
    before = load_model(folder, device="cpu", dtype="float32")
    assert read_json(folder / "config.json")[field] == meant
    rewrite(folder, **{field: stated})
    assert torch.equal(logits(load_model(folder, device="cpu", dtype="float32")), logits(before))


def test_a_qwen3_without_a_head_width_has_that_of_its_class(copied):
    folder = copied("a2d_qwen3")
    rewrite(folder, head_dim=...)
    assert read_config(folder).head_dim == 128


@pytest.mark.parametrize(
    "family, field, problem",
    (
        ("llada_moe", "qk_layernorm", r"left over model\.layers\.0\.self_attn\.k_norm\.weight"),
        ("dream", "num_key_value_heads", r"k_proj\.weight is \[32, 64\], expected \[64, 64\]"),
        ("a2d_qwen3", "tie_word_embeddings", r"missing lm_head\.weight"),
    ),
)
def test_an_absent_field_that_the_tensors_contradict_is_refused(copied, family, field, problem):
    folder = copied(family)
    rewrite(folder, **{field: ...})
    assert re.search(problem, error_of(folder))


TENSOR_MISTAKES = [
    (
        "llada_moe",
        lambda tensors: [
            tensors.pop(f"model.layers.1.mlp.experts.3.{each}_proj.weight")
            for each in ("gate", "up", "down")
        ],
        r"missing model\.layers\.1\.mlp\.experts\.3\.down_proj\.weight; missing model.*gate_proj",
    ),
    (
        "llada_moe",
        lambda tensors: tensors.update(
            {"model.layers.0.mlp.experts.6.up_proj.weight": torch.ones(16, 64)}
        ),
        r"left over model\.layers\.0\.mlp\.experts\.6\.up_proj\.weight",
    ),
    (
        "llada_moe",
        lambda tensors: tensors.update(
            {"model.layers.0.mlp.experts.2.up_proj.weight": torch.ones(15, 64)}
        ),
        r"experts\.2\.up_proj\.weight is \[15, 64\], expected \[16, 64\]",
    ),
    (
        "dream",
        lambda tensors: tensors.pop("model.layers.0.self_attn.q_proj.bias"),
        r"missing model\.layers\.0\.self_attn\.q_proj\.bias",
    ),
    (
        "illada",
        lambda tensors: tensors.update({"model.layers.0.self_attn.q_norm.weight": torch.ones(8)}),
        r"left over model\.layers\.0\.self_attn\.q_norm\.weight",
    ),
    (
        "illada",
        lambda tensors: tensors.update({"lm_head.weight": torch.ones(320, 64)}),
        r"ties the head .* but lm_head\.weight is not equal to model\.embed_tokens\.weight",
    ),
]


@pytest.mark.parametrize("family, change, problem", TENSOR_MISTAKES)
def test_tensors_that_do_not_fit_the_config_are_named(copied, family, change, problem):
    folder = copied(family)
    retensor(folder, change)
    assert re.search(problem, error_of(folder))


@pytest.mark.parametrize(
    "config, tensors, problem",
    [
        ("dream", "llada_moe", r"missing model\.layers\.0\.mlp\.down_proj\.weight"),
        ("llada_moe", "illada", r"named as those of illada or .* do not belong together$"),
        (
            "llada_moe",
            "llada_moe_fused",
            r"named as those of llada_moe_fused or .* belong together$",
        ),
        ("dream", "a2d_qwen3", r"missing lm_head\.weight"),
        ("a2d_qwen3", "a2d_llama", r"missing model\.layers\.0\.self_attn\.k_norm\.weight"),
        ("sdar", "fast_dllm_v2", r"missing model\.layers\.0\.self_attn\.k_norm\.weight"),
        ("sdar", "llada2", r"missing model\.embed_tokens\.weight"),
        ("llada2", "sdar", "named as those of illada or .* do not belong together$"),
        ("llada2", "sdar_moe", r"missing model\.layers\.0\.attention\.dense\.weight"),
        ("sdar_moe", "llada2_stacked", "named as those of .*llada2_stacked .* do not belong"),
        ("fast_dllm_v2", "sdar", r"missing model\.layers\.0\.self_attn\.k_proj\.bias"),
    ],
)
def test_a_config_of_one_family_with_tensors_of_another_is_refused(
    copied, config, tensors, problem
):
    folder = copied(config)
    shutil.copyfile(copied(tensors) / "model.safetensors", folder / "model.safetensors")
    assert re.search(problem, error_of(folder)), error_of(folder)


def test_a_dense_llada_with_these_names_is_refused(copied, tiny_checkpoint):
    folder = copied("llada_moe")
    shutil.copyfile(tiny_checkpoint / "config.json", folder / "config.json")
    assert "those of llada_moe or" in error_of(folder)


def test_a_copy_of_the_embedding_is_accepted_as_a_tied_head(copied):
    folder = copied("illada")
    before = logits(load_model(folder, device="cpu"))
    retensor(
        folder,
        lambda tensors: tensors.update(
            {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}
        ),
    )
    assert torch.equal(logits(load_model(folder, device="cpu")), before)


def test_theta_may_stand_where_transformers_5_writes_it(copied):
    folder = copied("a2d_qwen3")
    before = read_config(folder)
    rope = {"rope_type": "default", "rope_theta": 1000000}
    rewrite(folder, rope_theta=..., rope_scaling=..., rope_parameters=rope)
    assert read_config(folder) == before


def test_what_the_published_router_does_not_read_is_told_but_loads(copied, caplog):
    folder = copied("llada_moe")
    rewrite(folder, norm_topk_prob=True, routed_scaling_factor=2.5, of_nobody=1)
    with caplog.at_level(logging.WARNING):
        read_config(folder)
    (line,) = caplog.messages
    assert line.endswith("norm_topk_prob, of_nobody, routed_scaling_factor")


@pytest.mark.parametrize(
    "family, vocab_size, mask, eos",
    [
        ("llada_moe", 157184, 156895, 156892),
        ("illada", 155136, 5, 2),
        ("dream", 152064, 151666, 151643),
        ("sdar", 151936, 151669, 151643),
        ("sdar_moe", 151936, 151669, 151643),
        ("llada2", 157184, 156895, 156892),
        ("fast_dllm_v2", 152064, 151665, 151645),
    ],
)
def test_published_ids_hold_where_nothing_names_others(copied, family, vocab_size, mask, eos):
    folder = copied(family)
    rewrite(folder, vocab_size=vocab_size, mask_token_id=..., eos_token_id=...)
    special = special_tokens(folder, read_config(folder))
    assert (special.mask, special.eos) == (mask, eos)


def test_a_smaller_vocabulary_has_no_published_ids(copied):
    folder = copied("llada_moe")
    assert special_tokens(folder, read_config(folder)) is None


def test_the_tokenizers_names_of_mask_and_turn_end_are_known(copied):
    folder = copied("llada_moe")
    names = ("<|endoftext|>", "<|role_end|>", "<|mask|>")
    added = [{"id": 290 + number, "content": name} for number, name in enumerate(names)]
    (folder / "tokenizer.json").write_text(json.dumps({"model": {}, "added_tokens": added}))
    special = special_tokens(folder, read_config(folder))
    assert (special.mask, special.eos, special.eot) == (292, 300, 291)
