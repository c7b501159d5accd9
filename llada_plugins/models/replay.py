"""Small forwards as CUDA graphs: captured once over memory that stays in place, then replayed.

A small forward keeps a GPU waiting for its host: LLaDA-8B's is about 1,500 kernels, which
take 20 ms to launch and, for one row of 32 columns, 10 ms to run (H100).
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from llada_plugins.files.json_files import first_line

from .captured import obstacle
from .compiling import Compiling
from .cuda_graph import CudaGraph, Graph
from .layer import Streams, View
from .past import Memory, Past, row_bucket
from .replayed_forward import Compute, ReplayedForward, Shape, length_bucket, shape_of
from .slots import Slots
from .snapshot import Snapshot

# Rows up to which keys and values get memory that stays, which may be a third too large;
# more rows get it where their bucket has no other. 32 rows of 32 columns keep an H100 busy
# for 31 ms, but a slow host took 43 to launch that.
MOST_ROWS = 16
MAX_GRAPHS = 64  # further shapes run as they are

P = ParamSpec("P")
R = TypeVar("R")


def one_at_a_time(
    method: Callable[Concatenate[Replays, P], R],
) -> Callable[Concatenate[Replays, P], R]:
    """The method, which threads take turns in.

    The memory is all threads': another's input would be read, or its results returned.
    """

    @functools.wraps(method)
    def in_turn(self: Replays, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with self._lock:
            return method(self, *args, **kwargs)

    return in_turn


class Replays:
    """The graphs of one model.

    make_graph: of a device other than a GPU, where the model's layers need not be
    compiled; by default there are none.
    """

    def __init__(self, compiling: Compiling, make_graph: Callable[[], Graph] | None = None) -> None:
        self.compiling, self.make_graph = compiling, make_graph
        self.forwards: dict[Shape, ReplayedForward] = {}
        self.memory = Memory(before_move=self.forwards.clear)
        self.snapshot: Snapshot | None = None
        self.failed = False  # a capture has, and none is tried again
        self._lock = threading.RLock()

    def __reduce__(self) -> tuple[type[Replays], tuple[Compiling, object]]:
        """A copy, as of a copied model, begins without graphs."""
        return Replays, (self.compiling, self.make_graph)

    def wanted(self, device: torch.device) -> bool:
        """May a forward there be replayed, as far as is known without the model?"""
        if self.failed or not torch.is_inference_mode_enabled() or torch.compiler.is_compiling():
            return False
        on_gpu = device.type == "cuda" and self.compiling.wanted(device)
        return on_gpu or self.make_graph is not None

    @one_at_a_time
    def lend(
        self, past: Past, num_layers: int, shape: tuple[int, int, int, int], like: Tensor
    ) -> bool:
        """Fill an empty past with memory that stays in place, if it can be had.

        shape: rows, columns, heads, head_dim.
        """
        num_rows, length, num_heads, head_dim = shape
        if not self.memory.is_free:
            return False
        if isinstance(past, Slots):  # which have room for all that comes, and no more
            self.memory.lend(past, num_layers, shape, like)
            return True
        if MOST_ROWS < num_rows < row_bucket(num_rows):
            # batches are as large as free memory lets them be, measured without this
            self.memory.release()
            return False
        room = row_bucket(num_rows), length_bucket(length), num_heads, head_dim
        self.memory.lend(past, num_layers, room, like)
        past.num_rows, past.length = num_rows, length
        return True

    @one_at_a_time
    def run(
        self,
        model: nn.Module,
        compute: Compute,
        given: Tensor,
        view: View,
        past: Past | None,
        to_the_end: bool,
        length: int,
    ) -> Streams | None:
        """What `compute` makes of given (B, W, ...) and view; None where it is not for replay.

        to_the_end: do the columns in work go on to the end of the canvas, whose length
        that is?
        """
        if past is not None and not self.memory.is_held_by(past):
            return None
        shape = shape_of(given, view, past, to_the_end, length)
        if shape is None or not self._is_replayable(model):
            return None
        if shape not in self.forwards and len(self.forwards) >= MAX_GRAPHS:
            self.compiling.note(
                f"forwards of further shapes run without CUDA graphs: there are {MAX_GRAPHS}"
            )
            return None
        if shape not in self.forwards:
            self.forwards[shape] = ReplayedForward(shape, given, view, past)
        forward = self.forwards[shape]
        forward.load(given, view, length)
        if isinstance(past, Slots):
            forward.spare(past)
        found = self._results(forward, compute, given.device)
        if found is None:
            return None
        rows, columns = map(slice, given.shape[:2])
        # copies: the next forward of the shape writes to the same place
        hidden, confidence = (
            None if each is None else each[rows, columns].clone() for each in found
        )
        assert hidden is not None
        return Streams(hidden, confidence)

    def _results(
        self, forward: ReplayedForward, compute: Compute, device: torch.device
    ) -> Streams | None:
        """What a forward with its input computes; None where it cannot be captured."""
        try:
            return forward.run(compute, self.make_graph or self._cuda_graph(device))
        except RuntimeError as error:
            if not forward.captured.at_capture:
                raise
            self.failed = True
            self.forwards.clear()
            self.compiling.note(
                f"forwards run without CUDA graphs: none can be captured: {first_line(error)}"
            )
            return None

    def _cuda_graph(self, device: torch.device) -> Callable[[], Graph]:
        """What makes another graph beside those that there are."""
        living = (each.captured.graph for each in self.forwards.values())
        beside = next((each for each in living if isinstance(each, CudaGraph)), None)
        return functools.partial(CudaGraph, device, beside)

    def _is_replayable(self, model: nn.Module) -> bool:
        """Can the model's forwards be replayed, and are the graphs of it as it is?"""
        if model.training or torch.is_autocast_enabled():
            return False
        if self.snapshot is not None and self.snapshot.holds():
            return True
        reason = obstacle(model)
        if reason is not None:
            self.compiling.note(f"forwards run without CUDA graphs: {reason}")
            return False
        self.forwards.clear()
        self.snapshot = Snapshot(model)
        return True
