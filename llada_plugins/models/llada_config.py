"""What the transformer is told of a checkpoint, and what a dense LLaDA's config.json may say."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Literal, get_args

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

from .config_fields import FOREIGN, IMPLEMENTED, STATED, WITHOUT_EFFECT

# far above any model, far below what memory holds
LAYERS, WIDTH, TOKENS = whole(1, 1000), whole(1, 2**20), whole(1, 2**24)
TOKEN = whole(0, 2**24 - 1)
ENDS = nullable(either(TOKEN, list_of(TOKEN)))  # eos_token_id: Llama 3 and its heirs list several
REQUIRED: dict[str, Kind] = {
    "d_model": WIDTH,
    "n_heads": WIDTH,
    "n_layers": LAYERS,
    "vocab_size": TOKENS,
    "mlp_hidden_size": WIDTH,
    "max_sequence_length": TOKENS,
    "rope_theta": number(1, 1e12),
    "rms_norm_eps": number(1e-20, 1),
    "weight_tying": FLAG,
    "include_bias": FLAG,
    "include_qkv_bias": FLAG,
    "rope_full_precision": FLAG,
}
OPTIONAL: dict[str, Kind] = {
    "n_kv_heads": nullable(WIDTH),
    "embedding_size": nullable(TOKENS),
    "mask_token_id": nullable(TOKEN),
    "eos_token_id": ENDS,
    "pad_token_id": nullable(whole(-1, 2**24 - 1)),
}


# full: every token sees all others. block_causal: those of its own block, and of those before.
Attention = Literal["full", "block_causal"]
ATTENTIONS: tuple[Attention, ...] = get_args(Attention)


# What a router makes of its logits: probabilities among all experts, or each by itself.
RouterKind = Literal["softmax", "sigmoid"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LLaDAConfig:
    """What the transformer is told, under the names of LLaDA's config.json.

    Each family has a reader of its own. No default changes the arithmetic of a dense LLaDA.
    """

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
    eos_token_id: int | None = None  # the one that training appends
    pad_token_id: int | None = None
    # the others that end an answer, where eos_token_id is a list
    more_eos_token_ids: tuple[int, ...] = ()
    head_width: int | None = None  # of a head; None = d_model / n_heads
    qk_norm: bool = False  # RMSNorm of each head's queries and keys, before the rotation
    rotary_share: float = 1.0  # of a head's width, from its beginning, that positions rotate
    fused_qkv: bool = False  # one projection for queries, keys and values
    norm_casts_last: bool = False  # RMSNorm applies its weight in fp32 too
    # MLPs of which each token takes experts_per_token; 0 = one MLP
    num_experts: int = 0
    experts_per_token: int = 0
    expert_hidden_size: int | None = None  # of an expert; None = mlp_hidden_size
    num_dense_layers: int = 0  # layers at the beginning that have one MLP all the same
    num_shared_experts: int = 0  # as wide as so many experts, an MLP that every token takes
    router: RouterKind = "softmax"
    normalised_experts: bool = False  # the weights of a token's experts sum to expert_scale
    # Of a sigmoid router: experts in so many groups, of which a token takes groups_per_token.
    expert_groups: int = 1
    groups_per_token: int = 1
    expert_scale: float = 1.0
    # What tokens see where a forward is given no mask that says it for each pair of them.
    attention: Attention = "full"
    # Tokens of a block of block-causal attention, counted from a row's first token, where a run
    # names no other number; None: the family has no such attention.
    block_length: int | None = None
    # a name in FAMILIES: whose layout the checkpoint has, and is saved in
    family: str = dataclasses.field(default="llada", compare=False)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], source: str = "config.json") -> LLaDAConfig:
        """Read a published config.

        Raises ValueError that names the fields which are missing, of a wrong kind or not
        implemented.
        """
        for name, allowed in IMPLEMENTED.items():
            values = allowed if isinstance(allowed, tuple) else (allowed,)
            if name in raw and not any(same(raw[name], value) for value in values):
                raise ValueError(
                    f"{source}: {name} is {raw[name]!r}, but only {values[0]!r} is implemented: "
                    "not a plain LLaDA checkpoint"
                )
        missing = [name for name in REQUIRED if raw.get(name) is None] + [
            name for name in STATED if name not in raw
        ]
        if missing:
            raise ValueError(
                f"{source}: needs {', '.join(missing)}; a LLaDA config.json states them"
            )
        if problem := misfit(record(REQUIRED, OPTIONAL), raw):
            raise ValueError(f"{source}: {problem}")
        # a width that the others give, or a foreign one
        width = {"head_dim": raw["d_model"] // raw["n_heads"]}
        refuse_foreign(raw, source, {**FOREIGN, **width}, raw["rope_theta"])
        ends = token_ids(raw.get("eos_token_id"))
        read = {**raw, "eos_token_id": ends[0] if ends else None, "more_eos_token_ids": ends[1:]}
        names = (*REQUIRED, *OPTIONAL, "more_eos_token_ids")
        config = cls(**{name: read[name] for name in names if name in read})
        config.check(source)
        return config

    def check(self, source: str) -> None:
        """Raise ValueError on numbers that do not go together.

        source: what the message begins with.
        """
        split = self.head_width is not None or self.d_model % self.n_heads == 0
        if not split or self.n_heads % self.num_kv_heads or self.rotary_width % 2:
            raise ValueError(
                f"{source}: d_model ({self.d_model}), n_heads ({self.n_heads}) and n_kv_heads "
                f"({self.num_kv_heads}) do not divide each other into heads of even width"
            )
        self._check_experts(source)
        if self.attention == "block_causal" and not self.block_length:
            raise ValueError(f"{source}: block-causal attention needs a length of its blocks")
        if self.num_embeddings < self.vocab_size:
            raise ValueError(
                f"{source}: embedding_size ({self.embedding_size}) is below vocab_size "
                f"({self.vocab_size})"
            )
        if beyond := [token for token in self.ends if token >= self.num_embeddings]:
            raise ValueError(
                f"{source}: eos_token_id names {beyond[0]}, outside the vocabulary of "
                f"{self.num_embeddings}"
            )

    def _check_experts(self, source: str) -> None:
        if self.experts_per_token > self.num_experts:
            raise ValueError(
                f"{source}: each token takes {self.experts_per_token} experts of {self.num_experts}"
            )
        if self.router == "softmax":
            return
        groups, size = self.expert_groups, self.num_experts // self.expert_groups
        if self.num_experts % groups or size < 2 or self.groups_per_token > groups:
            raise ValueError(
                f"{source}: {self.num_experts} experts in {groups} groups, {self.groups_per_token} "
                "for each token: groups must be of one size, of two experts at least, and no more "
                "for a token than there are"
            )
        if self.experts_per_token > self.groups_per_token * size:
            raise ValueError(
                f"{source}: each token takes {self.experts_per_token} experts of "
                f"{self.groups_per_token} groups of {size}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Fields under LLaDA's names, switches included, so that the published code reads them.

        Those that only other families set are there where they are set. PEFT calls it too.
        """
        switches = {
            name: value[0] if isinstance(value, tuple) else value
            for name, value in IMPLEMENTED.items()
        }
        fields = dataclasses.asdict(self)
        del fields["family"]
        for name, value in of_other_families().items():
            if fields[name] == value:
                del fields[name]
        if more := fields.pop("more_eos_token_ids"):
            fields["eos_token_id"] = [self.eos_token_id, *more]
        return {"model_type": "llada", "architectures": ["LLaDAModelLM"], **switches, **fields}

    def published(self) -> dict[str, Any]:
        """The config.json of a dense LLaDA; ValueError where it is of another family."""
        for name, value in of_other_families().items():
            if getattr(self, name) != value:
                raise ValueError(
                    f"a dense LLaDA's config.json cannot say {name}={getattr(self, name)!r}: give "
                    "the config the family that has it"
                )
        return self.to_dict()

    def to_json_string(self) -> str:
        """All fields as text; what transformers' TensorBoard callback asks a config for."""
        return json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True)

    @property
    def head_dim(self) -> int:
        return self.head_width or self.d_model // self.n_heads

    @property
    def rotary_width(self) -> int:
        """Of a head, the dimensions that positions rotate."""
        return int(self.head_dim * self.rotary_share)

    @property
    def expert_width(self) -> int:
        return self.expert_hidden_size or self.mlp_hidden_size

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


def of_other_families() -> dict[str, Any]:
    """Switches that other families set, and what a dense LLaDA has.

    Its config.json has no such fields.
    """
    known = {*REQUIRED, *OPTIONAL, "more_eos_token_ids", "family"}
    fields = dataclasses.fields(LLaDAConfig)
    return {each.name: each.default for each in fields if each.name not in known}


def token_ids(value: int | list[int | None] | None) -> tuple[int, ...]:
    """The ids of an eos_token_id, which is null, one id or a list; each once."""
    listed = value if isinstance(value, list) else [value]
    return tuple(dict.fromkeys(token for token in listed if token is not None))


def refuse_foreign(
    raw: Mapping[str, Any],
    source: str,
    foreign: Mapping[str, Any],
    rope_theta: float,
    known: Mapping[str, str] = {},
) -> None:
    """Raise ValueError where a field asks for arithmetic that the transformer does not have.

    foreign: the fields that may ask for it, with the number that asks for none. known: what
    some of them ask for, in words.
    """
    plain_rope = {
        "rope_type": "default",
        "type": "default",
        "rope_theta": rope_theta,
        "partial_rotary_factor": 1,
    }
    for name in sorted(foreign.keys() & raw.keys()):
        value = raw[name]
        neutral = (
            value in (None, False, 0, "none", "", [], {})
            or foreign[name] is not None
            and same(value, foreign[name])
        )
        # transformers 5 repeats rope_theta there
        if name in ("rope_scaling", "rope_parameters") and isinstance(value, dict):
            neutral = all(
                key in plain_rope and same(each, plain_rope[key]) for key, each in value.items()
            )
        if not neutral:
            what = f"{known[name]}, which" if name in known else "which"
            raise ValueError(
                f"{source}: {name} is {short(value)}, {what} is not implemented: a model that was "
                "trained with it would give other answers here"
            )


def unknown_fields(raw: Mapping[str, Any]) -> list[str]:
    """The fields that neither published configs nor this module know."""
    known = (
        WITHOUT_EFFECT
        | IMPLEMENTED.keys()
        | REQUIRED.keys()
        | OPTIONAL.keys()
        | FOREIGN.keys()
        | {"head_dim"}
    )
    return sorted(raw.keys() - known)
