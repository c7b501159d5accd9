"""What Remask SFT trains: a backbone with a light head, or with a policy stream of its own."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from llada_plugins.methods.policy_head import PolicyHead
from llada_plugins.models.layer import ActivationCheckpointing
from llada_plugins.models.llada import LLaDA

from .lora_adapters import LoRA, add_lora


class PolicyOutput(NamedTuple):
    """What Remask SFT needs of a forward pass."""

    logits: Tensor  # (N, V) at the N positions asked for
    score: Tensor  # (B, L) raw score h of every position, fp32


class PolicyModel(ActivationCheckpointing):
    """A backbone with a light head.

    A frozen backbone runs without a graph, so that training costs little more than its
    forward.
    """

    def __init__(self, backbone: LLaDA, head: PolicyHead | None) -> None:
        """head: None where the backbone's own stream takes its place."""
        super().__init__()
        self.backbone, self.head, self.config = backbone, head, backbone.config
        self.frozen = not any(parameter.requires_grad for parameter in backbone.parameters())

    def forward(
        self,
        tokens: Tensor,
        at: Tensor | tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> PolicyOutput:
        """Logits at `at` and scores everywhere, of tokens (B, L).

        at: bool (B, L), or rows and columns (N,) each. attention_mask, position_ids: as of
        `LLaDA.forward`.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            # (B, L, D), (B, L) or None
            hidden, score = self.backbone.streams(tokens, attention_mask, position_ids=position_ids)
            logits = self.backbone.head(hidden[at])
        if self.head is not None:
            score = self.head(hidden)
        assert score is not None  # a backbone without a head has a stream of its own
        return PolicyOutput(logits, score)


def policy_model(
    backbone: LLaDA,
    width: int,
    generator: torch.Generator,
    *,
    joint: bool = False,
    lora: LoRA | None = None,
) -> PolicyModel:
    """The backbone, frozen unless joint or lora is given, with a head of `width` hidden units.

    Changes the backbone in place.

    A backbone with a policy stream of its own gets no head: ValueError unless joint is given.
    """
    backbone.requires_grad_(joint)
    if backbone.own_stream:
        if not joint:
            raise ValueError(
                "this checkpoint has a policy stream of its own, beside which no head is read: "
                "give --joint, which trains that stream with the backbone"
            )
        return PolicyModel(backbone, None)
    head = PolicyHead(backbone.config.d_model, width)
    with torch.no_grad():  # as torch initialises them, but from the generator
        for parameter in head.parameters():
            fan_in = parameter.shape[1] if parameter.dim() == 2 else width or head.d_model
            parameter.uniform_(-(fan_in**-0.5), fan_in**-0.5, generator=generator)
    if lora is not None:
        add_lora(backbone, lora, generator)
    return PolicyModel(backbone, head)
