"""Fill a module from a checkpoint's safetensors, whatever they are stored in and become."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from llada_plugins.files.tensors import open_tensors

from .accounting import account, check_finite, check_shards
from .fingerprint import fingerprint, signatures
from .folder import quantization_config
from .gptq import PackedLinear, pack_linears, read_packing, replace
from .layout import SAME_NAMES, Layout, Piece
from .lora import Adapter
from .mixture import StackedLinear
from .quantization import (
    Quantization,
    check_applies,
    check_quantize,
    describe,
    quantised,
)
from .scaled_linear import check_device, check_shape


def load_tensors(
    module: nn.Module,
    files: Mapping[str, Path],
    *,
    device: torch.device,
    dtype: torch.dtype,
    source: Path,
    finish: Callable[[str, nn.Module], nn.Module] = lambda name, filled: filled,
    layout: Layout = SAME_NAMES,
) -> None:
    """Fill a meta-device module from safetensors, every tensor accounted for beforehand.

    files: by stored names. Parameters are cast to dtype, buffers keep the file's.
    finish: what takes the place of each submodule that holds tensors, called with its
    name and itself when it is filled and before the next is read. layout: how the files
    name the module's tensors.
    """
    account(module, files, source, layout)
    leaves: dict[str, list[str]] = {}  # a submodule's name -> its own tensors
    for name in module.state_dict():
        owner, _, leaf = name.rpartition(".")
        leaves.setdefault(owner, []).append(leaf)
    with ExitStack() as stack:
        opened = {
            path: stack.enter_context(open_tensors(path, device))
            for path in sorted(set(files.values()))
        }
        for owner in leaves:
            filled = module.get_submodule(owner)
            parameters = dict(filled.named_parameters(recurse=False))
            state, empty = {}, filled.state_dict()
            for leaf in leaves[owner]:
                pieces = layout.pieces(f"{owner}.{leaf}" if owner else leaf, empty[leaf])
                cast = dtype if leaf in parameters else None
                state[leaf] = _read(pieces, empty[leaf], opened, files, cast)
            filled.load_state_dict(state, strict=False, assign=True)
            finished = finish(owner, filled)
            if finished is not filled:
                replace(module, owner, finished)


def _read(
    pieces: Sequence[Piece],
    empty: Tensor,
    opened: Mapping[Path, Any],
    files: Mapping[str, Path],
    dtype: torch.dtype | None,
) -> Tensor:
    """One of the module's tensors from its stored pieces; empty: what stands in its place.

    dtype: what it is cast to; None leaves it as it is stored.
    """
    whole: Tensor | None = None
    for piece in pieces:
        path = files[piece.stored]
        tensor: Tensor = opened[path].get_tensor(piece.stored)
        tensor = tensor if dtype is None else tensor.to(dtype)
        check_finite(tensor, piece.stored, path)
        if piece.is_whole:
            return tensor
        if whole is None:
            whole = tensor.new_empty(empty.shape)
        piece.of(whole).copy_(tensor)
    assert whole is not None
    return whole


class Conversion:
    """What becomes of each submodule of a checkpoint when its tensors are read.

    A packed Linear is unpacked, an adapter is merged, a Linear of the blocks is quantised.
    """

    def __init__(
        self,
        source: Path,
        dtype: torch.dtype,
        *,
        quantize: str | None,
        blocks: str,
        adapter: Adapter | None,
    ) -> None:
        self.source, self.dtype = source, dtype
        self.quantize, self.blocks, self.adapter = quantize, blocks, adapter
        self.stored: dict[str, bytes] = {}  # signatures of the weights before the adapter
        self.merged: dict[str, bytes] = {}  # those with it, before they are quantised

    def __call__(self, name: str, filled: nn.Module) -> nn.Module:
        """What takes the place of the submodule of that name."""
        plain = filled
        if isinstance(filled, PackedLinear):
            filled.check(f"{self.source}: {name}")
            plain = filled.unpacked(self.dtype)
        if self.adapter is not None:
            self.stored.update(signatures(name, plain))
            self.adapter.merge(name, plain)
        if self.quantize is None:
            return plain
        self.merged.update(signatures(name, plain))
        if self.quantize == "packed":
            return filled
        if is_quantised(plain, name, self.blocks):
            return quantised(plain, self.quantize)
        return plain


def load_weights(
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
    layout: Layout = SAME_NAMES,
) -> Quantization | None:
    """load_tensors of any checkpoint, GPTQ too, whose weights an option may change as they come.

    quantize: as for load_model, of the Linears whose names begin with `blocks`. adapter:
    merged into each module before that. unread: tensors that the files hold beside
    `files`. layout: as for load_tensors. Returns what became of the weights, None where
    they are not quantised.
    """
    check_quantize(quantize)
    check_device(quantize, device, dtype)
    packing = read_packing(quantization_config(source), files, source)
    shapes = {
        name: part.weight.shape
        for name, part in module.named_modules()
        if is_quantised(part, name, blocks)
    }
    check_applies(quantize, source, packed=packing is not None, has_linears=bool(shapes))
    for name, shape in shapes.items():
        check_shape(quantize, name, shape, device)
    check_shards(files, unread)
    num_parameters = sum(parameter.numel() for parameter in module.parameters())
    if packing:
        _check_has_no_experts(module, source)
        pack_linears(module, map(layout.our_name, files), packing)
    conversion = Conversion(source, dtype, quantize=quantize, blocks=blocks, adapter=adapter)
    load_tensors(
        module,
        files,
        device=device,
        dtype=dtype,
        source=source,
        finish=conversion,
        layout=layout,
    )
    if adapter is not None:
        adapter.check_backbone(fingerprint(conversion.stored))
    if packing:
        method = f"gptq 4-bit, {quantize or 'dequantised'}"
    elif quantize is not None:
        method = describe(quantize)
    else:
        return None
    weights = fingerprint(conversion.merged) if quantize else None
    return Quantization(method, num_parameters, weights, gptq=packing is not None)


def _check_has_no_experts(module: nn.Module, source: Path) -> None:
    """Raise ValueError where a GPTQ checkpoint is of a mixture of experts."""
    if any(isinstance(part, StackedLinear) for part in module.modules()):
        raise ValueError(
            f"{source} is GPTQ, which is not implemented for experts: give the checkpoint that it "
            "was made from, with quantize=int8 or nf4 to save memory"
        )


def is_quantised(module: nn.Module, name: str, blocks: str) -> TypeGuard[nn.Linear | StackedLinear]:
    """Is it, by its name, what quantize= changes?"""
    return isinstance(module, (nn.Linear, StackedLinear)) and name.startswith(blocks)
