"""The LLaDA transformer in reading order: bidirectional, pre-norm, SwiGLU, RoPE; parameter names equal the published checkpoint's.

Numerically equal to the published modeling code (tests/test_model.py), without remote code, import side effects or a
pinned transformers. Nothing here knows of samplers, masks to fill or harnesses; `checkpoint.py` loads and saves it.
"""
from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from llada_plugins.files.json_files import (
    FLAG,
    Kind,
    either,
    list_of,
    misfit,
    nullable,
    number,
    record,
    same,
    short,
    whole,
)

from .submodules import home, is_plain_linear, table

if TYPE_CHECKING:
    from .origin import Origin

# Switches of the published config that change the arithmetic: this module implements exactly these values.
IMPLEMENTED = {
    "block_type": "llama", "activation_type": "silu", "layer_norm_type": "rms", "rope": True, "alibi": False,
    "attention_layer_norm": False, "input_emb_norm": False, "scale_logits": False, "bias_for_layer_norm": False,
    "block_group_size": 1, "layer_norm_with_affine": True, "multi_query_attention": (None, False),
    "attention_dropout": 0.0, "embedding_dropout": 0.0, "residual_dropout": 0.0,
}

STATED = ("block_type", "activation_type", "layer_norm_type", "rope")        # absent, they mean something else to the published code
# Fields of a published config that no forward pass in eval mode reads, given IMPLEMENTED.
WITHOUT_EFFECT = {
    "alibi_bias_max", "architectures", "attention_layer_norm_with_affine", "auto_map", "flash_attention", "init_cutoff_factor",
    "init_device", "init_fn", "init_std", "mlp_ratio", "model_type", "precision", "transformers_version", "use_cache",
    "_name_or_path", "_attn_implementation", "bos_token_id", "dtype", "torch_dtype", "tie_word_embeddings",        # transformers'
    "id2label", "label2id", "is_encoder_decoder", "output_attentions", "output_hidden_states", "return_dict",
    "chunk_size_feed_forward", "problem_type", "initializer_range",
    "quantization_config",        # read in gptq.py
    "training",                   # what this package writes of how a model was made
}
# Fields by which relatives ask for other arithmetic, and the number that asks for none (for switches null, false, 0 or empty).
FOREIGN: dict[str, Any] = {
    **dict.fromkeys((
        "rope_scaling", "rope_parameters", "sliding_window", "use_sliding_window", "layer_types", "attn_logit_softcapping",
        "final_logit_softcapping", "logit_softcap", "clip_qkv", "embedding_layer_norm", "norm_after", "qk_norm", "use_qk_norm",
        "attention_bias", "qkv_bias", "mlp_bias", "parallel_attn", "use_parallel_residual", "causal", "is_causal", "is_decoder",
        "shift_logits", "position_embedding_type", "num_experts", "n_experts", "num_local_experts", "moe_num_experts",
        "num_experts_per_tok", "n_shared_experts", "kv_lora_rank", "q_lora_rank", "block_size", "compression_config",
        "pruned_heads", "add_cross_attention")),
    **dict.fromkeys((
        "partial_rotary_factor", "rotary_pct", "rope_scaling_factor", "rope_position_scale", "logit_scale", "logits_scaling",
        "embedding_multiplier", "residual_multiplier", "scale_emb", "emb_scale"), 1),
}
LAYERS, WIDTH, TOKENS = whole(1, 1000), whole(1, 2**20), whole(1, 2**24)        # far above any model, far below what memory holds
TOKEN = whole(0, 2**24 - 1)
ENDS = nullable(either(TOKEN, list_of(TOKEN)))        # eos_token_id: Llama 3 and its heirs list several
REQUIRED: dict[str, Kind] = {
    "d_model": WIDTH, "n_heads": WIDTH, "n_layers": LAYERS, "vocab_size": TOKENS, "mlp_hidden_size": WIDTH,
    "max_sequence_length": TOKENS, "rope_theta": number(1, 1e12), "rms_norm_eps": number(1e-20, 1), "weight_tying": FLAG,
    "include_bias": FLAG, "include_qkv_bias": FLAG, "rope_full_precision": FLAG,
}
OPTIONAL: dict[str, Kind] = {
    "n_kv_heads": nullable(WIDTH), "embedding_size": nullable(TOKENS), "mask_token_id": nullable(TOKEN), "eos_token_id": ENDS,
    "pad_token_id": nullable(whole(-1, 2**24 - 1)),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LLaDAConfig:
    """The fields of the published config.json that this module reads; none has a silent default that changes the arithmetic."""

    d_model: int
    n_heads: int
    n_layers: int
    vocab_size: int
    mlp_hidden_size: int
    max_sequence_length: int
    rope_theta: float
    rms_norm_eps: float
    weight_tying: bool
    include_bias: bool
    include_qkv_bias: bool
    rope_full_precision: bool
    n_kv_heads: int | None = None
    embedding_size: int | None = None
    mask_token_id: int | None = None
    eos_token_id: int | None = None                    # the one that training appends
    pad_token_id: int | None = None
    more_eos_token_ids: tuple[int, ...] = ()           # the others that end an answer, where eos_token_id is a list

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], source: str = "config.json") -> LLaDAConfig:
        """Read a published config; raise ValueError naming the fields that are missing, of a wrong kind or not implemented."""
        for name, allowed in IMPLEMENTED.items():
            values = allowed if isinstance(allowed, tuple) else (allowed,)
            if name in raw and not any(same(raw[name], value) for value in values):
                raise ValueError(f"{source}: {name} is {raw[name]!r}, but only {values[0]!r} is implemented: not a plain LLaDA checkpoint")
        missing = [name for name in REQUIRED if raw.get(name) is None] + [name for name in STATED if name not in raw]
        if missing:
            raise ValueError(f"{source}: needs {', '.join(missing)}; a LLaDA config.json states them")
        if problem := misfit(record(REQUIRED, OPTIONAL), raw):
            raise ValueError(f"{source}: {problem}")
        _refuse_foreign(raw, source)
        ends = token_ids(raw.get("eos_token_id"))
        read = {**raw, "eos_token_id": ends[0] if ends else None, "more_eos_token_ids": ends[1:]}
        config = cls(**{f.name: read[f.name] for f in dataclasses.fields(cls) if f.name in read})
        config.check(source)
        return config

    def check(self, source: str) -> None:
        """Raise ValueError on numbers that do not go together; source: what the message begins with."""
        if self.d_model % self.n_heads or self.n_heads % self.num_kv_heads or self.head_dim % 2:
            raise ValueError(f"{source}: d_model ({self.d_model}), n_heads ({self.n_heads}) and n_kv_heads ({self.num_kv_heads}) "
                             "do not divide each other into heads of even width")
        if self.num_embeddings < self.vocab_size:
            raise ValueError(f"{source}: embedding_size ({self.embedding_size}) is below vocab_size ({self.vocab_size})")
        if beyond := [token for token in self.ends if token >= self.num_embeddings]:
            raise ValueError(f"{source}: eos_token_id names {beyond[0]}, outside the vocabulary of {self.num_embeddings}")

    def to_dict(self) -> dict[str, Any]:
        """The published form, switches included, so that the published code reads it too."""
        switches = {name: value[0] if isinstance(value, tuple) else value for name, value in IMPLEMENTED.items()}
        fields = dataclasses.asdict(self)
        if more := fields.pop("more_eos_token_ids"):
            fields["eos_token_id"] = [self.eos_token_id, *more]
        return {"model_type": "llada", "architectures": ["LLaDAModelLM"], **switches, **fields}

    def to_json_string(self) -> str:
        """`to_dict` as text; what transformers' TensorBoard callback asks a config for."""
        return json.dumps(self.to_dict(), indent=1, sort_keys=True)

    @property
    def head_dim(self) -> int:
        return self.d_model // self.n_heads

    @property
    def num_kv_heads(self) -> int:
        return self.n_kv_heads or self.n_heads

    @property
    def num_embeddings(self) -> int:
        """Rows of the embedding table; may exceed vocab_size, the rest are unused."""
        return self.embedding_size or self.vocab_size

    @property
    def ends(self) -> tuple[int, ...]:
        """Every id of eos_token_id."""
        return token_ids([self.eos_token_id, *self.more_eos_token_ids])


def token_ids(value: int | list[int | None] | None) -> tuple[int, ...]:
    """The ids of an eos_token_id, which is null, one id or a list; each once."""
    listed = value if isinstance(value, list) else [value]
    return tuple(dict.fromkeys(token for token in listed if token is not None))


def _refuse_foreign(raw: Mapping[str, Any], source: str) -> None:
    """Raise ValueError where a field asks for arithmetic that this module does not have."""
    head_dim = raw["d_model"] // raw["n_heads"]
    plain_rope = {"rope_type": "default", "type": "default", "rope_theta": raw["rope_theta"], "partial_rotary_factor": 1}
    for name, value in raw.items():
        if name not in FOREIGN and not (name == "head_dim" and value != head_dim):
            continue
        neutral = value in (None, False, 0, "none", "", [], {}) or FOREIGN.get(name) is not None and same(value, FOREIGN[name])
        if name in ("rope_scaling", "rope_parameters") and isinstance(value, dict):        # transformers 5 repeats rope_theta there
            neutral = all(key in plain_rope and same(each, plain_rope[key]) for key, each in value.items())
        if not neutral:
            raise ValueError(f"{source}: {name} is {short(value)}, which is not implemented: a model that was trained with it would give "
                             "other answers here")


def unknown_fields(raw: Mapping[str, Any]) -> list[str]:
    """The fields that neither published configs nor this module know."""
    known = WITHOUT_EFFECT | IMPLEMENTED.keys() | REQUIRED.keys() | OPTIONAL.keys() | FOREIGN.keys() | {"head_dim"}
    return sorted(raw.keys() - known)


class SpecialTokens(NamedTuple):
    """Ids that the sampler must know; from the config and the tokenizer, never literals."""

    mask: int
    eos: int | None = None
    eot: int | None = None
    more_eos: tuple[int, ...] = ()        # further ids of eos_token_id, where that is a list

    @property
    def ends(self) -> tuple[int, ...]:
        """Ids after which no text survives."""
        return token_ids([self.eos, self.eot, *self.more_eos])


class RMSNorm(nn.Module):
    """x / rms(x) in fp32, cast back *before* the weight is applied (as the published code; F.rms_norm rounds differently in bf16)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        scaled = x.float()
        scaled = scaled * torch.rsqrt(scaled.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * scaled.to(x.dtype)


def rotary_table(length: int, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin, each (length, head_dim) fp32 on the CPU: the published code builds them there, and bf16 tables break the model."""
    frequency = 1.0 / (theta ** (torch.arange(0, head_dim, 2, dtype=torch.float) / head_dim))
    angle = torch.outer(torch.arange(length, dtype=torch.float), frequency)
    angle = torch.cat([angle, angle], -1)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor, full_precision: bool) -> Tensor:
    """Apply rotary positions to (B, H, L, head_dim), half-rotated layout."""
    y = x.float() if full_precision else x
    first, second = y.chunk(2, -1)
    return (y * cos.to(y.dtype) + torch.cat([-second, first], -1) * sin.to(y.dtype)).to(x.dtype)


Past = dict[nn.Module, tuple[Tensor, Tensor]]        # block -> rotated keys and values of all columns, each (B, H, L, head_dim)


class View(NamedTuple):
    """What a block attends to."""

    visible: Tensor | None               # bool, broadcastable to (B, H, L, L), True = may be attended; None = everything
    columns: slice = slice(None)         # where the block's input stands among the L columns
    past: Past | None = None             # keys and values of the other columns; those of the input take their place in it

    def extend(self, block: nn.Module, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of all columns from those of the input."""
        if self.past is None:
            return k, v
        if self.columns == slice(None):
            self.past[block] = k, v
        else:
            for kept, fresh in zip(self.past[block], (k, v)):
                kept[:, :, self.columns] = fresh
        return self.past[block]


def attend(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
    """Bidirectional attention; visible: bool, broadcastable to (B, H, queries, keys), True = may be attended."""
    if q.device.type != "cpu" or not q.requires_grad:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=visible)
    # On the CPU the fused backward costs 5x the explicit one at L = 33 (52 % of a training step).
    score = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if visible is not None:
        score = score.masked_fill(~visible, -math.inf)
    return score.float().softmax(-1).to(v.dtype) @ v


def by_parts(x: Tensor, weight: Tensor, size: int = 2048) -> Tensor:
    """x (..., D) times weight (V, D) transposed, `size` rows of the weight at a time.

    A BLAS repacks the weight before it multiplies: a part's copy stays in the processor's cache, a whole vocabulary's does not. For 16 to
    64 rows and 126,464 tokens 17 to 20 % less time, the same sums bit by bit; in bfloat16 no less.
    """
    rows = x.reshape(-1, x.shape[-1])
    product = rows.new_empty(len(rows), len(weight))
    for part, columns in zip(weight.split(size), product.split(size, -1)):
        torch.mm(rows, part.t(), out=columns)
    return product.view(*x.shape[:-1], len(weight))


def _in_parts(x: Tensor) -> bool:
    """Does `by_parts` pay for x, and needs nobody a gradient?"""
    there = x.device.type == "cpu" and x.dtype == torch.float32
    return there and not torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")


class Block(nn.Module):
    """One pre-norm layer. ff_proj is the gate (through SiLU), up_proj multiplies it, ff_out projects down."""

    def __init__(self, config: LLaDAConfig) -> None:
        super().__init__()
        width, hidden = config.d_model, config.mlp_hidden_size
        kv_width = config.num_kv_heads * config.head_dim
        qkv_bias = config.include_bias or config.include_qkv_bias
        self.config = config
        self.attn_norm = RMSNorm(width, config.rms_norm_eps)
        self.q_proj = nn.Linear(width, width, bias=qkv_bias)
        self.k_proj = nn.Linear(width, kv_width, bias=qkv_bias)
        self.v_proj = nn.Linear(width, kv_width, bias=qkv_bias)
        self.attn_out = nn.Linear(width, width, bias=config.include_bias)
        self.ff_norm = RMSNorm(width, config.rms_norm_eps)
        self.ff_proj = nn.Linear(width, hidden, bias=config.include_bias)
        self.up_proj = nn.Linear(width, hidden, bias=config.include_bias)
        self.ff_out = nn.Linear(hidden, width, bias=config.include_bias)
        self.recompute = False        # keep the input alone for the backward pass, and compute everything else again in it

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, view: View) -> Tensor:
        if self.recompute and torch.is_grad_enabled():        # inside the block: hooks that change its input, such as a router's, run once
            return checkpoint(self._layer, x, cos, sin, view, use_reentrant=False)
        return self._layer(x, cos, sin, view)

    def _layer(self, x: Tensor, cos: Tensor, sin: Tensor, view: View) -> Tensor:
        config, (batch, length, _) = self.config, x.shape
        h = self.attn_norm(x)                                                               # (B, L, D)
        q, k, v = (proj(h).view(batch, length, -1, config.head_dim).transpose(1, 2)         # (B, H, L, head_dim)
                   for proj in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotate(q, cos, sin, config.rope_full_precision), rotate(k, cos, sin, config.rope_full_precision)
        k, v = view.extend(self, k, v)
        if config.num_kv_heads != config.n_heads:
            k, v = (t.repeat_interleave(config.n_heads // config.num_kv_heads, 1) for t in (k, v))
        attended = attend(q, k, v, view.visible).transpose(1, 2).reshape(batch, length, -1)      # (B, L, D)
        x = x + self.attn_out(attended)
        h = self.ff_norm(x)
        return x + self.ff_out(F.silu(self.ff_proj(h)) * self.up_proj(h))


class Streams(NamedTuple):
    """What a forward pass computes before the head."""

    hidden: Tensor                        # (B, L, D) final-norm hidden state
    confidence: Tensor | None = None      # (B, L) raw score of an unmasking-policy stream, fp32


class Recomputing:
    """Activation checkpointing under the names that transformers' Trainer calls; for modules that have Blocks inside."""

    def activation_checkpointing_enable(self, **_: Any) -> None:
        """Every block keeps its input alone for the backward pass; transformers' options are not asked."""
        for module in self.modules():
            if isinstance(module, Block):
                module.recompute = True

    gradient_checkpointing_enable = activation_checkpointing_enable


class LLaDA(Recomputing, nn.Module):
    """LLaDA (arXiv 2502.09992): a bidirectional transformer that predicts every masked token at once.

    Called with token ids it returns logits (B, L, V); `hidden_states` and `head` are the two halves of that, for callers that
    need logits at a few positions only.
    """

    own_stream = False        # has the class an unmasking-policy stream of its own?

    def __init__(self, config: LLaDAConfig) -> None:
        super().__init__()
        self.config = config
        transformer = {
            "wte": nn.Embedding(config.num_embeddings, config.d_model),
            "blocks": nn.ModuleList(Block(config) for _ in range(config.n_layers)),
            "ln_f": RMSNorm(config.d_model, config.rms_norm_eps),
        }
        if not config.weight_tying:
            transformer["ff_out"] = nn.Linear(config.d_model, config.num_embeddings, bias=config.include_bias)
        self.model = nn.ModuleDict({"transformer": nn.ModuleDict(transformer)})
        self.special_tokens: SpecialTokens | None = None         # set where the checkpoint's files are at hand
        self.origin: Origin | None = None        # of a loaded model, what its checkpoint says beside the weights
        self._rotary: tuple[Tensor, Tensor] | None = None        # not a buffer: .to(bfloat16) must never reach it

    @property
    def device(self) -> torch.device:
        """Where token ids belong; of an offloaded model, where it computes."""
        return home(self.embedding)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.embedding.parameters()).dtype

    @property
    def embedding(self) -> nn.Embedding:
        return self.model["transformer"]["wte"]

    def get_input_embeddings(self) -> nn.Embedding:
        """The embedding table, under the name that PEFT and transformers look for."""
        return self.embedding

    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, *,
                inputs_embeds: Tensor | None = None, at: Tensor | None = None) -> Tensor:
        """Logits (B, L, V) for ids (B, L), or (N, V) at the N positions of `at`, bool (B, L).

        attention_mask: (B, L), nonzero = real token, or (B, L, L), nonzero = the row's token may attend to the column's.
        Raises ValueError where L exceeds config.max_sequence_length.
        """
        hidden = self.hidden_states(input_ids, attention_mask, inputs_embeds=inputs_embeds)
        return self.head(hidden if at is None else hidden[at])

    def hidden_states(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, *,
                      inputs_embeds: Tensor | None = None, every_layer: bool = False) -> Tensor | list[Tensor]:
        """The final-norm hidden state (B, L, D), which `head` turns into logits.

        every_layer: a list of n_layers + 1 instead: the embeddings, the outputs of all blocks but the last, the final-norm state.
        """
        return self._run(input_ids, attention_mask, inputs_embeds, every_layer)[0]

    def streams(self, input_ids: Tensor | None, attention_mask: Tensor | None = None, *, inputs_embeds: Tensor | None = None,
                columns: slice = slice(None), past: Past | None = None) -> Streams:
        """Hidden state and, in models that have an unmasking-policy stream of their own, its score; embeddings go before ids.

        past: a dict that a forward of all columns fills with keys and values. columns: with a filled past, compute these alone, at
        their places among the others; the result is of them alone, and their keys and values are replaced in past, in place.
        """
        return Streams(*self._run(input_ids, attention_mask, inputs_embeds, False, columns, past))

    def score_parameters(self) -> list[nn.Parameter]:
        """Of the model's own policy stream, the parameters that its score alone depends on."""
        return []

    def head(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) of final-norm hidden states (..., D)."""
        if self.config.weight_tying:
            rows = table(self.embedding, self.config.num_embeddings)
            return by_parts(hidden, rows) if _in_parts(hidden) else F.linear(hidden, rows)
        head = self.model["transformer"]["ff_out"]
        if _in_parts(hidden) and is_plain_linear(head, hidden) and head.bias is None:
            return by_parts(hidden, head.weight)
        return head(hidden)

    def _run(self, input_ids: Tensor | None, attention_mask: Tensor | None, inputs_embeds: Tensor | None,
             every_layer: bool, columns: slice = slice(None), past: Past | None = None) -> tuple[Tensor | list[Tensor], Tensor | None]:
        """The final-norm hidden state, or all states, and the score of the policy stream, if there is one."""
        assert past is not None or columns == slice(None)
        given = input_ids if inputs_embeds is None else inputs_embeds
        if given.shape[1] > self.config.max_sequence_length:
            limit = self.config.max_sequence_length
            raise ValueError(f"{given.shape[1]} tokens exceed the model's context of {limit} "
                             "(max_sequence_length of its config): give fewer")
        x = self.embedding(given[:, columns]) if inputs_embeds is None else given[:, columns]        # (B, L, D)
        cos, sin = (table[columns] for table in self._rotary_table(given.shape[1], x.device))
        visible = None if attention_mask is None else attention_mask.bool().unsqueeze(1)        # (B, 1, L) or (B, 1, L, L)
        view = View(visible.unsqueeze(1) if visible is not None and visible.dim() == 3 else visible, columns, past)
        states: list[Tensor] | None = [] if every_layer else None
        x, confidence = self._stack(x, cos, sin, view, states)
        x = self.model["transformer"]["ln_f"](x)
        return x if states is None else [*states, x], confidence

    def _stack(self, x: Tensor, cos: Tensor, sin: Tensor, view: View,
               states: list[Tensor] | None) -> tuple[Tensor, Tensor | None]:
        """All blocks on x; states, if given, receives the input of each."""
        for block in self.model["transformer"]["blocks"]:
            if states is not None:
                states.append(x)
            x = block(x, cos, sin, view)
        return x, None

    def _rotary_table(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        if self._rotary is None or self._rotary[0].shape[0] < length or self._rotary[0].device != device:
            with torch.inference_mode(False):        # tables made under inference_mode could never take part in a backward
                cos, sin = rotary_table(max(length, 256), self.config.head_dim, self.config.rope_theta)
                self._rotary = cos.to(device), sin.to(device)
        return self._rotary[0][:length], self._rotary[1][:length]


def empty_like(model: LLaDA) -> LLaDA:
    """A model of the same class, config and origin on the meta device, to be filled with weights."""
    with torch.device("meta"):
        empty = type(model)(model.config)
    empty.origin = model.origin
    return empty


def initialise(model: LLaDA, generator: torch.Generator) -> None:
    """Random weights for training from scratch: N(0, 0.02) embeddings, fan-in scaled projections, residual outputs shrunk by depth."""
    depth = (2 * model.config.n_layers) ** -0.5
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() < 2:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
                continue
            if "wte" in name:
                std = 0.02
            else:
                std = parameter.shape[1] ** -0.5
                if ".blocks." in name and (".attn_out." in name or ".ff_out." in name):
                    std *= depth
            parameter.normal_(0.0, std, generator=generator)
