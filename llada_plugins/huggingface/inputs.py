"""What forward is given, as the network takes it, and the loss of what it returns."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def visible_columns(attention_mask: Tensor | None) -> Tensor | None:
    """The mask as the network takes it: (B, L) or (B, L, L), nonzero = may be attended to.

    attention_mask: one of these, or (B, 1, L, L) of booleans or whole numbers. Raises
    ValueError on others: an additive mask says zero where these say one.
    """
    if attention_mask is None or attention_mask.dim() < 4:
        return attention_mask
    if attention_mask.shape[1] != 1 or attention_mask.is_floating_point():
        raise ValueError(
            f"attention_mask of shape {tuple(attention_mask.shape)} and {attention_mask.dtype}: "
            "give (B, L), (B, L, L), or (B, 1, L, L) of booleans, true where a token may be "
            "attended to"
        )
    return attention_mask[:, 0]


def check_arguments(*, output_attentions: bool | None, past_key_values: object) -> None:
    """Raise ValueError on what a masked-diffusion model does not have."""
    if output_attentions:
        raise ValueError("output_attentions: attention is computed in one piece and not returned")
    if past_key_values is not None:
        raise ValueError(
            "past_key_values is not taken, since a forward is of whole rows: leave it out; "
            "generate keeps keys and values between steps as its cache= says"
        )


def masked_loss(
    logits: Tensor, labels: Tensor, *, shift: bool, num_items: Tensor | int | None
) -> Tensor:
    """Cross-entropy of the labelled positions of logits (B, L, V), in fp32.

    labels: (B, L), each at its own token's place; -100 = not counted. shift: the logits of
    a column are about the next token. num_items: what the sum is divided by; default the
    number of labels.
    """
    if shift:
        logits = torch.cat([logits[:, :1], logits[:, :-1]], 1)
    labels = labels.to(logits.device)
    reduction = "mean" if num_items is None else "sum"
    loss = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), reduction=reduction)
    if num_items is None:
        return loss
    return loss / (num_items.to(loss.device) if isinstance(num_items, Tensor) else num_items)
