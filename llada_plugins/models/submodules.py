"""What may be read of a submodule instead of calling it, whoever adapted, watched or moved it.

Adapters take a module's place, hooks stand around its call, parametrizations make its weight,
and accelerate's offloading leaves weights on the meta device until the call. So modules are
called; this file holds the exceptions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules import module as global_hooks


def is_hooked(module: nn.Module) -> bool:
    """Does calling `module` do more than its class's forward?

    An instance's own `forward` is how accelerate wraps a module.
    """
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or global_hooks._global_forward_hooks
        or global_hooks._global_forward_pre_hooks
        or "forward" in vars(module)
    )


def is_plain_linear(module: nn.Module, x: Tensor) -> bool:
    """Is calling `module` on x a product with its weight, and nothing besides?

    A weight of another class than Parameter has arithmetic of its own (torchao), and
    one that lies elsewhere comes with the call.
    """
    if type(module) is not nn.Linear or is_hooked(module):
        return False
    weight = module.weight
    return type(weight) is nn.Parameter and (weight.device, weight.dtype) == (x.device, x.dtype)


def table(embedding: nn.Module, num_rows: int) -> Tensor:
    """The rows (V, D) of an embedding, as a head that shares them multiplies by them.

    Hooks change what is looked up, not the rows. An adapter changes them and has no
    such weight; offloaded ones come with the call: there all ids are looked up.
    """
    if isinstance(embedding, nn.Embedding) and not embedding.weight.is_meta:
        return embedding.weight
    rows: Tensor = embedding(torch.arange(num_rows, device=home(embedding)))
    return rows


def home(module: nn.Module) -> torch.device:
    """Where a module computes: on its weights' device, or where accelerate's hook brings them.

    Raises ValueError where its weights are on the meta device and nothing would bring them.
    """
    for part in module.modules():  # peft keeps an embedding's adapter in such, and calls none
        if isinstance(part, nn.ParameterDict) and any(each.is_meta for each in part.values()):
            raise ValueError(
                "an embedding's adapter is offloaded, and peft reads it without a call that would "
                "bring it back: merge the adapter (merge_and_unload) before offloading"
            )
    device = next(module.parameters()).device
    if device.type != "meta":
        return device
    for part in module.modules():  # adapted, the weights are those of a module inside
        hook = getattr(part, "_hf_hook", None)
        for each in getattr(hook, "hooks", [hook]):
            if getattr(each, "execution_device", None) is not None:
                return torch.device(each.execution_device)
    raise ValueError(
        "the model's weights are on the meta device, and no hook of accelerate brings them from "
        "elsewhere: load it by load_model, or offload it by accelerate's cpu_offload"
    )


def check_present(module: nn.Module, purpose: str) -> None:
    """Raise ValueError where weights are offloaded, so not there to be read. purpose: for what."""
    absent = [name for name, tensor in module.state_dict().items() if tensor.is_meta]
    if absent:
        raise ValueError(
            f"{len(absent)} of the model's tensors are offloaded ({absent[0]}), and {purpose} "
            "reads them all: do that first, then offload, or take the hooks off "
            "(accelerate.hooks.remove_hook_from_submodules)"
        )
