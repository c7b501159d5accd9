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
        "under adaptive rules: threshold, threshold_entropy, factor, error_budget",
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
    answer_end: Literal["gen_length", "block", "next_token"] = arg(
        "gen_length",
        "where an answer ends that nothing stops: after gen_length tokens, at the end of the block "
        "that holds the last of them (SDAR), or after gen_length // block_length blocks and the "
        "one token that the last of them predicts (Fast-dLLM v2)",
    )
    schedule: Literal["llada", "block_share", "dream", "independent", "mdlm"] = arg(
        "llada",
        "how many tokens each step unmasks: llada (equal shares of the masks), block_share (equal "
        "shares of the block, masked or not), dream (a share of the masks that are left, by "
        "Dream's timesteps), independent (every token by itself with Dream's probability, its "
        "alg=origin; needs confidence_source=random) or mdlm (dllm's rounding of the linear "
        "schedule); steps that unmask nothing cost no forward",
    )
    schedule_eps: float | None = arg(
        None, "timestep (0-1) at which schedules dream and independent end (default 0.001)"
    )
    block_steps: int | None = arg(
        None,
        "denoising steps of each block, in place of steps for the whole answer; under adaptive "
        "rules each keeps at least its share of the block's tokens",
    )
    minimal_topk: int | None = arg(
        None, "with block_steps: at most gen_length // minimal_topk of them (LLaDA2.0)"
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
    unseen_suffix: bool = arg(
        False,
        "infilling with a block-causal model: a span sees the text before it and the rest of its "
        "own block, and is filled in though it sees nothing of what comes after that (default: "
        "refused)",
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
    confidence_of: Literal["raw", "tempered", "filtered"] | None = arg(
        None,
        "what the confidence is read from: the model's own distribution, that at the temperature "
        "(SDAR's evaluation), or among the tokens that top_p and top_k leave of that, also at "
        "temperature 0 (Dream, LLaDA2) (default: raw, or as the publishers of block-causal models)",
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
    threshold_entropy: float | None = arg(
        None,
        "keep every token whose predicted distribution has at most this entropy (nats), at least "
        "one a step (dParallel, d3LLM); confidence_source then judges visible tokens alone",
    )
    strict: bool | None = arg(
        None,
        "with threshold: tokens must be more probable than it, not as probable; with "
        "threshold_entropy: their entropy must be below it (default: as the family's publishers "
        "do)",
    )
    at_least: int | None = arg(
        None, "under adaptive rules: keep at least so many tokens a step (default 1)"
    )
    block_add_threshold: float | None = arg(
        None,
        "under adaptive rules, multi-block decoding: the next block enters when so much (0-1) of "
        "the last one is filled, and tokens that pass are kept in all blocks that have entered "
        "(d3LLM: 0.1) (default: one block after another)",
    )
    decoded_token_threshold: float | None = arg(
        None,
        "with block_add_threshold: a block is fully active, so that a step keeps at least one of "
        "its tokens, when so much (0-1) of the one before it is filled (d3LLM: 0.95) (default 1)",
    )
    floor_in: Literal["active", "first", "first_and_best"] | None = arg(
        None,
        "with block_add_threshold, where a step keeps at least one token: in every fully active "
        "block, in the first block with masks (d3LLM's code for Dream), or there and the best of "
        "all (its code for LLaDA) (default: active)",
    )
    sub_block_length: int | None = arg(
        None,
        "under adaptive rules: only the first part of so many tokens of the block that has masks "
        "is unmasked (Fast-dLLM v2)",
    )
    sub_block_cache: bool = arg(
        False,
        "with sub_block_length: freeze the other parts' keys and values from the step on that "
        "finds a part's first token known; faster, an approximation (Fast-dLLM v2)",
    )
    first_token_alone: bool = arg(
        False,
        "under adaptive rules: the step that unmasks a block's first token unmasks no other, as "
        "if the block before had predicted it (Fast-dLLM v2)",
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
    max_dependence: float | None = arg(
        None,
        "under adaptive rules: of tokens that pass, keep together only those whose predicted "
        "distributions have a cosine (0-1) below this, the best first",
    )
    certain_above: float | None = arg(
        None,
        "with max_dependence: tokens at least this probable (0-1) depend on none (default: where "
        "an error is 150 times rarer than the rule allows)",
    )
    branches: str | None = arg(
        None,
        "with threshold: sets of tokens to try beside it, THRESHOLD:MAX_DEPENDENCE joined by '+', "
        "such as 0.6:0.02+0.8:0.02; each is a row of the next forward, which chooses among them",
    )
    draft_rows: int | None = arg(
        None,
        "under adaptive rules, rows of an answer in a forward, at most: beside what a step keeps, "
        "likely drafts of further tokens, of which the next forward keeps what the rule would have "
        "kept one token after another (self-speculative decoding)",
    )
    draft_threshold: float | None = arg(
        None,
        "with draft_rows: a drafted token stands if at least this probable (0-1) after those "
        "drafted before it (default: if the rule would keep it there)",
    )
    draft_odds: float | None = arg(
        None,
        "with draft_rows: a drafted token stands as well if its odds, p / (1 - p), after those "
        "drafted before it are at least this share (0-1) of those of the best token there",
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
    edit_threshold: float | None = arg(
        None,
        "under adaptive rules: replace a visible token of the block's answer by the proposal where "
        "that is another one, more probable than this (0-1); a block ends with a forward that "
        "changes nothing (LLaDA2.1)",
    )
    max_post_steps: int | None = arg(
        None, "with edit_threshold: forwards of a block after its last mask, at most (default 16)"
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
        False,
        "stop once a finished block holds EOS or EoT: the answer ends with that block. With "
        "block_add_threshold as soon as nothing before it is masked, and all after it becomes EOS",
    )
    stop_at: Literal["never", "block", "eos", "new_eos"] | None = arg(
        None,
        "when EOS or EoT ends an answer: never, after a finished block that holds it, at once when "
        "it stands and nothing before it is masked (eos), or only if such a step wrote one, else "
        "after the block (new_eos, which may exceed gen_length: LLaDA2.0) (default: block with "
        "early_stop (eos with block_add_threshold) or where the canvas grows, else never)",
    )
    cache: Literal["auto", "none", "prefix", "dual", "partial"] = arg(
        "auto",
        "keys and values that steps share. auto: those of finished blocks, of a model whose tokens "
        "see earlier blocks alone, which changes no answer; none: none. The others, of other "
        "models, are approximations. prefix, dual: those before the block, or before and after it, "
        "stay as its first step made them; partial: each layer computes those columns of the "
        "answer whose values moved most (dLLM-Cache)",
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
    cache_delayed: bool = arg(
        False,
        "with prefix or dual, a step leaves out tokens of the block that stood before the last "
        "one: each is frozen a step after it was decoded (dKV-Cache)",
    )
    cache_prompt_refresh: int | None = arg(
        None,
        "with prefix, dual or partial, the prompt's keys and values are computed again at the "
        "first step of every so many blocks, 0: never after the first (default: by every forward "
        "of everything)",
    )
    cache_delay_iter: int | None = arg(
        None,
        "with prefix and block_add_threshold, a finished block is frozen with all before it so "
        "many forwards after the first that found it full; until then forwards compute everything "
        "(d3LLM: 1 or 2) (default: the prompt alone is frozen)",
    )
    transfer_ratio: float | None = arg(
        None,
        "with partial, the share of the answer's columns, rounded down, that each layer computes "
        "at a step between refreshes, 0 to 1 (default: 0.25)",
    )
    gen_interval_steps: int | None = arg(
        None,
        "with partial, every so many steps of a block all columns of the answer are computed "
        "(dLLM-Cache: 2 to 8, over the whole answer) (default: at its first step alone)",
    )
    prompt_interval_steps: int | None = arg(
        None,
        "with partial, every so many steps of a block the prompt is computed "
        "(dLLM-Cache: 25 to 100, over the whole answer) (default: at its first step alone)",
    )
    shift_cache: Literal["exact", "published"] = arg(
        "exact",
        "with prefix or dual and a model whose logits are shifted: compute the column left of the "
        "block too, or as published none, so that a block's first step keeps its first token alone",
    )
    seed: int = arg(0, "with the prompt, determines every random number of its answer")
