"""A loss that balances the load of a mixture's experts, added to any objective."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llada_plugins.models.mixture import SoftmaxRouter

from .objectives import Loss, Objective


def balanced(objective: Objective, coefficient: float) -> Objective:
    """The objective plus coefficient x `load_balance` of each micro-batch's forward.

    Its mean over the micro-batches of an update is weighted as the objective's. Evaluations
    are the objective's alone.
    """

    def balanced_objective(
        model: nn.Module, batch: dict[str, Tensor], generator: torch.Generator
    ) -> Loss:
        if not model.training:
            return objective(model, batch, generator)
        with _routed(model) as routed:
            loss = objective(model, batch, generator)
        # not in the forward: layers that are computed again would save fewer tensors there
        probability = [
            F.linear(each.rows, each.router.weight).softmax(-1, dtype=torch.float)
            for each in routed
        ]
        chosen = torch.cat([each.chosen for each in routed])
        extra = coefficient * load_balance(torch.cat(probability), chosen)
        return loss._replace(sum=loss.sum + extra * loss.count)

    return balanced_objective


def load_balance(probability: Tensor, chosen: Tensor) -> Tensor:
    """E x the sum over experts of their share of choices times their mean probability.

    Shares are of all tokens of all layers together, and sum to K (Switch Transformer, arXiv
    2101.03961, eq. 4, as transformers has it for K > 1): K where the load is even.
    probability: (R, E), fp32. chosen: (R, K) experts.
    """
    experts = probability.shape[1]
    share = torch.bincount(chosen.flatten(), minlength=experts) / len(chosen)  # (E,)
    return experts * (share * probability.mean(0)).sum()


def check_balances(model: nn.Module, coefficient: float) -> None:
    """Raise ValueError where no router trains that the loss could balance."""
    routers = [module for module in model.modules() if isinstance(module, SoftmaxRouter)]
    if not any(router.weight.requires_grad for router in routers):
        has = "its routers do not train" if routers else "this model has no such router"
        raise ValueError(
            f"--router_aux_loss_coef {coefficient} balances routers that are a softmax of all "
            f"experts, as LLaDA-MoE's, and {has}: leave it out"
        )


class Routed(NamedTuple):
    """A call of a router."""

    router: SoftmaxRouter
    rows: Tensor  # (R, D)
    chosen: Tensor  # (R, K) experts


@contextmanager
def _routed(model: nn.Module) -> Iterator[list[Routed]]:
    """A list that gets every call of a router until the context ends."""
    found: list[Routed] = []

    def note(router: nn.Module, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        assert isinstance(router, SoftmaxRouter)
        found.append(Routed(router, inputs[0], output[0]))

    handles = [
        module.register_forward_hook(note)
        for module in model.modules()
        if isinstance(module, SoftmaxRouter)
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
