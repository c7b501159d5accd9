"""Small steps as CUDA graphs: captured once over memory that stays in place, then replayed.

A small step keeps a GPU waiting for its host: LLaDA-8B's forward is about 1,500 kernels,
which take 20 ms to launch and, for one row of 32 columns, 10 ms to run (H100). What the step
then decides is about fifty more. Between the two are a denoiser's wrappers, so they are two
graphs.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Hashable
from itertools import chain
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from llada_plugins.files.json_files import first_line

from .captured import obstacle
from .compiling import Compiling
from .cuda_graph import CudaGraph, Graph, Results
from .features import FeaturePast
from .layer import Streams, View
from .past import Memory, Past, row_bucket
from .records import NoForm, form, leaves
from .replayed_call import ReplayedCall, Size
from .replayed_forward import Compute, ReplayedForward, length_bucket, shape_of
from .slots import Slots
from .snapshot import Snapshot

# Rows up to which keys and values get memory that stays, which may be a third too large;
# more rows get it where their bucket has no other. 32 rows of 32 columns keep an H100 busy
# for 31 ms, but a slow host took 43 to launch that.
MOST_ROWS = 16
MAX_GRAPHS = 64  # of a kind; further shapes run as they are

P = ParamSpec("P")
R = TypeVar("R")
Work = TypeVar("Work", ReplayedForward, ReplayedCall)


class Works(Generic[Work]):
    """Captured works of one kind, and the part of a model that they take for granted."""

    def __init__(self, kind: str, compiling: Compiling) -> None:
        self.kind, self.compiling = kind, compiling
        self.kept: dict[Hashable, Work] = {}
        self.snapshot: Snapshot | None = None
        self.failed = False  # a capture has, and none is tried again

    def __len__(self) -> int:
        return len(self.kept)

    def graphs(self) -> list[Graph | None]:
        """Of all works; None where one is not captured yet."""
        return [work.captured.graph for work in self.kept.values()]

    def clear(self) -> None:
        """Forget all."""
        self.kept.clear()

    def may_use(self, part: nn.Module) -> bool:
        """Can work of this part of a model be replayed, and are the graphs of it as it is?"""
        if part.training or torch.is_autocast_enabled():
            return False
        snapshot = self.snapshot
        if snapshot is not None and snapshot.modules[0] is part and snapshot.holds():
            return True
        reason = obstacle(part)
        if reason is not None:
            self.compiling.note(f"{self.kind} run without CUDA graphs: {reason}")
            return False
        self.clear()
        self.snapshot = Snapshot(part)
        return True

    def of(self, key: Hashable, make: Callable[[], Work]) -> Work | None:
        """The work with that key, made where it is the first; None where there are too many."""
        if key not in self.kept and len(self) >= MAX_GRAPHS:
            self.compiling.note(
                f"{self.kind} of further shapes run without CUDA graphs: there are {MAX_GRAPHS}"
            )
            return None
        if key not in self.kept:
            self.kept[key] = make()
        return self.kept[key]

    def results(self, work: Work, run: Callable[[], Results]) -> Results | None:
        """What running it computes; None where it cannot be captured."""
        try:
            return run()
        except RuntimeError as error:
            if not work.captured.at_capture:
                raise
            self.failed = True
            self.clear()
            self.compiling.note(
                f"{self.kind} run without CUDA graphs: none can be captured: {first_line(error)}"
            )
            return None


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
        self.forwards: Works[ReplayedForward] = Works("forwards", compiling)
        self.calls: Works[ReplayedCall] = Works("decisions of steps", compiling)
        self.memory = Memory(before_move=self.forwards.clear)
        self._head: nn.Module | None = None  # around the head of the model
        self._lock = threading.RLock()

    def __reduce__(self) -> tuple[type[Replays], tuple[Compiling, object]]:
        """A copy, as of a copied model, begins without graphs."""
        return Replays, (self.compiling, self.make_graph)

    def wanted(self, device: torch.device) -> bool:
        """May a forward there be replayed, as far as is known without the model?"""
        return not self.forwards.failed and self._replays_on(device)

    def _replays_on(self, device: torch.device) -> bool:
        if not torch.is_inference_mode_enabled() or torch.compiler.is_compiling():
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
        if isinstance(past, FeaturePast):
            self.compiling.note(
                "forwards run without CUDA graphs: with cache=partial each layer chooses its "
                "columns"
            )
            return False
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
        if shape is None or not self.forwards.may_use(model):
            return None
        forward = self.forwards.of(shape, lambda: ReplayedForward(shape, given, view, past))
        if forward is None:
            return None
        forward.load(given, view, length)
        if isinstance(past, Slots):
            forward.spare(past)
        make_graph = self._make_graph(given.device)
        found = self.forwards.results(forward, lambda: forward.run(compute, make_graph))
        if found is None:
            return None
        rows, columns = map(slice, given.shape[:2])
        # copies: the next forward of the shape writes to the same place
        hidden, confidence = (
            None if each is None else each[rows, columns].clone() for each in found
        )
        assert hidden is not None
        return Streams(hidden, confidence)

    @one_at_a_time
    def call(
        self,
        head: nn.Module,
        function: Callable[..., Results],
        given: tuple[Any, ...],
        size: Size,
    ) -> Results | None:
        """What function(*given, num_columns) computes; None where it is not for replay.

        num_columns is that of a bucket, at least size's. head: the module that the function
        computes with. function: hashable, and equal ones do the same. given: records, whose
        rows do not depend on one another.
        """
        device = next(chain(*map(leaves, given))).device
        if self.calls.failed or not size.is_small or not self._replays_on(device):
            return None
        try:
            key = function, size.bucket(), *(form(each, size.num_rows) for each in given)
        except NoForm:
            return None
        if not self.calls.may_use(self._around(head)):
            return None
        call = self.calls.of(key, lambda: ReplayedCall(given, size))
        if call is None:
            return None
        call.load(given, size.num_rows)
        make_graph = self._make_graph(device)
        return self.calls.results(call, lambda: call.run(function, size.num_rows, make_graph))

    def _around(self, head: nn.Module) -> nn.Module:
        """A module with the head as its part, for a Snapshot does not look at the outermost."""
        if self._head is None or next(self._head.children()) is not head:
            self._head = nn.ModuleList([head])
        self._head.training = head.training
        return self._head

    def _make_graph(self, device: torch.device) -> Callable[[], Graph]:
        """What makes another graph, beside those that there are."""
        if self.make_graph is not None:
            return self.make_graph
        graphs = (*self.forwards.graphs(), *self.calls.graphs())
        beside = next((each for each in graphs if isinstance(each, CudaGraph)), None)
        return functools.partial(CudaGraph, device, beside)
