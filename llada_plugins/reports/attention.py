"""Attention statistics of a decoded answer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from llada_plugins.models.block import Block
from llada_plugins.models.llada import LLaDA

Measured = TypeVar("Measured")


def attention(block: Block, x: Tensor, cos: Tensor, sin: Tensor, visible: Tensor | None) -> Tensor:
    """The attention weights of a block on its input, fp32, by its own projections.

    (B, L, D) -> (B, H, queries, keys).
    """
    config = block.config
    q, k, _ = (each.float() for each in block.projections(block.attn_norm(x), cos, sin))
    k = k.repeat_interleave(config.n_heads // config.num_kv_heads, 1)
    score = q @ k.transpose(-1, -2) * config.head_dim**-0.5
    if visible is not None:
        score = score.masked_fill(~visible, -math.inf)
    return score.softmax(-1)


@torch.inference_mode()
def each_attention(
    model: LLaDA, tokens: Tensor, measure: Callable[[Tensor], Measured]
) -> dict[str, Measured]:
    """`measure` of every block's attention weights in a forward of tokens (B, L), by its name.

    The weights of one block exist at a time.
    """
    found: dict[str, Measured] = {}
    hooks = []
    for name, block in model.named_modules():
        if isinstance(block, Block):

            def hook(block: Block, given: tuple, output: Tensor, name: str = name) -> None:
                x, cos, sin, visible = given
                found[name.removeprefix("model.").removeprefix("transformer.")] = measure(
                    attention(block, x, cos, sin, visible)
                )

            hooks.append(block.register_forward_hook(hook))
    try:
        model.hidden_states(tokens)
    finally:
        for handle in hooks:
            handle.remove()
    return found


class AttentionStatistics(NamedTuple):
    """Where the queries of a group attend, per head (H,): means over queries."""

    entropy: Tensor  # nats; ln L where attention is uniform over L places
    distance: Tensor  # tokens between query and key
    to_prompt: Tensor  # share of attention that goes to the prompt, 0-1


def attention_statistics(weights: Tensor, prompt_length: int) -> dict[str, AttentionStatistics]:
    """Of weights (1, H, L, L) of a prompt and the masks after it: the queries of either."""
    place = torch.arange(weights.shape[-1], device=weights.device)
    entropy = torch.special.entr(weights).sum(-1)[0]  # (H, L)
    distance = (weights * (place[:, None] - place).abs()).sum(-1)[0]
    to_prompt = weights[..., :prompt_length].sum(-1)[0]
    groups = {"prompt": slice(prompt_length), "masked": slice(prompt_length, None)}
    return {
        name: AttentionStatistics(
            *(values[:, queries].mean(-1).cpu() for values in (entropy, distance, to_prompt))
        )
        for name, queries in groups.items()
    }


def summarise(
    model: LLaDA, prompts: Sequence[Sequence[int]], num_masks: int, mask_id: int
) -> list[dict[str, Any]]:
    """A row for each block and group of queries, means over prompts.

    Before decoding, when the whole answer is masked; without a router.
    """
    measured = [_measured(model, prompt, num_masks, mask_id) for prompt in prompts]
    rows = []
    for name in measured[0]:
        for group in ("prompt", "masked"):
            found = [each[name][group] for each in measured]
            heads = {
                field: torch.stack([getattr(each, field) for each in found]).mean(0)
                for field in AttentionStatistics._fields
            }
            means = {field: float(values.mean()) for field, values in heads.items()}
            lists = {field: values.tolist() for field, values in heads.items()}
            rows.append({"block": name, "queries": group, **means, "heads": lists})
    return rows


def _measured(
    model: LLaDA, prompt: Sequence[int], num_masks: int, mask_id: int
) -> dict[str, dict[str, AttentionStatistics]]:
    """By block and group of queries, for one prompt."""
    tokens = torch.tensor([[*prompt, *[mask_id] * num_masks]], device=model.device)  # (1, L)
    return each_attention(model, tokens, lambda weights: attention_statistics(weights, len(prompt)))
