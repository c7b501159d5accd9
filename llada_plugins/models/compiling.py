"""Whether a model's layers run compiled: what was asked for, what pays, what cannot be.

One graph serves all layers of a kind, because their weights and their keys and values
reach it as tensors. Rows and columns are symbols in it, so that batches that shrink and
blocks at other places need no other graph; one row, which a compiler always tells from
several, has its own.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
import shutil
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from llada_plugins.files.json_files import first_line

from .joint import Joint
from .submodules import is_hooked

if TYPE_CHECKING:
    from .layer import Layer

logger = logging.getLogger(__name__)

Backend = str | Callable[..., Any]  # of torch.compile
Compile = Literal["auto", "on", "off"]  # values of the option
COMPILE: tuple[str, ...] = get_args(Compile)

# From how many forwards on `auto` compiles. On an H100 a graph of LLaDA-8B's layer took
# 2 s and saved 12 ms of a forward of 44 ms: 180 forwards, for each of three graphs that a
# run needs (one row, several rows, a cache's later steps). A slow host took 5 s, and a
# later step saved 39 ms there.
WORTHWHILE = 600
# Where products with one input are joined: on a CPU a kernel's begin costs nothing.
JOINING = ("cuda",)
# Graphs of one process. A model has at most twelve: with and without keys and values of
# other columns, a mask, several rows, several columns.
MAX_GRAPHS = 64


class Lack(NamedTuple):
    """Why nothing can be compiled here."""

    what: str
    remedy: str


def lacking(device: torch.device) -> Lack | None:
    """What torch.compile needs on that device and does not find."""
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return Lack("triton is missing", "pip install triton")
    if cpp_compiler() is None:
        return Lack("no C++ compiler on the PATH", "install g++")
    return None


def cpp_compiler() -> str | None:
    """The path of the compiler that inductor would call."""
    names = (os.environ.get("CXX") or "g++", "clang++")
    return next(filter(None, map(shutil.which, names)), None)


def check_compile(mode: str, device: torch.device) -> None:
    """Raise ValueError on a value that is not known, ImportError where `on` cannot be."""
    if mode not in COMPILE:
        raise ValueError(f"compile must be one of {', '.join(COMPILE)}, got {mode!r}")
    lack = lacking(device) if mode == "on" else None
    if lack is not None:
        raise ImportError(
            f"compile=on cannot work: {lack.what}: {lack.remedy}, or use compile=auto or off"
        )


class Compiling:
    """What the layers of one model ask before they run.

    mode: on and off are orders. auto compiles on a GPU, once WORTHWHILE forwards have
    been announced by `foresee`: those that are done count too, since more of the kind
    are likely. backend: of torch.compile.
    """

    def __init__(self, mode: str, backend: Backend = "inductor") -> None:
        self.mode, self.backend = mode, backend
        self.num_forwards = 0  # announced so far
        self.notes: set[str] = set()  # what the log has been told
        self.failed = False  # torch.compile has, and is not tried again

    def foresee(self, num_forwards: int) -> None:
        """Announce forwards that are about to be asked for."""
        self.num_forwards += num_forwards

    def wanted(self, device: torch.device) -> bool:
        """Shall layers run compiled there, if they can?"""
        if self.failed or self.mode != "auto":
            return not self.failed and self.mode == "on"
        return device.type == "cuda" and self.num_forwards >= WORTHWHILE

    def run(self, layer: Layer, x: Tensor, *given: Any) -> Tensor:
        """What the layer computes, compiled where that is wanted and works."""
        if torch.compiler.is_compiling() or not self.wanted(x.device):
            return layer.compute(x, *given)
        hooked = next(
            (name for name, part in layer.named_modules() if name and is_hooked(part)), None
        )
        if hooked is not None:
            self.note(
                f"layers run eager: a layer's {hooked} has hooks (of an adapter, of offloading), "
                "which a compiled layer may not call"
            )
            return layer.compute(x, *given)
        try:
            output: Tensor = _compiled(self.backend)(layer, x, *given, _joint(layer, x))
            return output
        except _failures() as error:
            self.failed = True
            self.note(f"layers run eager: torch.compile cannot work on them: {first_line(error)}")
            return layer.compute(x, *given)

    def note(self, message: str) -> None:
        """Tell the log, one time."""
        if message not in self.notes:
            self.notes.add(message)
            logger.warning(message)


def _joint(layer: Layer, x: Tensor) -> Joint | None:
    """What the layer computes with; None where gradients are asked for, which are its modules'."""
    if x.device.type not in JOINING or not torch.is_inference_mode_enabled():
        return None
    return layer.joint_weights.of(layer, layer.same_input, x)


def compute(layer: Layer, *given: Any) -> Tensor:
    """What is compiled: a function of the layer, so that all layers share its graphs."""
    return layer.compute(*given)


@functools.cache
def _compiled(backend: Backend) -> Callable[..., Tensor]:
    import torch._dynamo.config as config

    config.cache_size_limit = max(config.cache_size_limit, MAX_GRAPHS)
    # whole or not at all: what breaks a graph is told, not worked around layer by layer
    return torch.compile(compute, fullgraph=True, dynamic=True, backend=backend)


@functools.cache
def _failures() -> tuple[type[Exception], ...]:
    """What torch.compile raises where it cannot work, but for errors of the layer itself.

    The layer raises those again when it runs eager.
    """
    from torch._dynamo import exc

    found = [
        getattr(exc, name, None) for name in ("TorchDynamoException", "FailOnRecompileLimitHit")
    ]
    return tuple(kind for kind in found if kind is not None)
