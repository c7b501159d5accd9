"""The FAMILIES table: what differs between the families of checkpoints that load here.

A new family is a file with what is its own (a config map, a network where it differs) and a
row. No code outside this table asks which family a checkpoint is of.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace as with_fields
from pathlib import Path
from typing import Any, Literal, NamedTuple

from llada_plugins.files.json_files import short

from .bitower import MARK, BiTowerLLaDA
from .block_causal_configs import (
    FAST_DLLM_V2,
    LLADA2,
    LLADA2_EXPERTS,
    LLADA2_STACKED,
    SDAR,
    SDAR_MOE,
)
from .hf_layout import (
    A2D_LLAMA,
    A2D_QWEN2,
    A2D_QWEN3,
    DENSE,
    DREAM,
    EXPERTS,
    FUSED_EXPERTS,
    ILLADA,
    LLADA_MOE,
    HFConfig,
)
from .layout import SAME_NAMES, Layout, numbers_apart
from .llada import BLOCKS, LLaDA
from .llada_config import ATTENTIONS, Attention, LLaDAConfig, unknown_fields

MASK_NAMES = ("<|mdm_mask|>", "<[MASK]>", "[MASK]", "<mask>")


class Family(NamedTuple):
    """A row of FAMILIES. "Ours" are the names of the module's own tensors and fields."""

    module: type[LLaDA]
    architectures: frozenset[str]  # what config.json may call it
    # beginning of the names of tensors that every checkpoint of it stores, N for each number
    mark: str
    # what config.json may say of it to transformers; families may share one
    model_types: tuple[str, ...] = ("llada",)
    # are its tensors enough to know it by, whatever config.json calls it?
    known_by_tensors: bool = False
    # config.json and where it lies (for messages) -> ours; raises ValueError in one line
    read_config: Callable[[Mapping[str, Any], str], LLaDAConfig] = LLaDAConfig.from_dict
    # ours -> config.json, architectures included
    write_config: Callable[[LLaDAConfig], dict[str, Any]] = LLaDAConfig.published
    # fields of config.json that nobody knows, which is worth a warning
    unknown_fields: Callable[[Mapping[str, Any]], list[str]] = unknown_fields
    layout: Layout = SAME_NAMES  # under which names its tensors are stored
    blocks: str = BLOCKS  # beginning of our names of the Linears that quantize= changes
    # What its checkpoints may have been trained with; config.attention says what one of them has.
    attentions: tuple[Attention, ...] = ("full",)
    # field of config.json with the length of blocks, where some that state none have others
    block_field: str | None = None
    # do logits at a column predict the token of the next one?
    shift: bool = False
    # does its publishers' likelihood show an EOS after the answer that it scores?
    shows_eos: bool = False
    # whose sampler its publishers use: their option names are accepted (sampling/published.py)
    sampler: Literal["llada", "dream", "mdlm", "sdar", "llada2", "fast_dllm_v2"] = "llada"
    # names of the mask token and of the end of a turn, where config.json names none
    mask_names: tuple[str, ...] = MASK_NAMES
    eot_names: tuple[str, ...] = ("<|eot_id|>",)
    # published ids, where neither config.json nor the tokenizer names one
    mask_id: int | None = None
    eos_id: int | None = None


def _hf(config: HFConfig, layout: Layout, mark: str = "model.layers.", **own: Any) -> Family:
    """A row for a family whose checkpoints look like transformers' own decoders."""
    return Family(
        LLaDA,
        frozenset({config.architecture}),
        mark,
        model_types=(config.model_type,),
        read_config=config.read,
        write_config=config.write,
        unknown_fields=config.unknown,
        attentions=config.attentions,
        layout=layout,
        **{"mask_names": ("<|mask|>", *MASK_NAMES), **own},
    )


ONE_BY_ONE = "model.layers.N.mlp.experts.N."  # of experts
# <|mask|> and <|endoftext|> of LLaDA-MoE's tokenizer; its config.json names no mask
MOE_TOKENS: dict[str, Any] = dict(eot_names=("<|role_end|>",), mask_id=156895, eos_id=156892)
CHATML: dict[str, Any] = dict(eot_names=("<|im_end|>",))
SDAR_TOKENS: dict[str, Any] = dict(
    mask_names=("<|MASK|>",),
    mask_id=151669,
    eos_id=151643,
    block_field="block_size",  # or -b16 in their names
    **CHATML,
)
# The first that claims a checkpoint has it: a bi-tower holds all tensors of a LLaDA too.
FAMILIES: dict[str, Family] = {
    "remedi": Family(
        BiTowerLLaDA,
        frozenset({"RemeDiUPMModelLM"}),
        MARK,
        model_types=("RemeDi", "llada"),
        known_by_tensors=True,  # its uploads disagree on model_type and architectures
    ),
    # by architecture, not model_type: LLaDA-MoE says "llada" too
    "llada": Family(LLaDA, frozenset({"LLaDAModelLM"}), "model.transformer."),
    "llada_moe": _hf(LLADA_MOE, EXPERTS, ONE_BY_ONE, **MOE_TOKENS),
    "llada_moe_fused": _hf(
        LLADA_MOE._replace(architecture="FusedLLaDAMoEModelLM"),
        FUSED_EXPERTS,
        "model.layers.N.mlp.w1",
        **MOE_TOKENS,
    ),
    # <[MASK]> is in neither its config.json nor its tokenizer's settings
    "illada": _hf(ILLADA, DENSE, mask_id=5, eos_id=2),
    "dream": _hf(
        DREAM,
        DENSE,
        shift=True,
        shows_eos=True,
        sampler="dream",
        mask_id=151666,
        eos_id=151643,
        **CHATML,
    ),
    "a2d_qwen3": _hf(A2D_QWEN3, DENSE, sampler="mdlm", **CHATML),
    "a2d_qwen2": _hf(A2D_QWEN2, DENSE, sampler="mdlm", **CHATML),
    "a2d_llama": _hf(A2D_LLAMA, DENSE, sampler="mdlm", eot_names=("<|eot_id|>", "<|im_end|>")),
    "sdar": _hf(SDAR, DENSE, sampler="sdar", **SDAR_TOKENS),
    "sdar_moe": _hf(SDAR_MOE, EXPERTS, ONE_BY_ONE, sampler="sdar", **SDAR_TOKENS),
    "llada2": _hf(LLADA2, LLADA2_EXPERTS, ONE_BY_ONE, sampler="llada2", **MOE_TOKENS),
    "llada2_stacked": _hf(
        LLADA2._replace(model_type="llada2_moe_veomni"),
        LLADA2_STACKED,
        "model.layers.N.mlp.experts.gate_proj",
        sampler="llada2",
        **MOE_TOKENS,
    ),
    "fast_dllm_v2": _hf(
        FAST_DLLM_V2,
        DENSE,
        shift=True,
        sampler="fast_dllm_v2",
        mask_names=("|<MASK>|",),
        mask_id=151665,
        eos_id=151645,
        **CHATML,
    ),
}


def dense_families() -> list[str]:
    """The families whose layers are a dense LLaDA's: any shape of one can be theirs."""
    return [
        name
        for name, family in FAMILIES.items()
        if family.module is LLaDA and family.layout in (SAME_NAMES, DENSE)
    ]


def of_family(config: LLaDAConfig, name: str) -> LLaDAConfig:
    """A dense LLaDA's shape as a model of one of dense_families(), with what these always have."""
    family = FAMILIES[name]
    if family.layout is SAME_NAMES:
        return config
    stated = with_fields(config, head_width=config.head_dim)
    found = family.read_config(family.write_config(stated), f"a new {name}")
    return with_fields(found, family=name)


def recognise(architectures: Sequence[str], tensors: Collection[str], path: Path) -> str:
    """The family, by its name in FAMILIES, of a checkpoint with that config.json and tensors.

    architectures: what the config at `path` says. tensors: stored names, none where the files
    are absent, which is told where they are needed. Raises ValueError where no family has
    such an architecture, or the tensors are another family's.
    """
    held = _held(tensors)
    named = [name for name, family in FAMILIES.items() if family.architectures & set(architectures)]
    for name in held:
        if name in named or FAMILIES[name].known_by_tensors:
            return name
    # A lone tensor of a strict family is missed by name when tensors are accounted for.
    plain = [name for name in named if not FAMILIES[name].known_by_tensors]
    if not plain:
        expected = sorted(
            architecture
            for family in FAMILIES.values()
            if not family.known_by_tensors
            for architecture in family.architectures
        )
        raise ValueError(
            f"{path}: architectures is {short(list(architectures))}, expected one of {expected}: "
            "no family that loads here"
        )
    if held:
        raise ValueError(
            f"{path}: architectures is {short(list(architectures))}, but the tensors are named as "
            f"those of {' or '.join(held)} are ({FAMILIES[held[0]].mark}*): config.json and "
            "weights do not belong together"
        )
    return plain[0]


def _held(tensors: Collection[str]) -> list[str]:
    """The families, by name, whose mark is among the names of tensors."""
    forms = {numbers_apart(name)[0] for name in tensors}
    return [
        name
        for name, family in FAMILIES.items()
        if any(form.startswith(family.mark) for form in forms)
    ]


def with_attention(config: LLaDAConfig, attention: Attention | None, source: str) -> LLaDAConfig:
    """The config of a model that is to have that attention; None: its own.

    source: what a message begins with. ValueError where its family does not have it.
    """
    if attention is None:
        return config
    allowed = FAMILIES[config.family].attentions
    if attention not in ATTENTIONS:
        raise ValueError(f"attention must be one of {', '.join(ATTENTIONS)}, got {attention!r}")
    if attention not in allowed:
        raise ValueError(
            f"attention={attention}: {source} is of the family {config.family}, which was trained "
            f"with {allowed[0]} attention alone: leave the option out"
        )
    return with_fields(config, attention=attention)
