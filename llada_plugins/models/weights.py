"""Fill a module from a checkpoint's safetensors, whatever they are stored in and become."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import nn

from llada_plugins.files.tensors import open_tensors

from .accounting import account, check_finite, check_shards
from .fingerprint import fingerprint, signature
from .folder import quantization_config
from .gptq import PackedLinear, pack_linears, read_packing, replace
from .lora import Adapter
from .quantization import (
    Quantization,
    check_applies,
    check_quantize,
    describe,
    quantise_linear,
)


def load_tensors(
    module: nn.Module,
    files: Mapping[str, Path],
    *,
    device: torch.device,
    dtype: torch.dtype,
    source: Path,
    finish: Callable[[str, nn.Module], nn.Module] = lambda name, filled: filled,
    stored_name: Callable[[str], str] = str,
) -> None:
    """Fill a meta-device module from safetensors, every tensor accounted for by name
    and shape before the first is read.

    Parameters are cast to dtype, buffers keep the file's. finish: what takes the place
    of each submodule that holds tensors, called with its name and itself when it is
    filled and before the next is read. stored_name: what the files call a tensor of
    `files`, which has the module's names.
    """
    account(module, files, source, stored_name)
    by_owner: dict[str, list[str]] = {}
    for name in files:
        owner, _, leaf = name.rpartition(".")
        by_owner.setdefault(owner, []).append(leaf)
    with ExitStack() as stack:
        opened = {
            path: stack.enter_context(open_tensors(path, device))
            for path in sorted(set(files.values()))
        }
        for name, leaves in by_owner.items():
            owner, prefix = module.get_submodule(name), name and f"{name}."
            state = {
                leaf: opened[files[prefix + leaf]].get_tensor(stored_name(prefix + leaf))
                for leaf in leaves
            }
            parameters = dict(owner.named_parameters(recurse=False))
            state = {
                leaf: tensor.to(dtype) if leaf in parameters else tensor
                for leaf, tensor in state.items()
            }
            for leaf, tensor in state.items():
                check_finite(tensor, prefix + leaf, files[prefix + leaf])
            owner.load_state_dict(state, strict=False, assign=True)
            if (finished := finish(name, owner)) is not owner:
                replace(module, name, finished)


def load_quantised(
    module: nn.Module,
    files: Mapping[str, Path],
    *,
    device: torch.device,
    dtype: torch.dtype,
    source: Path,
    quantize: str | None,
    blocks: str,
    adapter: Adapter | None = None,
    unread: Collection[str] = (),
    stored_name: Callable[[str], str] = str,
) -> Quantization | None:
    """load_tensors, of a GPTQ checkpoint too, which quantises each Linear whose name
    begins with `blocks` before it reads the next.

    quantize: as for load_model. adapter: merged into each module before that. unread:
    tensors that the files hold beside `files`. stored_name: as for load_tensors. Returns
    what became of the weights, None where they are not quantised.
    """
    check_quantize(quantize)
    packing = read_packing(quantization_config(source), files, source)
    applies = any(
        isinstance(part, nn.Linear) and name.startswith(blocks)
        for name, part in module.named_modules()
    )
    check_applies(quantize, source, packed=packing is not None, has_linears=applies)
    check_shards({stored_name(name): path for name, path in files.items()}, unread)
    num_parameters = sum(parameter.numel() for parameter in module.parameters())
    if packing:
        pack_linears(module, files, packing)
    stored: dict[str, bytes] = {}  # signatures before the adapter
    signatures: dict[str, bytes] = {}

    def sign(name: str, owner: nn.Module) -> dict[str, bytes]:
        return {
            f"{name}.{leaf}": signature(f"{name}.{leaf}", tensor)
            for leaf, tensor in owner.named_parameters(recurse=False)
        }

    def finish(name: str, filled: nn.Module) -> nn.Module:
        if isinstance(filled, PackedLinear):
            filled.check(f"{source}: {name}")
        plain = filled.unpacked(dtype) if isinstance(filled, PackedLinear) else filled
        if adapter is not None:
            stored.update(sign(name, plain))
            adapter.merge(name, plain)
        if quantize is None:
            return plain
        signatures.update(sign(name, plain))
        if quantize == "packed":
            return filled
        return (
            quantise_linear(plain, quantize)
            if isinstance(plain, nn.Linear) and name.startswith(blocks)
            else plain
        )

    load_tensors(
        module,
        files,
        device=device,
        dtype=dtype,
        source=source,
        finish=finish,
        stored_name=stored_name,
    )
    if adapter is not None:
        adapter.check_backbone(fingerprint(stored))
    if not packing and quantize is None:
        return None
    method = f"gptq 4-bit, {quantize or 'dequantised'}" if packing else describe(quantize)
    return Quantization(method, num_parameters, fingerprint(signatures) if quantize else None)
