"""The options of decoding, each with its help text; what goes with what is in config.py.

Every published decoder is a setting of these.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llada_plugins.options.fields import arg

from .confidence import CONFIDENCE


@dataclass(frozen=True, kw_only=True)
class SamplerOptions:
    """How an answer is decoded."""

    gen_length: int = arg(
        128,
        "answer length in tokens; where block_length does not divide it, the last "
        "block is decoded whole and the answer cut",
    )
    steps: int | None = arg(
        None,
        "denoising steps for the whole answer (default: gen_length, one token a step); ignored "
        "under adaptive rules: threshold, factor, error_budget",
    )
    block_length: int | None = arg(
        None,
        "tokens decoded together, left to right block by block (default: gen_length, one block)",
    )
    last_block: Literal["whole", "rest"] = arg(
        "whole",
        "where block_length does not divide gen_length: the last block is decoded whole and cut, "
        "or has only the rest of the tokens",
    )
    schedule: Literal["llada", "dream", "independent", "mdlm"] = arg(
        "llada",
        "how many tokens each step unmasks: llada (equal shares), dream (a share of the masks that "
        "are left, by Dream's timesteps), independent (every token by itself with Dream's "
        "probability, its alg=origin; needs confidence_source=random) or mdlm (dllm's rounding of "
        "the linear schedule); steps that unmask nothing cost no forward",
    )
    schedule_eps: float | None = arg(
        None, "timestep (0-1) at which schedules dream and independent end (default 0.001)"
    )
    block_steps: int | None = arg(
        None, "denoising steps of each block, in place of steps for the whole answer"
    )
    sampling_method: (
        Literal["fixed_length", "semi_ar_padding", "semi_ar_origin", "block_causal"] | None
    ) = arg(
        None,
        "fixed_length: one block; semi_ar_padding: blocks on a canvas whose later masks are "
        "visible; semi_ar_origin: the canvas grows block by block and ends at EOS; block_causal: "
        "as that, for models whose tokens see their own block and earlier ones alone (default: "
        "the last for such models, else by block_length one of the first two)",
    )
    blocks_from: Literal["row", "answer"] | None = arg(
        None,
        "with block_causal, what blocks are counted from: the row's first token, so that the first "
        "holds the prompt's end too, or the answer's (default: as the family's publishers do)",
    )
    temperature: float = arg(
        0.0,
        "0 = greedy; above it tokens are sampled, by the inverse distribution function in float64",
    )
    top_k: int | None = arg(
        None,
        "sample among the k most probable tokens only; needs temperature > 0 or "
        "confidence_of=filtered",
    )
    top_p: float | None = arg(
        None,
        "sample among the most probable tokens of this total probability (0-1); "
        "needs temperature > 0 or confidence_of=filtered",
    )
    cfg_scale: float = arg(
        0.0, "classifier-free guidance; 0 = off, else every step costs a double batch"
    )
    remasking: str | None = arg(
        None, "LLaDA's name for confidence_source: low_confidence (= tps_prob) or random"
    )
    confidence_source: str | None = arg(
        None, f"what ranks the proposals: {', '.join(CONFIDENCE)} (default: tps_prob)"
    )
    confidence_of: Literal["raw", "filtered"] = arg(
        "raw",
        "what the confidence is read from: the model's own distribution, or as Dream does that at "
        "the temperature, among the tokens that top_p and top_k leave, also at temperature 0",
    )
    alg_temp: float | None = arg(
        None,
        "0 or none: a step keeps the most trusted tokens; above it, it draws them one by one with "
        "probabilities softmax(confidence / alg_temp) (Dream)",
    )
    threshold: float | None = arg(
        None,
        "keep every token at least this probable (0-1), at least one a step, "
        "instead of a fixed number",
    )
    paced: bool = arg(
        False,
        "with threshold: after n of a block's steps at most n shares of it stand, so that a step "
        "keeps more than a share only where earlier ones kept less (Fast-dLLM's Dream)",
    )
    factor: float | None = arg(
        None, "keep the n most probable tokens while (n + 1)(1 - probability) < factor (Fast-dLLM)"
    )
    error_budget: float | None = arg(
        None,
        "keep the most probable tokens while their errors (1 - probability) sum to at most this, "
        "at least one a step",
    )
    remask_ratio: float | None = arg(
        None,
        "mask-and-refine: mask the least trusted fraction (0-1) of the block again after every "
        "step but the last",
    )
    revise: bool = arg(
        False,
        "dynamic remasking (RemeDi): after step n exactly K_n tokens of the block stand, the best "
        "by confidence_source, visible ones competing; all others are masked again",
    )
    revise_below: float | None = arg(
        None,
        "under adaptive rules: mask visible tokens of the block again "
        "whose score (0-1) is below this",
    )
    max_forwards: int | None = arg(
        None,
        "forward passes for the whole answer. Under adaptive rules they are shared equally by its "
        "blocks, and the last of a block keeps every token (default: one a token); with a process "
        "reward model, candidates included",
    )
    logits_eos_inf: bool = arg(False, "EOS is never produced")
    confidence_eos_eot_inf: bool = arg(False, "EOS and EoT may be proposed but are kept last")
    early_stop: bool = arg(
        False, "stop once a finished block holds EOS or EoT: the answer ends with that block"
    )
    cache: Literal["auto", "none", "prefix", "dual"] = arg(
        "auto",
        "keys and values that steps share. auto: those of finished blocks, of a model whose tokens "
        "see earlier blocks alone, which changes no answer; none: none. prefix and dual, of other "
        "models, are an approximation: those before the block, or before and after it, stay as "
        "its first step made them",
    )
    cache_refresh: int | None = arg(
        None,
        "with prefix or dual, every so many steps of a block a forward of everything "
        "(default: at its first alone)",
    )
    cache_vicinity: int = arg(
        0,
        "with prefix or dual, so many columns on either side of the block (prefix: on its left) "
        "are computed at every step too (dInfer: 16)",
    )
    cache_prompt_refresh: int | None = arg(
        None,
        "with prefix or dual, the prompt's keys and values are computed again at the first step of "
        "every so many blocks, 0: never after the first (default: by every forward of everything)",
    )
    shift_cache: Literal["exact", "published"] = arg(
        "exact",
        "with prefix or dual and a model whose logits are shifted: compute the column left of the "
        "block too, or as published none, so that a block's first step keeps its first token alone",
    )
    seed: int = arg(0, "with the prompt, determines every random number of its answer")
