"""What is known of published checkpoints of each family, beside what FAMILIES says of all.

Numbers of parameters follow from the published configs; tests/test_families_door.py counts them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from llada_plugins.models.families import FAMILIES, Family


class Known(NamedTuple):
    """A row of KNOWN: what its publishers say, and what was compared with what."""

    checkpoints: tuple[str, ...]  # hub ids
    parameters: float  # of one of them, in billions
    licence: str
    mask: str  # the mask token, with its id where that is known
    ends: str  # the tokens that end an answer or a turn
    verified: tuple[str, ...]


LOGITS = "logits, hidden states and padded rows as recorded from the published code, tiny weights"
BLOCK_LOGITS = "block-causal logits as recorded from the published code, tiny weights"
DREAM_CODER = "Dream-org/Dream-Coder-v0-Instruct-7B"
KNOWN: dict[str, Known] = {
    "remedi": Known(
        ("maple-research-lab/RemeDi-Instruct",),
        8.96,
        "see its card",
        "<|mdm_mask|> 126336",
        "<|endoftext|> 126081, <|eot_id|> 126348",
        ("logits and confidence as recorded from the published code, tiny weights",),
    ),
    "llada": Known(
        ("GSAI-ML/LLaDA-8B-Base", "GSAI-ML/LLaDA-8B-Instruct", "GSAI-ML/LLaDA-1.5"),
        8.02,
        "MIT",
        "<|mdm_mask|> 126336",
        "<|endoftext|> 126081, <|eot_id|> 126348",
        (LOGITS, "60 answers of LLaDA's generate.py, 60 of Fast-dLLM's, likelihoods of 12 rows"),
    ),
    "llada_moe": Known(
        (
            "inclusionAI/LLaDA-MoE-7B-A1B-Base",
            "inclusionAI/LLaDA-MoE-7B-A1B-Instruct",
            "inclusionAI/LLaDA-MoE-7B-A1B-Instruct-TD",
        ),
        7.36,
        "Apache-2.0",
        "<|mask|> 156895",
        "<|endoftext|> 156892, <|role_end|>",
        (LOGITS, "bfloat16 bit by bit", "30 answers of LLaDA's generate.py"),
    ),
    "llada_moe_fused": Known(
        ("made by dInfer's tools from LLaDA-MoE",),
        7.36,
        "Apache-2.0",
        "<|mask|> 156895",
        "<|endoftext|> 156892, <|role_end|>",
        ("equal to llada_moe after its experts are stacked as dInfer's tool stacks them",),
    ),
    "illada": Known(
        ("GSAI-ML/iLLaDA-8B-Base", "GSAI-ML/iLLaDA-8B-Instruct"),
        7.62,
        "Apache-2.0",
        "<[MASK]> 5",
        "2",
        (LOGITS, "bfloat16 bit by bit", "30 answers of LLaDA's generate.py"),
    ),
    "dream": Known(
        (
            "Dream-org/Dream-v0-Base-7B",
            "Dream-org/Dream-v0-Instruct-7B",
            "Dream-org/Dream-Coder-v0-Base-7B",
            DREAM_CODER,
            "apple/DiffuCoder-7B-Base",
            "apple/DiffuCoder-7B-Instruct",
            "apple/DiffuCoder-7B-cpGRPO",
        ),
        7.62,
        "Apache-2.0; DiffuCoder: Apple AMLR, for research only",
        "<|mask|> 151666",
        "<|endoftext|> 151643, <|im_end|> 151645",
        (
            LOGITS,
            "bfloat16 bit by bit",
            "36 answers of Dream's diffusion_generate, 32 of Fast-dLLM's",
        ),
    ),
    "a2d_qwen3": Known(
        ("dllm-hub/Qwen3-0.6B-diffusion-mdlm-v0.1",),
        0.60,
        "see its card",
        "<|mask|>, from its tokenizer",
        "from its config and tokenizer, <|im_end|>",
        (
            LOGITS,
            "bfloat16 bit by bit",
            "21 answers of dllm's MDLM sampler, 14 of its BD3LM sampler",
            "equal to transformers' Qwen3 without a causal mask",
        ),
    ),
    "a2d_qwen2": Known(
        ("dllm-hub's Qwen2.5-Coder-0.5B with mdlm in its name",),
        0.49,
        "see its card",
        "<|mask|>, from its tokenizer",
        "from its config and tokenizer, <|im_end|>",
        ("equal to transformers' Qwen2 without a causal mask",),
    ),
    "a2d_llama": Known(
        ("A2DLlamaLMHeadModel of dllm",),
        0.0,
        "see its card",
        "<|mask|>, from its tokenizer",
        "from its config and tokenizer, <|eot_id|> or <|im_end|>",
        ("equal to transformers' Llama without a causal mask",),
    ),
    "sdar": Known(
        (
            "JetLM/SDAR-1.7B-Chat",
            "JetLM/SDAR-4B-Chat",
            "JetLM/SDAR-8B-Chat",
            "Gen-Verse/TraDo-4B-Instruct",
            "Gen-Verse/TraDo-8B-Instruct",
            "Gen-Verse/TraDo-8B-Thinking",
        ),
        8.19,
        "Apache-2.0; TraDo: MIT",
        "<|MASK|> 151669",
        "<|endoftext|> 151643, <|im_end|> 151645",
        (
            BLOCK_LOGITS,
            "bfloat16 bit by bit, by the attention that its code calls",
            "32 answers of its evaluation, 8 of its generate.py",
        ),
    ),
    "sdar_moe": Known(
        ("JetLM/SDAR-30B-A3B-Chat", "JetLM/SDAR-30B-A3B-Sci"),
        30.53,
        "Apache-2.0",
        "<|MASK|> 151669",
        "<|endoftext|> 151643, <|im_end|> 151645",
        ("equal to a slow implementation of its formulas; no published code was run",),
    ),
    "llada2": Known(
        (
            "inclusionAI/LLaDA2.0-mini",
            "inclusionAI/LLaDA2.0-flash",
            "inclusionAI/LLaDA2.1-mini",
            "inclusionAI/LLaDA2.1-flash",
            "their -preview and -CAP",
        ),
        16.26,
        "Apache-2.0",
        "<|mask|> 156895",
        "<|endoftext|> 156892, <|role_end|>",
        (
            BLOCK_LOGITS,
            "its router's choices and weights",
            "bfloat16 bit by bit",
            "26 answers of LLaDA2.0's generate, 23 of LLaDA2.1's with editing",
        ),
    ),
    "llada2_stacked": Known(
        ("made by dFactory from LLaDA2",),
        16.26,
        "Apache-2.0",
        "<|mask|> 156895",
        "<|endoftext|> 156892, <|role_end|>",
        ("equal to llada2 after its experts are stacked as dFactory's script stacks them",),
    ),
    "fast_dllm_v2": Known(
        ("Efficient-Large-Model/Fast_dLLM_v2_7B",),
        7.62,
        "Apache-2.0",
        "|<MASK>| 151665",
        "<|im_end|> 151645",
        (
            BLOCK_LOGITS,
            "logits of a block on kept keys and values",
            "bfloat16 bit by bit",
            "40 answers of its generate",
        ),
    ),
}
NOT_VERIFIED = (
    "No real weights were run for this list: it rests on small random ones. A2D models trained\n"
    "with bd3lm are block-causal, and have the same config.json as those with full attention:\n"
    "look at their name, and give attention=block_causal."
)


def lines() -> Iterator[str]:
    """The list, ready to print."""
    for name, family in FAMILIES.items():
        yield from _lines_of(name, family, KNOWN[name])
        yield ""
    yield NOT_VERIFIED


def _lines_of(name: str, family: Family, known: Known) -> Iterator[str]:
    yield name
    rows = {
        "checkpoints": ", ".join(known.checkpoints),
        "config.json": f"architectures {', '.join(sorted(family.architectures))}",
        "size": _size(known.parameters),
        "licence": known.licence,
        "mask": known.mask,
        "ends": known.ends,
        "logits": "of the next column (shifted)" if family.shift else "of the column itself",
        "attention": " or ".join(each.replace("_", "-") for each in family.attentions),
    }
    for key, value in rows.items():
        if value:
            yield f"  {key:<12} {value}"
    for each in known.verified:
        yield f"  {'verified':<12} {each}"


def _size(billions: float) -> str:
    """Parameters, and what they take in bfloat16; nothing where checkpoints differ."""
    return f"{billions:.2f} B parameters, {2 * billions:.1f} GB in bfloat16" if billions else ""
