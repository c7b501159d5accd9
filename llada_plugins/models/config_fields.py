"""Fields of a config.json that this package does not vary: allowed, inert or refused ones."""

from __future__ import annotations

from typing import Any

# Switches of the published config that change the arithmetic: the networks implement
# exactly these values.
IMPLEMENTED = {
    "block_type": "llama",
    "activation_type": "silu",
    "layer_norm_type": "rms",
    "rope": True,
    "alibi": False,
    "attention_layer_norm": False,
    "input_emb_norm": False,
    "scale_logits": False,
    "bias_for_layer_norm": False,
    "block_group_size": 1,
    "layer_norm_with_affine": True,
    "multi_query_attention": (None, False),
    "attention_dropout": 0.0,
    "embedding_dropout": 0.0,
    "residual_dropout": 0.0,
}
# absent, they mean something else to the published code
STATED = ("block_type", "activation_type", "layer_norm_type", "rope")
# Fields of a published config that no forward pass in eval mode reads, given IMPLEMENTED.
WITHOUT_EFFECT = {
    "alibi_bias_max",
    "architectures",
    "attention_layer_norm_with_affine",
    "auto_map",
    "flash_attention",
    "init_cutoff_factor",
    "init_device",
    "init_fn",
    "init_std",
    "mlp_ratio",
    "model_type",
    "precision",
    "transformers_version",
    "use_cache",
    # transformers'
    "_name_or_path",
    "_attn_implementation",
    "bos_token_id",
    "dtype",
    "torch_dtype",
    "tie_word_embeddings",
    "id2label",
    "label2id",
    "is_encoder_decoder",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
    "chunk_size_feed_forward",
    "problem_type",
    "initializer_range",
    "quantization_config",  # read in gptq.py
    "training",  # what this package writes of how a model was made
}
# Fields by which relatives ask for other arithmetic, and the number that asks for none
# (for switches null, false, 0 or empty).
FOREIGN: dict[str, Any] = {
    **dict.fromkeys(
        (
            "rope_scaling",
            "rope_parameters",
            "sliding_window",
            "use_sliding_window",
            "layer_types",
            "attn_logit_softcapping",
            "final_logit_softcapping",
            "logit_softcap",
            "clip_qkv",
            "embedding_layer_norm",
            "norm_after",
            "qk_norm",
            "use_qk_norm",
            "attention_bias",
            "qkv_bias",
            "mlp_bias",
            "parallel_attn",
            "use_parallel_residual",
            "causal",
            "is_causal",
            "is_decoder",
            "shift_logits",
            "position_embedding_type",
            "num_experts",
            "n_experts",
            "num_local_experts",
            "moe_num_experts",
            "num_experts_per_tok",
            "n_shared_experts",
            "kv_lora_rank",
            "q_lora_rank",
            "block_size",
            "compression_config",
            "pruned_heads",
            "add_cross_attention",
        )
    ),
    **dict.fromkeys(
        (
            "partial_rotary_factor",
            "rotary_pct",
            "rope_scaling_factor",
            "rope_position_scale",
            "logit_scale",
            "logits_scaling",
            "embedding_multiplier",
            "residual_multiplier",
            "scale_emb",
            "emb_scale",
        ),
        1,
    ),
}
