"""Do the tensors in a checkpoint's files fit the module that they are for?

What is missing, left over or of another shape is an error that names it, raised from the
headers of the files.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from llada_plugins.files.json_files import one_line
from llada_plugins.files.tensors import open_tensors, raise_problems

from .folder import tensor_names
from .layout import Layout

# the dtypes of weights, as safetensors name them
FLOATING = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
}


def account(
    module: nn.Module,
    files: Mapping[str, Path],
    source: Path,
    layout: Layout,
) -> None:
    """Raise ValueError that lists the tensors which are missing, left over or of another shape.

    files: by stored names. layout: how the files name the module's tensors.
    """
    wanted = {
        piece.stored: piece.of(tensor)
        for name, tensor in module.state_dict().items()
        for piece in layout.pieces(name, tensor)
    }
    missing, left_over = wanted.keys() - files.keys(), files.keys() - wanted.keys()
    problems = [f"missing {name}" for name in sorted(missing)]
    problems += [f"left over {one_line(name)}" for name in sorted(left_over)]
    by_file: dict[Path, list[str]] = {}
    for name in wanted.keys() & files.keys():
        by_file.setdefault(files[name], []).append(name)
    for path, names in sorted(by_file.items()):
        with open_tensors(path) as file:
            for name in sorted(names):
                expected, stored = wanted[name], file.get_slice(name)
                kinds = tuple(FLOATING.values()) if expected.dtype in FLOATING else ("I32",)
                if (shape := tuple(stored.get_shape())) != expected.shape:
                    problems.append(f"{name} is {list(shape)}, expected {list(expected.shape)}")
                elif (kind := stored.get_dtype()) not in kinds:
                    problems.append(f"{name} is {kind}, expected {' or '.join(kinds)}")
    raise_problems(f"{source}: its tensors do not fit its config", problems)


# The product of two such values is beyond float32. No training leaves a weight as large,
# while one flipped bit of an exponent does.
TOO_LARGE = math.sqrt(torch.finfo(torch.float32).max)


def check_finite(tensor: Tensor, name: str, path: Path) -> None:
    """Raise ValueError where a value, or a product with it, would be no number.

    It would spoil answers without a word.
    """
    if not tensor.is_floating_point() or not tensor.numel():
        return
    least, most = (bound.item() for bound in torch.aminmax(tensor))
    dtype = str(tensor.dtype).removeprefix("torch.")
    if not (math.isfinite(least) and math.isfinite(most)):
        raise ValueError(
            f"{path}: {name} holds NaN or infinity in {dtype}: the file is damaged, or its "
            "numbers are too large for dtype"
        )
    if max(-least, most) > TOO_LARGE:
        raise ValueError(
            f"{path}: {name} holds {max(-least, most):.1e}, whose products are infinite: the file "
            "is damaged"
        )


def check_shards(files: Mapping[str, Path], unread: Collection[str]) -> None:
    """Raise ValueError where the files do not hold the tensors that their index says.

    files: what the index says. unread: what they may hold beside it.
    """
    if not files:  # what is missing is told where a model's tensors are accounted for
        return
    stored = {
        (tensor, path)
        for path in sorted(set(files.values()))
        for tensor in tensor_names(path)
        if tensor not in unread
    }
    problems = [
        f"missing {one_line(tensor)} (the index places it in {path.name})"
        for tensor, path in sorted(files.items() - stored)
    ]
    problems += [
        f"left over {one_line(tensor)} in {path.name} (the index does not name it there)"
        for tensor, path in sorted(stored - files.items())
    ]
    folder = next(iter(files.values())).parent
    raise_problems(f"{folder}: its files do not hold what its index says", problems)
