"""RemeDi's official bi-tower (arXiv 2509.23653).

A second tower of blocks beside LLaDA's feeds back into it and scores every position.
Parameter names equal the published checkpoint's (51 tensors beside LLaDA's 291), so
`pretrained=maple-research-lab/RemeDi-Instruct` loads. Dropping the tower is not an
option: token logits depend on its feedback.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from .block import Block, rms_norm
from .layer import View
from .llada import LLaDA
from .llada_config import LLaDAConfig

AFTER_LAYERS = (0, 10, 20, 30)  # constants of the published code, not in its config
# tensors that tell such a checkpoint; its config names it in several ways
MARK = "model.blocks_upm."


class BiTowerLLaDA(LLaDA):
    """LLaDA (the token stream) with RemeDi's policy stream; `streams` returns both."""

    own_stream = True

    def __init__(self, config: LLaDAConfig) -> None:
        if config.n_layers <= AFTER_LAYERS[-1]:
            raise ValueError(
                f"RemeDi's tower follows layers {AFTER_LAYERS}, but this config has "
                f"n_layers={config.n_layers}"
            )
        super().__init__(config)
        width = config.d_model
        self.model["blocks_upm"] = nn.ModuleList(Block(config) for _ in AFTER_LAYERS)
        self.model["backprop_linears"] = nn.ModuleList(
            nn.Linear(width, width) for _ in AFTER_LAYERS
        )
        self.model["backprop_norms"] = nn.ModuleList(rms_norm(width, config) for _ in AFTER_LAYERS)
        self.model["ln_f_upm"] = rms_norm(width, config)
        self.model["linear_confidence"] = nn.Linear(width, 1)

    def score_parameters(self) -> list[nn.Parameter]:
        """The score's own norm and Linear; the tower before them feeds back into the logits."""
        return [
            *self.model["ln_f_upm"].parameters(),
            *self.model["linear_confidence"].parameters(),
        ]

    @property
    def caching_blocks(self) -> Sequence[nn.Module]:
        """LLaDA's blocks, then the tower's."""
        return [*self.blocks, *cast(nn.ModuleList, self.model["blocks_upm"])]

    def _stack(self, x: Tensor, view: View, states: list[Tensor] | None) -> tuple[Tensor, Tensor]:
        parts = ("blocks_upm", "backprop_norms", "backprop_linears")
        modules = zip(*(cast(nn.ModuleList, self.model[name]) for name in parts))
        tower = enumerate(modules, self.config.n_layers)
        policy: Tensor | None = None  # (B, L, D)
        for layer, block in enumerate(self.blocks):
            if states is not None:
                states.append(x)
            x = view.run(block, x, layer)
            if layer in AFTER_LAYERS:
                policy_layer, (policy_block, norm, feedback) = next(tower)
                policy = view.run(policy_block, x if policy is None else x + policy, policy_layer)
                x = feedback(norm(policy)) + x
        confidence = self.model["linear_confidence"](self.model["ln_f_upm"](policy))  # (B, L, 1)
        return x, confidence.squeeze(-1).float()
