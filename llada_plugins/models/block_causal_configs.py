"""What config.json says of families with block-causal attention, and their tensors' names.

No token sees a later block than its own, so keys and values of finished blocks never change.
"""

from __future__ import annotations

from typing import Any

from llada_plugins.files.json_files import nullable, one_of

from .hf_layout import (
    ABSENT,
    BLOCK,
    DOWN,
    EXPERTS,
    FIELDS,
    GATE_UP,
    LAYER,
    MLP,
    OWN_BLOCKS,
    ROUTER,
    HFConfig,
)
from .layout import Layout, Part

BLOCK_CAUSAL: dict[str, Any] = {"attention": "block_causal"}

# ---- SDAR and TraDo (arXiv 2510.06303, 2509.06949): Qwen3's body and its mixture of experts

SDAR = HFConfig(
    "SDARForCausalLM",
    "sdar",
    {**FIELDS, "block_size": "block_length"},
    absent={**ABSENT, "head_dim": 128, "block_size": 4},
    constants={**BLOCK_CAUSAL, "qk_norm": True, "norm_casts_last": True},
    # causal among the tokens of a prompt
    refused=frozenset({"use_regular_causal"}),
)
SDAR_MOE = SDAR._replace(
    architecture="SDARMoeForCausalLM",
    model_type="sdar_moe",
    fields={
        **SDAR.fields,
        "moe_intermediate_size": "expert_hidden_size",
        "num_experts": "num_experts",
        "num_experts_per_tok": "experts_per_token",
        "norm_topk_prob": "normalised_experts",
    },
    refused=SDAR.refused | {"mlp_only_layers"},
    neutral={"decoder_sparse_step": nullable(one_of(1))},
    stated={"decoder_sparse_step": 1, "mlp_only_layers": []},
)

# ---- Fast-dLLM v2 (arXiv 2509.26328): Qwen2.5's body; its biases have no field

FAST_DLLM_V2 = HFConfig(
    "Fast_dLLM_QwenForCausalLM",
    "Fast_dLLM_Qwen",
    {**FIELDS, "bd_size": "block_length"},
    absent={**ABSENT, "bd_size": 32},
    constants={**BLOCK_CAUSAL, "include_qkv_bias": True},
)

# ---- LLaDA2.0 and 2.1 (arXiv 2512.15745): a mixture of its own

LLADA2_NAMES = {
    "model.word_embeddings": "model.transformer.wte",
    "model.norm": "model.transformer.ln_f",
    "lm_head": "model.transformer.ff_out",
    f"{LAYER}input_layernorm": f"{BLOCK}attn_norm",
    f"{LAYER}post_attention_layernorm": f"{BLOCK}ff_norm",
    f"{LAYER}attention.query_key_value": f"{BLOCK}qkv_proj",
    f"{LAYER}attention.query_layernorm": f"{BLOCK}q_norm",
    f"{LAYER}attention.key_layernorm": f"{BLOCK}k_norm",
    f"{LAYER}attention.dense": f"{BLOCK}attn_out",
    **MLP,
    **ROUTER,
    f"{LAYER}mlp.shared_experts.gate_proj": f"{BLOCK}mixture.shared.ff_proj",
    f"{LAYER}mlp.shared_experts.up_proj": f"{BLOCK}mixture.shared.up_proj",
    f"{LAYER}mlp.shared_experts.down_proj": f"{BLOCK}mixture.shared.ff_out",
}
LLADA2_EXPERTS = Layout(LLADA2_NAMES, EXPERTS.parts)
# as dFactory stacks them for training
LLADA2_STACKED = Layout(
    LLADA2_NAMES,
    {
        f"{LAYER}mlp.experts.gate_proj": Part(GATE_UP, share=(0, 2)),
        f"{LAYER}mlp.experts.up_proj": Part(GATE_UP, share=(1, 2)),
        f"{LAYER}mlp.experts.down_proj": Part(DOWN),
    },
)
LLADA2 = HFConfig(
    "LLaDA2MoeModelLM",
    "llada2_moe",
    {
        **FIELDS,
        "partial_rotary_factor": "rotary_share",
        "moe_intermediate_size": "expert_hidden_size",
        "num_experts": "num_experts",
        "num_experts_per_tok": "experts_per_token",
        "first_k_dense_replace": "num_dense_layers",
        "num_shared_experts": "num_shared_experts",
        "n_group": "expert_groups",
        "topk_group": "groups_per_token",
        "routed_scaling_factor": "expert_scale",
    },
    absent={**ABSENT, "num_shared_experts": 0},
    also=OWN_BLOCKS,
    constants={
        **BLOCK_CAUSAL,
        "block_length": 32,
        "fused_qkv": True,
        "qk_norm": True,
        "router": "sigmoid",
        "normalised_experts": True,
    },
    refused=frozenset(
        (
            "use_bias",
            "use_qkv_bias",
            "norm_head",
            "norm_softmax",
            "using_split_qkv_in_self_attention",
        )
    ),
    newer={
        "expert_capacity": "LLaDA2.2's routing by block",
        "delete_token_id": "LLaDA2.2's token that deletes another",
        "split_token_id": "LLaDA2.2's token that inserts others",
    },
    neutral={
        "score_function": nullable(one_of("sigmoid")),
        "router_dtype": nullable(one_of("fp32")),
        "moe_router_enable_expert_bias": nullable(one_of(True)),
        "norm_topk_prob": nullable(one_of(True)),
        "use_qk_norm": nullable(one_of(True)),
        "use_rmsnorm": nullable(one_of(True)),
    },
    repeats={"rotary_dim": "rotary_width"},
    stated={
        "score_function": "sigmoid",
        "router_dtype": "fp32",
        "moe_router_enable_expert_bias": True,
        "norm_topk_prob": True,
        "use_bias": False,
        "use_qkv_bias": False,
        "use_sliding_window": False,
    },
)
