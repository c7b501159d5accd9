"""Safetensors files: written whole, opened with errors of one line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from .atomic import whole_file
from .json_files import first_line


def save_tensors(
    state: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file that others may read.

    The library gives it mode 0600, whatever the umask.
    """
    with whole_file(path) as partial:
        save_file(dict(state), partial, metadata={"format": "pt", **(metadata or {})})
        partial.chmod(0o644)


def open_tensors(path: Path, device: torch.device | str = "cpu") -> Any:
    """A safetensors file, to be read tensor by tensor; ValueError in one line where it is torn."""
    try:
        return safe_open(path, "pt", device=str(device))
    except Exception as error:  # safetensors raises its own type for a torn or foreign file
        raise ValueError(
            f"{path} is not a readable safetensors file: {first_line(error)}"
        ) from None


def raise_problems(beginning: str, problems: Sequence[str], remedy: str = "") -> None:
    """Raise ValueError that lists the problems that tensors have, the first eight of them."""
    if problems:
        more = f" … and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise ValueError(f"{beginning}: {'; '.join(problems[:8])}{more}{remedy}")
