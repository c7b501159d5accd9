"""Answers from a model: its denoiser, wrapped as the options ask, in the one decode loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llada_plugins.diffusion.arguments import (
    check_function,
    check_functions,
    check_keys,
    check_model,
    check_special,
)
from llada_plugins.diffusion.cache import cached
from llada_plugins.diffusion.denoiser import Denoiser, model_denoiser
from llada_plugins.diffusion.finished_blocks import keeping_finished_blocks
from llada_plugins.diffusion.finished_prefix import DelayedPrefix
from llada_plugins.diffusion.guidance import guided, suppressed
from llada_plugins.diffusion.partial_refresh import partly_refreshed
from llada_plugins.diffusion.sub_block_cache import cached_by_parts
from llada_plugins.diffusion.token_rows import check_unmasked, token_rows
from llada_plugins.models.folder import known_special_tokens
from llada_plugins.models.llada import LLaDA
from llada_plugins.models.special_tokens import SpecialTokens

from .config import SamplerConfig
from .decode import decode
from .draft import Review, Sample, unreviewed
from .for_model import fitted
from .step import Step


def generate(
    model: LLaDA,
    prompts: Sequence[Sequence[int]],
    config: SamplerConfig | None = None,
    *,
    special: SpecialTokens | None = None,
    denoise: Denoiser | None = None,
    keys: Sequence[int] | None = None,
    stop: Callable[[list[int]], bool] | None = None,
    on_step: Callable[[Step], None] | None = None,
    review: Review = unreviewed,
) -> list[Sample]:
    """Decode one answer to each token prompt, all in one batch.

    An answer does not depend on the others. special: mask, EOS and EoT ids, by default
    those of the checkpoint. denoise: a denoiser to use in place of the model's plain one.
    keys, stop, on_step, review: see `decode_each`. Raises ValueError on a prompt that is
    empty, holds what is no token of the model, or does not fit its context, and on arguments
    of another kind.
    """
    check_model(model)
    check_function("review", review)
    check_functions(denoise=denoise, stop=stop, on_step=on_step)
    prompts = token_rows(prompts, model.config.num_embeddings)
    check_keys(keys, len(prompts))
    config = fitted(SamplerConfig() if config is None else config, model.config)
    special = known_special_tokens(model) if special is None else special
    check_special(special, model.config.num_embeddings)
    check_unmasked(prompts, special.mask)
    check_fits(model, prompts, config)
    config.check_budget(reviewed=review is not unreviewed)
    model.compiling.foresee(config.most_forwards)
    denoise = with_options(denoise or model_denoiser(model), config, special)
    return decode(
        denoise,
        prompts,
        config,
        special,
        device=model.device,
        keys=keys,
        stop=stop,
        on_step=on_step,
        review=review,
    )


def with_options(
    denoise: Denoiser,
    config: SamplerConfig,
    special: SpecialTokens,
) -> Denoiser:
    """The denoiser under the sampler's options that concern it.

    These are a cache, guidance, around it, so that each branch has a cache of its own, and
    suppressed tokens. Raises ValueError where an option needs a token that the checkpoint
    does not name.
    """
    if config.frozen is not None:
        denoise = cached(
            denoise,
            config.frozen,
            config.cache_refresh,
            left_neighbour=config.shift_cache == "exact",
            vicinity=config.cache_vicinity,
            prompts=config.prompt_refresh,
            delayed=special.mask if config.cache_delayed else None,
            finished=finished_prefix(config, special.mask),
        )
    partial = config.partial_refresh(special.mask)
    if partial is not None:
        denoise = partly_refreshed(denoise, partial, config.prompt_refresh)
    if config.sub_block_length is not None and config.sub_block_cache:
        denoise = cached_by_parts(denoise, config.sub_block_length, special.mask)
    elif config.cache == "auto":
        denoise = keeping_finished_blocks(denoise, config.blocks)
    if config.cfg_scale > 0:
        denoise = guided(denoise, config.cfg_scale, special.mask)
    check_special_tokens(config, special)
    if config.logits_eos_inf and special.eos is not None:
        denoise = suppressed(denoise, [special.eos, *special.more_eos])
    return denoise


def finished_prefix(config: SamplerConfig, mask_id: int) -> DelayedPrefix | None:
    """When a cache freezes finished blocks, if it does while others are in work."""
    if config.cache_delay_iter is None:
        return None
    return DelayedPrefix(config.cache_delay_iter, config.block, mask_id)


def check_special_tokens(config: SamplerConfig, special: SpecialTokens) -> None:
    """Raise ValueError where an option needs a token that the checkpoint does not name."""
    if config.logits_eos_inf and special.eos is None:
        raise ValueError(
            "logits_eos_inf needs an EOS token: this checkpoint's config.json states no "
            "eos_token_id"
        )
    if config.fills_after_end and special.eos is None:
        raise ValueError(
            "early_stop with block_add_threshold writes EOS after an answer's end: this "
            "checkpoint's config.json states no eos_token_id, so set early_stop=false"
        )
    if config.confidence_eos_eot_inf and not special.ends:
        raise ValueError(
            "confidence_eos_eot_inf needs an EOS or EoT token: this checkpoint names neither"
        )


def check_fits(model: LLaDA, prompts: Sequence[Sequence[int]], config: SamplerConfig) -> None:
    """Raise ValueError if a prompt and its answer exceed the model's context."""
    limit = model.config.max_sequence_length
    for number, prompt in enumerate(prompts):
        if len(prompt) > config.blocks.room(limit):
            raise ValueError(
                f"prompt {number} of {len(prompt)} tokens and {config.answer_in_words} "
                f"exceed the model's context of {limit} tokens: "
                "shorten the prompt or lower gen_length"
            )
