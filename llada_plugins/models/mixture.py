"""A mixture of experts in the place of a block's MLP.

A router, and the matrices of all experts in two stacks. Rows are grouped by expert, so
that each expert multiplies its own at once. The order of sums and casts is the published
code's, so that bfloat16 rounds as there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .llada_config import LLaDAConfig


class Router(nn.Module):
    """Which experts a token takes, and with what weights; a subclass says how.

    Not a Linear: quantisation leaves it as it is, for a rounded weight changes choices.
    """

    def __init__(self, config: LLaDAConfig) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.num_experts, config.d_model))
        nn.init.normal_(self.weight, std=config.d_model**-0.5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The chosen experts of rows (R, D), and their weights, each (R, K).

        Experts' outputs are multiplied and summed in the dtype of the weights, in this order.
        """
        raise NotImplementedError


class SoftmaxRouter(Router):
    """Probabilities among all experts (LLaDA-MoE, arXiv 2509.24389; Qwen3-MoE)."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """As a Router's: experts ascend, and weights are in the dtype of x.

        Unless the config normalises them, they sum to less than 1.
        """
        probability = F.linear(x, self.weight).softmax(-1, dtype=torch.float)  # (R, E)
        top = probability.topk(self.config.experts_per_token, -1)
        chosen = top.indices.sort(-1).values
        weight = probability.gather(-1, chosen)
        if self.config.normalised_experts:
            weight = weight / top.values.sum(-1, keepdim=True)
        return chosen, weight.to(x.dtype)


class SigmoidRouter(Router):
    """Each expert by itself, of the best groups (LLaDA2.0, arXiv 2512.15745).

    A bias, which balances the load in training, has a say in the choice and none in the
    weights. It is a buffer of the dtype in which it is stored: a rounded one chooses others.
    """

    expert_bias: Tensor

    def __init__(self, config: LLaDAConfig) -> None:
        super().__init__(config)
        self.register_buffer("expert_bias", torch.zeros(config.num_experts, dtype=torch.float32))

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> SigmoidRouter:
        """As any module's, but the bias keeps its dtype where a model is moved to another."""
        kept = self.expert_bias
        super()._apply(fn, recurse)
        if self.expert_bias.dtype != kept.dtype:
            self.expert_bias = kept.to(self.expert_bias.device)
        return self

    def logits(self, x: Tensor) -> Tensor:
        """(R, E) of rows (R, D), in fp32."""
        return F.linear(x.float(), self.weight.float())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """As a Router's: experts in no order, weights in fp32."""
        config = self.config
        score = self.logits(x).sigmoid()  # (R, E)
        biased = score + self.expert_bias
        grouped = biased.view(len(biased), config.expert_groups, -1)  # (R, G, E / G)
        of_group = grouped.topk(2, -1).values.sum(-1)  # (R, G)
        best = of_group.topk(config.groups_per_token, -1).indices
        out = torch.ones_like(of_group, dtype=torch.bool).scatter(1, best, False)
        eligible = grouped.masked_fill(out[..., None], float("-inf")).flatten(1)
        # In topk's own order: sums in fp32 depend on it, and the published code asks for it.
        chosen = eligible.topk(config.experts_per_token, -1, sorted=False).indices
        weight = score.gather(1, chosen)
        if config.normalised_experts and config.experts_per_token > 1:
            weight = weight / (weight.sum(-1, keepdim=True) + 1e-20)
        return chosen, weight * config.expert_scale


ROUTERS: dict[str, type[Router]] = {"softmax": SoftmaxRouter, "sigmoid": SigmoidRouter}


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


class SharedExpert(nn.Module):
    """The experts that every token takes, as one MLP of all their width."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.ff_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.ff_out = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.ff_out(F.silu(self.ff_proj(x)) * self.up_proj(x))
        return output


class Mixture(nn.Module):
    """The MLP of a block, chosen for each token.

    The sum of K experts' outputs times their weights, and of the shared experts' output
    where there are some.
    """

    def __init__(self, config: LLaDAConfig) -> None:
        super().__init__()
        number, width, hidden = config.num_experts, config.d_model, config.expert_width
        self.router = ROUTERS[config.router](config)
        self.gate_up = StackedLinear(number, width, 2 * hidden)  # gates over the others
        self.down = StackedLinear(number, hidden, width)
        self.shared: SharedExpert | None = None
        if config.num_shared_experts:
            self.shared = SharedExpert(width, hidden * config.num_shared_experts)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])  # (R, D)
        chosen, weight = self.router(rows)  # (R, K)
        experts, order = chosen.flatten().sort(stable=True)  # (R K)
        numbers = torch.arange(len(self.router.weight), device=x.device)
        ends = torch.searchsorted(experts, numbers, right=True)  # (E,)
        gate, up = self.gate_up(rows[order // chosen.shape[1]], ends).chunk(2, -1)
        output = self.down(F.silu(gate) * up, ends)  # (R K, D)
        output = output[order.argsort()].view(*chosen.shape, -1).to(weight.dtype)
        output = output * weight[..., None]
        total: Tensor = output[:, 0]
        for each in output.unbind(1)[1:]:  # in this order: sums depend on it
            total = total + each
        total = total.to(x.dtype).view_as(x)
        return total if self.shared is None else total + self.shared(x)
