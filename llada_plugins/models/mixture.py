"""A mixture of experts in the place of a block's MLP.

A router, and the matrices of all experts in two stacks. Rows are grouped by expert, so
that each expert multiplies its own at once.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .llada_config import LLaDAConfig


class Router(nn.Module):
    """Which experts a token takes, and with what weights (LLaDA-MoE, arXiv 2509.24389).

    Not a Linear: quantisation leaves it as it is, for a rounded weight changes choices.
    """

    def __init__(self, config: LLaDAConfig) -> None:
        super().__init__()
        self.experts_per_token = config.experts_per_token
        self.weight = nn.Parameter(torch.empty(config.num_experts, config.d_model))
        nn.init.normal_(self.weight, std=config.d_model**-0.5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The chosen experts of rows (R, D), ascending, and their weights, each (R, K).

        The weights are probabilities among all experts, so their sum is below 1.
        """
        probability = F.linear(x, self.weight).softmax(-1, dtype=torch.float)  # (R, E)
        chosen = probability.topk(self.experts_per_token, -1).indices.sort(-1).values
        return chosen, probability.gather(-1, chosen).to(x.dtype)


class StackedLinear(nn.Module):
    """Linears of one shape and without bias, in one weight (E, outputs, inputs)."""

    def __init__(self, number: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(number, outputs, inputs))
        nn.init.normal_(self.weight, std=inputs**-0.5)

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        """(R, outputs) of rows (R, inputs) that are sorted by Linear.

        ends: (E,), where the rows of each end.
        """
        if _has_grouped_product(x, self.weight):
            # on the GPU one call for all, and the numbers of rows stay there
            return F.grouped_mm(x, self.weight.transpose(1, 2), offs=ends.int())
        parts = x.tensor_split(ends[:-1].tolist())
        return torch.cat([F.linear(*pair) for pair in zip(parts, self.weight)])


def _has_grouped_product(x: Tensor, weight: Tensor) -> bool:
    """Does torch's grouped product take them? It wants rows of whole 16 bytes."""
    fits = hasattr(F, "grouped_mm") and all(size % 8 == 0 for size in weight.shape[1:])
    return fits and x.device.type == "cuda" and x.dtype == weight.dtype == torch.bfloat16


class Mixture(nn.Module):
    """The MLP of a block, chosen for each token.

    The sum of K experts' outputs times their weights, in the model's dtype and in ascending
    order of experts, as published.
    """

    def __init__(self, config: LLaDAConfig) -> None:
        super().__init__()
        number, width, hidden = config.num_experts, config.d_model, config.mlp_hidden_size
        self.router = Router(config)
        self.gate_up = StackedLinear(number, width, 2 * hidden)  # gates over the others
        self.down = StackedLinear(number, hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])  # (R, D)
        chosen, weight = self.router(rows)  # (R, K)
        experts, order = chosen.flatten().sort(stable=True)  # (R K)
        numbers = torch.arange(len(self.router.weight), device=x.device)
        ends = torch.searchsorted(experts, numbers, right=True)  # (E,)
        gate, up = self.gate_up(rows[order // chosen.shape[1]], ends).chunk(2, -1)
        output = self.down(F.silu(gate) * up, ends)  # (R K, D)
        output = output[order.argsort()].view(*chosen.shape, -1) * weight[..., None]
        total: Tensor = output[:, 0]
        for each in output.unbind(1)[1:]:  # in this order: bfloat16 sums depend on it
            total = total + each
        return total.view_as(x)
