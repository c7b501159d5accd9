"""Small forwards as CUDA graphs: captured once over memory that stays in place, then replayed.

A small forward keeps a GPU waiting for its host: LLaDA-8B's is about 1,500 kernels, which
take 20 ms to launch and, for one row of 32 columns, 10 ms to run (H100). Shapes come in
buckets, so that few graphs serve all blocks, batches and prompts; what a bucket has too
much is hidden from attention, and cut off.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Concatenate, NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from llada_plugins.files.json_files import first_line

from .compiling import Compiling
from .cuda_graph import CudaGraph, Graph
from .layer import Streams, View
from .past import LayerPast, Memory, Past, row_bucket
from .slots import Slots
from .snapshot import Snapshot
from .submodules import is_hooked

# Rows times columns of a small forward: on an H100 those of up to 512 columns took as long
# as one of 32, whatever they computed.
LARGEST = 1024
# Rows up to which keys and values get memory that stays, which may be a third too large;
# more rows get it where their bucket has no other. 32 rows of 32 columns keep an H100 busy
# for 31 ms, but a slow host took 43 to launch that.
MOST_ROWS = 16
LENGTH_STEP = 64  # canvases are as long as a multiple of it
WARM_UP = 2  # forwards of a shape before it is captured, in which kernels are chosen
MAX_GRAPHS = 64  # further shapes run as they are

Compute = Callable[[Tensor, View], Streams]
P = ParamSpec("P")
R = TypeVar("R")


class Shape(NamedTuple):
    """What one graph serves."""

    num_rows: int
    width: int  # columns in work
    length: int  # of the canvas
    has_past: bool
    given: torch.dtype  # of ids or embeddings
    capacity: int | None = None  # columns of a slot; None: rows are not in slots
    of_pairs: bool = False  # does each of the columns in work see columns of its own?
    sees_all: bool = False  # is nothing hidden? Attention takes less time without a mask


class ReplayedForward:
    """A forward of one shape over memory of its own, where inputs are put and outputs found."""

    def __init__(self, shape: Shape, given: Tensor, view: View, past: Past | None) -> None:
        rows, width, device = shape.num_rows, shape.width, given.device
        self.given = given.new_zeros(rows, width, *given.shape[2:])
        by_row = () if shape.capacity is None else (rows, 1)
        cos, sin = (each.new_zeros(*by_row, width, each.shape[-1]) for each in (view.cos, view.sin))
        visible: Tensor | None = None
        if not shape.sees_all:
            seeing = width if shape.of_pairs else 1
            visible = torch.ones(rows, 1, seeing, shape.length, dtype=torch.bool, device=device)
        columns: Tensor | None = None
        if past is not None:
            columns = torch.zeros(*by_row[:1], width, dtype=torch.long, device=device)
        self.view = View(cos, sin, visible, columns, _layers(past, shape))
        self.num_runs = 0
        self.graph: Graph | None = None
        self.found: Streams | None = None  # where the graph puts its results

    def load(self, given: Tensor, view: View, length: int) -> None:
        """Put in what is given, of at most so many rows and columns.

        Further rows keep what they had: any numbers will do that are not NaN.
        """
        num_rows, width = given.shape[:2]
        self.given[:num_rows, :width] = given
        by_row = view.cos.dim() > 2
        rotations = slice(num_rows) if by_row else slice(width)
        self.view.cos[rotations], self.view.sin[rotations] = view.cos, view.sin
        visible = self.view.visible
        if visible is not None:
            visible[:num_rows, ..., length:] = False
            visible[:num_rows, ..., :length] = True if view.visible is None else view.visible
        columns = self.view.columns
        if columns is None:
            return
        assert view.columns is not None
        if by_row:
            columns[:num_rows] = view.columns
        else:
            places = torch.arange(len(columns), device=given.device)
            columns.copy_(places + view.columns[0])

    def spare(self, slots: Slots) -> None:
        """Let further rows write where nothing counts.

        Their slots may hold keys and values of rows that are not in work.
        """
        columns, visible = self.view.columns, self.view.visible
        assert columns is not None and visible is not None
        rows = slice(slots.num_rows, len(columns))
        first = min(slots.length, visible.shape[-1] - columns.shape[1])
        columns[rows] = torch.arange(columns.shape[1], device=columns.device) + first
        slots.spoil(rows, slice(first, first + columns.shape[1]))

    def run(self, compute: Compute, make_graph: Callable[[], Graph]) -> Streams:
        """What the forward computes. Raises RuntimeError where it cannot be captured."""
        if self.num_runs < WARM_UP:
            found = compute(self.given, self.view)
            self.num_runs += 1  # not of one that memory was too small for
            return found
        if self.graph is None:
            return self._capture(compute, make_graph())
        assert self.found is not None
        self.graph.replay()
        return self.found

    def _capture(self, compute: Compute, graph: Graph) -> Streams:
        """Record the forward; kept if its first replay computes what the forward does."""
        expected = compute(self.given, self.view)
        found = graph.capture(lambda: compute(self.given, self.view))
        for each in found:
            if each is not None:
                each.fill_(torch.nan)  # what a replay of nothing would leave
        graph.replay()
        if not _agree(found, expected):
            raise RuntimeError("the first replay gave other numbers than the forward")
        self.graph, self.found = graph, found
        return found


def _layers(past: Past | None, shape: Shape) -> list[LayerPast] | None:
    """Keys and values that a forward of the shape reads and writes."""
    if past is None or shape.capacity is None:
        return None if past is None else list(past)
    rows, length = shape.num_rows, shape.length
    return [LayerPast(*(each[:rows, :, :length] for each in layer)) for layer in past]


def _agree(found: Streams, expected: Streams) -> bool:
    """Are these the same forward's results? Waits for the device.

    Replayed kernels round alike, or nearly so. A graph that left out work or read other
    memory gives something else altogether, which a twentieth of the whole tells apart.
    """
    pairs = [(a, b) for a, b in zip(found, expected) if a is not None and b is not None]
    return all(bool((a - b).float().norm() <= 0.05 * b.float().norm()) for a, b in pairs)


def obstacle(model: nn.Module) -> str | None:
    """Why the model cannot be replayed, in words; None where it can."""
    for name, module in model.named_modules():
        if not name:  # see Snapshot
            continue
        if is_hooked(module):
            return f"{name} has hooks (a router's of several blocks, an adapter's, offloading's)"
        package = type(module).__module__.partition(".")[0]
        if package not in ("torch", "llada_plugins"):
            return f"{name} is a module of {package}, which may compute otherwise the next time"
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
        shape = _shape(given, view, past, to_the_end, length)
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
            if forward.graph is not None or forward.num_runs < WARM_UP:
                raise
            self.failed = True
            self.forwards.clear()
            self.compiling.note(
                f"forwards run without CUDA graphs: none can be captured: {first_line(error)}"
            )
            return None

    def _cuda_graph(self, device: torch.device) -> Callable[[], Graph]:
        """What makes another graph beside those that there are."""
        living = (each.graph for each in self.forwards.values())
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


def length_bucket(length: int) -> int:
    """Columns of memory for a canvas of that length."""
    return -(-length // LENGTH_STEP) * LENGTH_STEP  # rounded up


def slot_bucket(length: int) -> int:
    """Columns that a forward of rows in slots attends to, of which so many hold something.

    Few different numbers in the life of a row: each has graphs of its own.
    """
    return row_bucket(-(-length // LENGTH_STEP)) * LENGTH_STEP


def _shape(
    given: Tensor, view: View, past: Past | None, to_the_end: bool, length: int
) -> Shape | None:
    """The bucket of a forward; None where it is too large, or is not for replay.

    That is one whose mask is of pairs or whose positions differ by row, unless its rows
    are in slots.
    """
    num_rows, width = given.shape[:2]
    of_pairs = view.visible is not None and view.visible.shape[2] > 1
    if isinstance(past, Slots):
        if past.seated.rows.start > 0 or num_rows * width > LARGEST:
            return None
        rows = min(row_bucket(num_rows), past.num_slots)
        room = min(slot_bucket(length), past.capacity)
        return Shape(rows, width, room, True, given.dtype, past.capacity, of_pairs)
    rows, room = row_bucket(num_rows), length_bucket(length)
    if to_the_end:
        width += room - length
    if rows * width > LARGEST or of_pairs or view.cos.dim() > 2:
        return None
    sees_all = view.visible is None and room == length  # rows too many may see anything
    return Shape(rows, width, room, past is not None, given.dtype, sees_all=sees_all)
