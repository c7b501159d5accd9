"""What identifies a model: its tensors' names and values."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from itertools import chain

import torch
from torch import Tensor, nn

from .llada import LLaDA
from .quantization import quantization_of
from .submodules import check_present

# of each tensor: enough to tell two trained models apart, and 20 kB to read of 8B
FINGERPRINT_VALUES = 64


def signature(name: str, tensor: Tensor) -> bytes:
    """What a tensor contributes to a fingerprint: its name, shape and first values.

    The values are taken in bfloat16, whatever dtype they are loaded in.
    """
    values = tensor.detach().flatten()[:FINGERPRINT_VALUES]
    if tensor.dim() == 3:  # a stack of experts: of each matrix, the first and the middle ones
        matrices = tensor.detach().flatten(1)
        starts = (0, matrices.shape[1] // 2)
        values = torch.cat([matrices[:, start:][:, :FINGERPRINT_VALUES] for start in starts], 1)
    values = values.to(torch.bfloat16).float().cpu()
    return f"{name}{tuple(tensor.shape)}".encode() + values.numpy().tobytes()


def signatures(name: str, module: nn.Module) -> dict[str, bytes]:
    """What the own tensors of a submodule of that name contribute, by their full names."""
    own = (module.named_parameters(recurse=False), module.named_buffers(recurse=False))
    full = {f"{name}.{leaf}": tensor for leaf, tensor in chain(*own)}
    return {name: signature(name, tensor) for name, tensor in full.items()}


def fingerprint(signatures: Mapping[str, bytes]) -> str:
    """Identifies weights by the signatures of all tensors."""
    ordered = b"".join(signatures[name] for name in sorted(signatures))
    return hashlib.sha256(ordered).hexdigest()[:16]


def backbone_fingerprint(model: LLaDA) -> str:
    """Identifies the backbone's weights, in whatever dtype and however quantised at load."""
    record = quantization_of(model)
    if record and record.fingerprint:
        return record.fingerprint
    check_present(model, "the fingerprint that ties a part to its backbone")
    return fingerprint(
        {name: signature(name, tensor) for name, tensor in model.state_dict().items()}
    )
