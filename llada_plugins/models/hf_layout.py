"""Families whose checkpoints look like transformers' own decoders: tensors and configs.

A row of HF_CONFIGS says what differs. A field that asks for arithmetic which is not here is
refused by name; one that nobody knows is worth a warning.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from llada_plugins.files.json_files import (
    FLAG,
    Kind,
    either,
    list_of,
    misfit,
    nullable,
    number,
    one_of,
    record,
    same,
    short,
    whole,
)

from .config_fields import FOREIGN, WITHOUT_EFFECT
from .layout import Layout, Part
from .llada_config import (
    ATTENTIONS,
    ENDS,
    OPTIONAL,
    REQUIRED,
    WIDTH,
    Attention,
    LLaDAConfig,
    refuse_foreign,
    token_ids,
)

LAYER, BLOCK = "model.layers.N.", "model.transformer.blocks.N."
NAMES = {
    "model.embed_tokens": "model.transformer.wte",
    "model.norm": "model.transformer.ln_f",
    "lm_head": "model.transformer.ff_out",
    f"{LAYER}input_layernorm": f"{BLOCK}attn_norm",
    f"{LAYER}post_attention_layernorm": f"{BLOCK}ff_norm",
    **{f"{LAYER}self_attn.{each}_proj": f"{BLOCK}{each}_proj" for each in "qkv"},
    **{f"{LAYER}self_attn.{each}_norm": f"{BLOCK}{each}_norm" for each in "qk"},
    f"{LAYER}self_attn.o_proj": f"{BLOCK}attn_out",
}
MLP = {
    f"{LAYER}mlp.gate_proj": f"{BLOCK}ff_proj",
    f"{LAYER}mlp.up_proj": f"{BLOCK}up_proj",
    f"{LAYER}mlp.down_proj": f"{BLOCK}ff_out",
}
ROUTER = {f"{LAYER}mlp.gate": f"{BLOCK}mixture.router"}
GATE_UP, DOWN = f"{BLOCK}mixture.gate_up.weight", f"{BLOCK}mixture.down.weight"
EXPERT = f"{LAYER}mlp.experts.N."

DENSE = Layout({**NAMES, **MLP})
# a tensor for each matrix of each expert
EXPERTS = Layout(
    {**NAMES, **ROUTER},
    {
        f"{EXPERT}gate_proj.weight": Part(GATE_UP, numbered=True, share=(0, 2)),
        f"{EXPERT}up_proj.weight": Part(GATE_UP, numbered=True, share=(1, 2)),
        f"{EXPERT}down_proj.weight": Part(DOWN, numbered=True),
    },
)
# stacked as ours are, by dInfer's conversion
FUSED_EXPERTS = Layout(
    {**NAMES, **ROUTER}, {f"{LAYER}mlp.w1": Part(GATE_UP), f"{LAYER}mlp.w2": Part(DOWN)}
)

# fields of config.json -> ours
FIELDS = {
    "hidden_size": "d_model",
    "num_attention_heads": "n_heads",
    "num_key_value_heads": "n_kv_heads",
    "num_hidden_layers": "n_layers",
    "vocab_size": "vocab_size",
    "intermediate_size": "mlp_hidden_size",
    "max_position_embeddings": "max_sequence_length",
    "rope_theta": "rope_theta",
    "rms_norm_eps": "rms_norm_eps",
    "tie_word_embeddings": "weight_tying",
}
MAY_SAY: dict[str, Kind] = {
    "head_dim": nullable(WIDTH),
    "mask_token_id": OPTIONAL["mask_token_id"],
    "eos_token_id": ENDS,
    "pad_token_id": OPTIONAL["pad_token_id"],
    "attention": nullable(one_of(*ATTENTIONS)),
    "block_length": nullable(whole(1, 2**16)),
}
ALSO = {"head_dim": "head_width", "mask_token_id": "mask_token_id", "pad_token_id": "pad_token_id"}
KINDS: dict[str, Kind] = {
    **REQUIRED,
    "n_kv_heads": nullable(WIDTH),
    "qk_norm": FLAG,
    "num_experts": whole(1, 2**16),
    "experts_per_token": whole(1, 2**16),
    "expert_hidden_size": WIDTH,
    "num_dense_layers": whole(0, 1000),
    "num_shared_experts": whole(0, 2**16),
    "expert_groups": whole(1, 2**16),
    "groups_per_token": whole(1, 2**16),
    "expert_scale": number(1e-6, 1e6),
    "normalised_experts": FLAG,
    "rotary_share": number(1e-6, 1),
    "block_length": whole(1, 2**16),
}
# What the published classes take where config.json says null or nothing; transformers leaves
# out what is its own default. A wrong guess is no risk: then the tensors do not fit.
ABSENT: dict[str, Any] = {"num_key_value_heads": None, "tie_word_embeddings": False}
# Every layer attends to every token. transformers' Qwen2 and Qwen3 name a window that counts
# only where use_sliding_window is true.
FULL_ATTENTION = nullable(list_of(one_of("full_attention")))
# without effect in eval mode, or where no layer has what they are about
INERT = {
    "attention",  # ours: where a family may have either, it is read
    "max_window_layers",
    "attention_dropout",
    "resid_pdrop",
    "hidden_act",
    "dense_intermediate_size",
    "output_router_logits",
    "router_aux_loss_coef",
    "embedding_dropout",
    "output_dropout",
    "fuse_cross_entropy",
    "ep_size",
    "debug",
}


class HFConfig(NamedTuple):
    """What the config.json of a family says."""

    architecture: str
    model_type: str
    fields: Mapping[str, str] = FIELDS  # theirs -> ours, required but for those of `absent`
    absent: Mapping[str, Any] = ABSENT  # theirs -> what null or nothing means
    also: Mapping[str, str] = ALSO  # theirs -> ours, for those that need not be there
    constants: Mapping[str, Any] = {}  # of ours, what the family always has
    # further fields that must be absent, null, false or empty: arithmetic that is not here
    refused: frozenset[str] = frozenset()
    # the same of a newer model, with what it asks for
    newer: Mapping[str, str] = {}
    # fields with the kind that their values must be of, which asks for nothing
    neutral: Mapping[str, Kind] = {}
    # further fields of a config that is written here, since the published class has others
    stated: Mapping[str, Any] = {}
    # fields that repeat what others say -> our name of that
    repeats: Mapping[str, str] = {}
    # Fields that the published code does not read, and the published values: others are
    # worth a warning.
    unread: Mapping[str, tuple[Any, ...]] = {}

    @property
    def attention(self) -> Attention:
        """What tokens see where config.json does not say."""
        attention: Attention = self.constants.get("attention", "full")
        return attention

    @property
    def attentions(self) -> tuple[Attention, ...]:
        """All that its checkpoints may have, the default first."""
        others = [each for each in ATTENTIONS if each != self.attention]
        return (self.attention, *others) if "attention" in self.also else (self.attention,)

    @property
    def _may_say(self) -> dict[str, Kind]:
        return {name: MAY_SAY[name] for name in (*self.also, "eos_token_id")}

    def read(self, raw: Mapping[str, Any], source: str) -> LLaDAConfig:
        """Ours of a config.json; raises ValueError in one line."""
        absent = {name: value for name, value in self.absent.items() if raw.get(name) is None}
        said = {**raw, **absent}
        parameters = said.get("rope_parameters")
        if said.get("rope_theta") is None and isinstance(parameters, Mapping):
            said["rope_theta"] = parameters.get("rope_theta")  # transformers 5 keeps it there
        stated = self.fields.keys() - absent.keys()
        if missing := [name for name in self.fields if name in stated and said.get(name) is None]:
            raise ValueError(
                f"{source}: needs {', '.join(missing)}; the config.json of a "
                f"{self.architecture} states them"
            )
        kinds = {name: KINDS[ours] for name, ours in self.fields.items()}
        if problem := misfit(record(kinds, self._may_say), said):
            raise ValueError(f"{source}: {problem}")
        self._refuse(said, source)
        ends = token_ids(said.get("eos_token_id"))
        fields = {ours: said[name] for name, ours in self.fields.items()}
        fields |= {
            ours: said[name] for name, ours in self.also.items() if said.get(name) is not None
        }
        config = LLaDAConfig(
            **{**PLAIN, **self.constants, **fields},
            eos_token_id=ends[0] if ends else None,
            more_eos_token_ids=ends[1:],
        )
        config.check(source)
        self._check_repeats(config, said, source)
        return config

    def _check_repeats(self, config: LLaDAConfig, said: Mapping[str, Any], source: str) -> None:
        """Raise ValueError where a field that repeats what others say says something else."""
        for name, ours in self.repeats.items():
            if said.get(name) is not None and not same(said[name], getattr(config, ours)):
                raise ValueError(
                    f"{source}: {name} is {short(said[name])}, but the other fields make "
                    f"{getattr(config, ours)} of it"
                )

    def _refuse(self, said: Mapping[str, Any], source: str) -> None:
        """Raise ValueError where a field asks for arithmetic that is not here."""
        kinds = {"hidden_act": one_of("silu"), "layer_types": FULL_ATTENTION, **self.neutral}
        if "attention" not in self.also:
            kinds["attention"] = nullable(one_of(self.attention))
        for name, kind in kinds.items():
            if name in said and (problem := misfit(kind, said[name])):
                raise ValueError(
                    f"{source}: {name} is {short(said[name])}, which is not implemented: {problem}"
                )
        foreign = {**FOREIGN, **dict.fromkeys((*self.refused, *self.newer))}
        accepted = {*self.fields, *kinds, "head_dim"}
        if same(said.get("use_sliding_window", True), False):
            accepted.add("sliding_window")
        refuse_foreign(
            {name: value for name, value in said.items() if name not in accepted},
            source,
            foreign,
            said["rope_theta"],
            self.newer,
        )

    def write(self, config: LLaDAConfig) -> dict[str, Any]:
        """The published form of ours."""
        ends = [config.eos_token_id, *config.more_eos_token_ids]
        stated = {name: getattr(config, ours) for name, ours in self.also.items()}
        usual = {**self.constants, "attention": self.attention}
        for name in ("attention", "block_length"):
            if stated.get(name) == usual.get(name):
                stated.pop(name, None)
        stated["eos_token_id"] = ends if len(ends) > 1 else ends[0]
        return {
            "architectures": [self.architecture],
            "model_type": self.model_type,
            "hidden_act": "silu",
            **self.stated,
            **{name: getattr(config, ours) for name, ours in self.fields.items()},
            **{name: value for name, value in stated.items() if value is not None},
        }

    def unknown(self, raw: Mapping[str, Any]) -> list[str]:
        """Fields that nobody knows, or that the published code passes over."""
        known = WITHOUT_EFFECT | FOREIGN.keys() | self._may_say.keys() | INERT
        known |= (
            self.fields.keys()
            | self.refused
            | self.newer.keys()
            | self.neutral.keys()
            | self.repeats.keys()
            | self.stated.keys()
        )
        known |= {
            name
            for name, values in self.unread.items()
            if any(same(raw.get(name), value) for value in values)
        }
        return sorted(raw.keys() - known)


# What published config.json files of a family do not say, and what is saved here does.
OWN_BLOCKS = {**ALSO, "block_length": "block_length"}
# dllm trains its models with either attention (mdlm, bd3lm), and their config.json does not say
# with which; blocks of 32 are the default of its sampler for the second.
A2D: dict[str, Any] = dict(also={**OWN_BLOCKS, "attention": "attention"})
A2D_BLOCKS = {"block_length": 32}
PLAIN: dict[str, Any] = dict(include_bias=False, include_qkv_bias=False, rope_full_precision=False)
# LLaDA-MoE: experts in the place of MLPs
MOE_FIELDS = {
    **{name: ours for name, ours in FIELDS.items() if name != "intermediate_size"},
    "expert_intermediate_size": "mlp_hidden_size",
    "num_experts": "num_experts",
    "num_experts_per_tok": "experts_per_token",
    "qk_layernorm": "qk_norm",
}
ALL_EXPERTS = nullable(either(one_of(1), list_of(one_of(1))))
LLADA_MOE = HFConfig(
    "LLaDAMoEModelLM",
    "llada",  # as a dense LLaDA says too
    MOE_FIELDS,
    absent={**ABSENT, "qk_layernorm": False},
    refused=frozenset(
        (
            "shared_expert_intermediate_size",
            "moe_router_enable_expert_bias",
            "router_num_group",
            "router_topk_group",
        )
    ),
    neutral={"moe_layer_freq": ALL_EXPERTS},
    unread={
        "moe_router_score_function": (None, "softmax"),
        "norm_topk_prob": (None, False),
        "routed_scaling_factor": (None, 1),
    },
)
ILLADA = HFConfig(
    "ILLaDAForCausalLM",
    "illada",
    absent={**ABSENT, "tie_word_embeddings": True},
    refused=frozenset({"layer_norm_eps"}),
)
DREAM = HFConfig(
    "DreamModel",
    "Dream",
    constants={"include_qkv_bias": True},
    refused=frozenset({"use_mrope"}),
)
A2D_QWEN3 = HFConfig(
    "A2DQwen3LMHeadModel",
    "a2d-qwen3",
    absent={**ABSENT, "head_dim": 128},
    constants={"qk_norm": True, **A2D_BLOCKS},
    **A2D,
)
A2D_QWEN2 = HFConfig(
    "A2DQwen2LMHeadModel",
    "a2d-qwen2",
    constants={"include_qkv_bias": True, **A2D_BLOCKS},
    **A2D,
)
A2D_LLAMA = HFConfig("A2DLlamaLMHeadModel", "a2d-llama", constants=A2D_BLOCKS, **A2D)
