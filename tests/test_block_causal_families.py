"""SDAR, LLaDA2 and Fast-dLLM v2: what their configs may say, their tensors, tokens and adapters."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from llada_plugins.engine.engine import Engine
from llada_plugins.models.block import Block
from llada_plugins.models.families import FAMILIES
from llada_plugins.models.fingerprint import backbone_fingerprint
from llada_plugins.models.folder import read_config, special_tokens
from llada_plugins.models.llada import LLaDA
from llada_plugins.models.loading import load_model, save_model
from llada_plugins.models.lora import CONFIG, PREFIX, WEIGHTS, merged_weight
from llada_plugins.models.mixture import SigmoidRouter
from tests.family_checkpoints import retensor, rewrite, write_checkpoint

pytestmark = pytest.mark.floats

BLOCK_CAUSAL = ("sdar", "sdar_moe", "llada2", "llada2_stacked", "fast_dllm_v2")
TOKENS = torch.arange(40).view(2, 20)


@pytest.fixture
def copied(tmp_path) -> Callable[[str], Path]:
    """A function from a family to a checkpoint of it, which a test may change."""
    return lambda family: write_checkpoint(family, tmp_path / family)


def load(folder: Path, **options) -> LLaDA:
    return load_model(folder, **{"device": "cpu", "dtype": "float32", **options})


def error_of(folder: Path) -> str:
    with pytest.raises(ValueError) as error:
        load(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


# ---- config.json


@pytest.mark.parametrize(
    "family, field, default",
    [("sdar", "block_size", 4), ("sdar_moe", "block_size", 4), ("fast_dllm_v2", "bd_size", 32)],
)
def test_the_length_of_blocks_is_the_configs_or_the_familys(copied, family, field, default):
    folder = copied(family)
    for said, expected in ((16, 16), (None, default), (..., default)):
        rewrite(folder, **{field: said})
        config = read_config(folder)
        assert (config.attention, config.block_length) == ("block_causal", expected)


def test_blocks_of_a_length_that_a_config_does_not_state_are_told(copied, caplog):
    folder = copied("sdar")
    read_config(folder)
    assert not caplog.messages
    rewrite(folder, block_size=...)
    read_config(folder)
    (line,) = caplog.messages
    assert "config.json states no block_size, so blocks are of 4 tokens: " in line


def test_llada2_has_blocks_of_32(copied):
    assert read_config(copied("llada2")).block_length == 32


def test_blocks_of_another_length_are_saved_as_they_are_read(copied, tmp_path):
    folder = copied("sdar")
    rewrite(folder, block_size=8)
    save_model(load(folder), tmp_path / "saved")
    assert read_config(tmp_path / "saved").block_length == 8


CONFIG_MISTAKES = [
    ("sdar", dict(use_regular_causal=True), "use_regular_causal is True, which is not implemented"),
    ("sdar", dict(attention_bias=True), "attention_bias is True, which is not implemented"),
    ("sdar", dict(block_size=0), "block_size is 0, expected a whole number"),
    ("sdar", dict(num_experts=4), "num_experts is 4, which is not implemented"),
    ("sdar", dict(attention="full"), "attention is 'full', which is not implemented"),
    ("sdar_moe", dict(norm_topk_prob=...), "needs norm_topk_prob; the config.json of a SDARMoe"),
    ("sdar_moe", dict(mlp_only_layers=[0]), "mlp_only_layers is .0., which is not implemented"),
    ("sdar_moe", dict(decoder_sparse_step=2), "decoder_sparse_step is 2, which is not"),
    ("sdar_moe", dict(num_experts_per_tok=7), "takes 7 experts of 6"),
    ("llada2", dict(use_bias=True), "use_bias is True, which is not implemented"),
    ("llada2", dict(use_qkv_bias=True), "use_qkv_bias is True, which is not implemented"),
    ("llada2", dict(norm_head=True), "norm_head is True, which is not implemented"),
    ("llada2", dict(score_function="softmax"), "score_function is 'softmax', which is not"),
    ("llada2", dict(router_dtype="bf16"), "router_dtype is 'bf16', which is not implemented"),
    ("llada2", dict(norm_topk_prob=False), "norm_topk_prob is False, which is not implemented"),
    ("llada2", dict(use_qk_norm=False), "use_qk_norm is False, which is not implemented"),
    (
        "llada2",
        dict(moe_router_enable_expert_bias=False),
        "moe_router_enable_expert_bias is False, which is not implemented",
    ),
    (
        "llada2",
        dict(delete_token_id=156930, split_token_id=156931, expert_capacity=32),
        "delete_token_id is 156930, LLaDA2.2's token that deletes another, which is not",
    ),
    (
        "llada2",
        dict(split_token_id=156931),
        "split_token_id is 156931, LLaDA2.2's token that inserts others, which is not",
    ),
    (
        "llada2",
        dict(expert_capacity=32),
        "expert_capacity is 32, LLaDA2.2's routing by block, which is not implemented",
    ),
    ("llada2", dict(use_sliding_window=True), "sliding_window is 4096, which is not implemented"),
    ("llada2", dict(rope_scaling={"type": "yarn", "factor": 2}), "rope_scaling is .*yarn"),
    ("llada2", dict(rotary_dim=16), "rotary_dim is 16, but the other fields make 8 of it"),
    ("llada2", dict(partial_rotary_factor=...), "needs partial_rotary_factor"),
    ("llada2", dict(partial_rotary_factor=0.45, rotary_dim=...), "into heads of even width"),
    ("llada2", dict(n_group=5), "12 experts in 5 groups, 2 for each token: groups must be of one"),
    ("llada2", dict(n_group=12), "12 experts in 12 groups, .* of two experts at least"),
    ("llada2", dict(topk_group=5), "12 experts in 4 groups, 5 for each token: "),
    ("llada2", dict(num_experts_per_tok=7), "takes 7 experts of 2 groups of 3"),
    ("fast_dllm_v2", dict(layer_types=["sliding_attention"] * 3), "layer_types is .* not impl"),
    ("fast_dllm_v2", dict(use_sliding_window=True), "use_sliding_window is True, which is not"),
]


@pytest.mark.parametrize("family, fields, problem", CONFIG_MISTAKES)
def test_what_a_config_asks_for_and_is_not_here_is_refused_by_name(copied, family, fields, problem):
    folder = copied(family)
    rewrite(folder, **fields)
    message = error_of(folder)
    assert message.startswith(str(folder))
    assert re.search(problem, message), message


# ---- tensors

TENSOR_MISTAKES = [
    (
        "llada2",
        lambda tensors: tensors.pop("model.layers.1.mlp.experts.7.up_proj.weight"),
        r"missing model\.layers\.1\.mlp\.experts\.7\.up_proj\.weight$",
    ),
    (
        "llada2",
        lambda tensors: tensors.pop("model.layers.2.mlp.gate.expert_bias"),
        r"missing model\.layers\.2\.mlp\.gate\.expert_bias$",
    ),
    (
        "llada2",
        lambda tensors: tensors.update(
            {"model.layers.0.attention.query_key_value.weight": torch.ones(96, 48)}
        ),
        r"query_key_value\.weight is \[96, 48\], expected \[128, 48\]$",
    ),
    (
        "llada2_stacked",
        lambda tensors: tensors.update(
            {"model.layers.1.mlp.experts.up_proj": torch.ones(11, 12, 48)}
        ),
        r"experts\.up_proj is \[11, 12, 48\], expected \[12, 12, 48\]$",
    ),
    (
        "fast_dllm_v2",
        lambda tensors: tensors.pop("model.layers.0.self_attn.v_proj.bias"),
        r"missing model\.layers\.0\.self_attn\.v_proj\.bias$",
    ),
    (
        "sdar",
        lambda tensors: tensors.pop("lm_head.weight"),
        r"missing lm_head\.weight$",
    ),
]


@pytest.mark.parametrize("family, change, problem", TENSOR_MISTAKES)
def test_tensors_that_do_not_fit_the_config_are_named(copied, family, change, problem):
    folder = copied(family)
    retensor(folder, change)
    assert re.search(problem, error_of(folder)), error_of(folder)


def test_experts_that_dfactory_stacked_are_the_same_model(copied):
    one, other = (load(copied(each)) for each in ("llada2", "llada2_stacked"))
    assert torch.equal(one(TOKENS), other(TOKENS))
    assert backbone_fingerprint(one) == backbone_fingerprint(other)


def test_a_stacked_checkpoint_is_known_by_its_tensors_whatever_its_model_type(copied):
    folder = copied("llada2_stacked")
    rewrite(folder, model_type="llada2_moe")  # as dFactory's script leaves it
    assert load(folder).config.family == "llada2_stacked"


def test_a_tied_fast_dllm_v2_needs_no_head(copied):
    folder = copied("fast_dllm_v2")
    rewrite(folder, tie_word_embeddings=True)
    assert re.search(r"ties the head .* is not equal", error_of(folder))
    retensor(folder, lambda tensors: tensors.pop("lm_head.weight"))
    model = load(folder)
    expected = model.hidden_states(TOKENS) @ model.embedding.weight.T
    assert torch.equal(model(TOKENS), expected)


# ---- the router's bias


def test_a_bias_of_experts_stays_in_the_dtype_of_the_file(copied, tmp_path):
    folder = copied("llada2")
    name = "model.layers.1.mlp.gate.expert_bias"
    stored = load_file(folder / "model.safetensors")[name]
    model = load(folder, dtype="bfloat16")
    (router,) = {each for each in model.blocks[1].modules() if isinstance(each, SigmoidRouter)}
    for moved in (model, model.to(torch.float16), model.bfloat16()):
        assert moved.dtype != torch.float32 and router.weight.dtype == moved.dtype
        assert torch.equal(router.expert_bias, stored) and router.expert_bias.dtype == torch.float32
    save_model(model, tmp_path / "saved")
    assert torch.equal(load_file(tmp_path / "saved" / "model.safetensors")[name], stored)


def test_a_bias_chooses_experts_and_is_no_part_of_their_weights(copied):
    router = load(copied("llada2")).get_submodule("model.transformer.blocks.1.mixture.router")
    assert isinstance(router, SigmoidRouter)
    x = torch.randn(50, 48, generator=torch.Generator().manual_seed(0))
    router.expert_bias.zero_()
    before, _ = router(x)
    router.expert_bias[5] = 100.0
    chosen, weight = router(x)
    assert (chosen == 5).any(-1).all() and not (before == 5).any(-1).all()
    score = router.logits(x).sigmoid().gather(1, chosen)
    share = score / score.sum(-1, keepdim=True)
    torch.testing.assert_close(weight / 2.5, share, rtol=4 * torch.finfo(torch.float).eps, atol=0)


def test_a_fingerprint_tells_the_bias_of_experts(copied):
    folder = copied("llada2")
    before = backbone_fingerprint(load(folder))
    retensor(folder, lambda tensors: tensors["model.layers.1.mlp.gate.expert_bias"].add_(1))
    assert backbone_fingerprint(load(folder)) != before


# ---- tokens


@pytest.mark.parametrize(
    "family, mask, turn_end",
    [
        ("sdar", "<|MASK|>", "<|im_end|>"),
        ("llada2", "<|mask|>", "<|role_end|>"),
        ("fast_dllm_v2", "|<MASK>|", "<|im_end|>"),
    ],
)
def test_the_tokenizers_names_of_mask_and_turn_end_are_known(copied, family, mask, turn_end):
    folder = copied(family)
    rewrite(folder, mask_token_id=..., eos_token_id=300)
    added = [{"id": 290, "content": turn_end}, {"id": 291, "content": mask}]
    (folder / "tokenizer.json").write_text(json.dumps({"model": {}, "added_tokens": added}))
    special = special_tokens(folder, read_config(folder))
    assert (special.mask, special.eos, special.eot) == (291, 300, 290)


def test_the_ends_that_generation_config_lists_end_answers(copied):
    folder = copied("sdar")
    (folder / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [290, 295], "temperature": 0.6, "top_k": 20, "top_p": 0.95})
    )
    special = special_tokens(folder, read_config(folder))
    assert set(special.ends) == {290, 295}


# ---- chat templates

# In the form of LLaDA2's: the system line is there without a system message too.
ROLES = (
    "<role>SYSTEM</role>{% if messages[0].role == 'system' %}{{ messages[0].content + '\\n' }}"
    "{% endif %}detailed thinking off<|role_end|>{% for each in messages %}"
    "{% if each.role != 'system' %}<role>{{ {'user': 'HUMAN'}.get(each.role, each.role.upper()) }}"
    "</role>{{ each.content }}<|role_end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<role>ASSISTANT</role>{% endif %}"
)
# In the form of Qwen3's, which SDAR and TraDo have.
THINKING = (
    "{%- for each in messages %}{{- '<|im_start|>' + each.role + '\\n' + each.content }}"
    "{{- '<|im_end|>\\n' }}{%- endfor %}{%- if add_generation_prompt %}"
    "{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}"
    "{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}{%- endif %}"
)
CHAT = [{"role": "user", "content": "Why?"}]
BRIEF = {"role": "system", "content": "Be brief."}


@pytest.fixture
def chatting(tiny_checkpoint, tmp_path) -> Callable[[str], Path]:
    """A function from a chat template to a checkpoint whose tokenizer has it."""

    def write(template: str) -> Path:
        folder = shutil.copytree(tiny_checkpoint, tmp_path / "chatting")
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        said = {**settings, "chat_template": template}
        (folder / "tokenizer_config.json").write_text(json.dumps(said))
        return folder

    return write


def test_a_template_with_roles_states_its_system_line_once(chatting):
    engine = Engine(pretrained=str(chatting(ROLES)), device="cpu")
    line = "<role>SYSTEM</role>{}detailed thinking off<|role_end|>"
    rest = "<role>HUMAN</role>Why?<|role_end|><role>ASSISTANT</role>"
    assert engine.render_chat(CHAT) == line.format("") + rest
    assert engine.render_chat([BRIEF, *CHAT]) == line.format("Be brief.\n") + rest


@pytest.mark.parametrize(
    "option, opened",
    [
        ({}, ""),
        ({"enable_thinking": True}, ""),
        ({"enable_thinking": "false"}, "<think>\n\n</think>"),
    ],
    ids=str,
)
def test_an_answer_begins_with_thoughts_unless_an_option_says_no(chatting, option, opened):
    folder = chatting(THINKING)
    expected = "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n" + opened
    engine = Engine(pretrained=str(folder), device="cpu", **option)
    assert engine.render_chat(CHAT).removesuffix("\n\n") == expected.removesuffix("\n\n")


@pytest.mark.parametrize("tokenizer_only", (False, True))
def test_opencompass_renders_chats_without_thoughts_too(chatting, tokenizer_only):
    pytest.importorskip("opencompass")
    from llada_plugins import opencompass_models

    asked = dict(device="cpu", chat=True, enable_thinking=False, tokenizer_only=tokenizer_only)
    model = opencompass_models.LLaDA(str(chatting(THINKING)), **asked)
    rendered = model.template_parser.parse_template("Why?", "gen")
    assert rendered.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


def test_thoughts_are_refused_where_the_template_reads_nothing_of_them(chatting):
    with pytest.raises(ValueError, match="^enable_thinking=False has no effect: the chat template"):
        Engine(pretrained=str(chatting(ROLES)), device="cpu", enable_thinking=False)


# ---- adapters and packed weights


def test_an_adapter_of_the_fused_projection_loads_under_either_name(copied, tmp_path):
    """As PEFT has it beside the published code, which calls the matrix query_key_value."""
    folder, generator = copied("llada2"), torch.Generator().manual_seed(0)
    theirs, ours = "model.layers.1.attention.query_key_value", "model.transformer.blocks.1.qkv_proj"
    down = torch.randn(2, 48, generator=generator)
    up = torch.randn(128, 2, generator=generator)
    for name in (theirs, ours):
        adapter = tmp_path / name
        adapter.mkdir()
        tensors = {
            f"{PREFIX}{name}.lora_{part}.weight": each for part, each in zip("AB", (down, up))
        }
        save_file(tensors, adapter / WEIGHTS)
        said = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": [name]}
        (adapter / CONFIG).write_text(json.dumps(said))
        save_model(load(folder, peft=adapter), tmp_path / "merged")
        before, after = (
            load_file(each / "model.safetensors") for each in (folder, tmp_path / "merged")
        )
        changed = {each for each in before if not torch.equal(before[each], after[each])}
        assert changed == {f"{theirs}.weight"}
        expected = merged_weight(before[f"{theirs}.weight"], down, up, 1.0)
        assert torch.equal(after[f"{theirs}.weight"], expected)


@pytest.mark.parametrize("family", BLOCK_CAUSAL)
def test_quantisation_reaches_every_matrix_of_a_block_but_its_router(copied, family):
    pytest.importorskip("torchao")
    model = load(copied(family), quantize="int8")
    plain = [
        name
        for name, module in model.named_modules()
        if type(getattr(module, "weight", None)) is nn.Parameter and module.weight.dim() > 1
    ]
    head = ["model.transformer.wte", "model.transformer.ff_out"]
    routers = [name for name in plain if name.endswith(".router")]
    assert set(plain) == {*head, *routers}
    num_mixtures = sum(isinstance(each, Block) and each.has_experts for each in model.modules())
    assert len(routers) == num_mixtures


@pytest.mark.parametrize("family", ("sdar_moe", "llada2"))
def test_gptq_of_experts_is_refused(copied, family):
    folder = copied(family)
    said = {"quant_method": "gptq", "bits": 4, "group_size": 8}
    rewrite(folder, quantization_config=said)
    packed = {"model.layers.0.self_attn.q_proj.qweight": torch.ones(8, 64, dtype=torch.int32)}
    retensor(folder, lambda tensors: tensors.update(packed))
    assert "is GPTQ, which is not implemented for experts" in error_of(folder)


@pytest.mark.parametrize("family", BLOCK_CAUSAL)
def test_every_row_has_block_causal_attention_alone(family):
    assert FAMILIES[family].attentions == ("block_causal",)


def test_a_model_in_bfloat16_sums_an_experts_outputs_in_float32(copied):
    """The published router's weights are fp32; rounded ones would give another sum."""
    model = load(copied("llada2"), dtype="bfloat16")
    router = model.get_submodule("model.transformer.blocks.1.mixture.router")
    x: Tensor = torch.randn(5, 48, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert router(x)[1].dtype == torch.float32
