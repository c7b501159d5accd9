"""How torch's CUDA graphs are asked for: devices, streams and pools of memory.

There is no GPU here. What torch.cuda (2.11 to 2.13) does with them is written down in
`Cuda`: which stream is current after a failure, and when a pool's handle is refused.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator

import pytest
import torch

from llada_plugins.models import captured, cuda_graph
from llada_plugins.models.captured import WARM_UP
from llada_plugins.models.cuda_graph import CudaGraph
from llada_plugins.models.past import Past

GPU = torch.device("cuda", 1)  # not the current one


class Native:
    """A CUDAGraph, which holds its pool; without one, the pool's handle is refused."""

    holders: Counter[int] = Counter()  # graphs of each pool

    def __init__(self) -> None:
        self.handle = 0

    def pool(self) -> int:
        return self.handle

    def replay(self) -> None:
        pass

    def __del__(self) -> None:
        Native.holders[self.handle] -= 1


class Cuda:
    """The part of torch.cuda that captures."""

    def __init__(self) -> None:
        self.current: object = torch.device("cuda", 0)
        self.streams: dict[object, str] = {}
        self.captures: list[tuple[object, str, int, str]] = []
        self.fails = False

    @contextlib.contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        before, self.current = self.current, device
        yield from self._restored(lambda: setattr(self, "current", before))

    @contextlib.contextmanager
    def stream(self, stream: str) -> Iterator[None]:
        device, before = self.current, self.current_stream()
        self.streams[device] = stream
        yield from self._restored(lambda: self.streams.update({device: before}))

    @staticmethod
    def _restored(restore) -> Iterator[None]:
        try:
            yield
        finally:
            restore()

    def current_stream(self) -> str:
        return self.streams.get(self.current, "default")

    @contextlib.contextmanager
    def graph(self, graph, *, pool, stream, capture_error_mode) -> Iterator[None]:
        before = self.current_stream()
        self.streams[self.current] = stream
        if pool is not None and Native.holders[pool] < 1:
            raise RuntimeError("it->second->use_count > 0 INTERNAL ASSERT FAILED")
        yield
        if self.fails:  # the stream stays
            raise RuntimeError("operation failed due to a previous error during capture")
        graph.handle = len(self.captures) + 1 if pool is None else pool
        Native.holders[graph.handle] += 1
        self.captures.append((self.current, stream, graph.handle, capture_error_mode))
        self.streams[self.current] = before


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cuda]:
    cuda = Cuda()
    for name in ("device", "stream", "current_stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, getattr(cuda, name))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Native)
    monkeypatch.setattr(torch.cuda, "Stream", "capturing on {}".format)
    monkeypatch.setattr(Native, "holders", Counter())
    cuda_graph._capturing.cache_clear()
    yield cuda
    cuda_graph._capturing.cache_clear()


def test_work_is_captured_on_the_device_that_does_it(cuda):
    seen = []
    CudaGraph(GPU).capture(lambda: seen.append((cuda.current, cuda.current_stream())))
    assert seen == [(GPU, "capturing on cuda:1")]
    assert cuda.current == torch.device("cuda", 0)
    # what other threads do on a GPU meanwhile does not end the capture
    assert cuda.captures == [(GPU, "capturing on cuda:1", 1, "thread_local")]


def test_after_a_capture_that_failed_work_goes_where_it_went_before(cuda):
    cuda.fails = True
    with pytest.raises(RuntimeError, match="previous error during capture"):
        CudaGraph(GPU).capture(lambda: None)
    with cuda.device(GPU):
        assert cuda.current_stream() == "default"


@torch.inference_mode()
def test_graphs_share_the_pool_of_those_that_live_and_never_that_of_others(
    cuda, make_model, monkeypatch
):
    model = make_model(max_sequence_length=128)
    monkeypatch.setattr(model.replays, "wanted", lambda device: True)
    monkeypatch.setattr(captured, "_agree", lambda found, expected: True)  # nothing is computed

    def pools(length: int) -> list[int]:
        """Pools of two graphs, over keys and values of that many columns."""
        before, past = len(cuda.captures), Past()
        ids = torch.zeros(1, length, dtype=torch.long)
        model.streams(ids, past=past)
        for width in (2, 3):
            for _ in range(WARM_UP + 1):
                model.streams(ids, past=past, columns=slice(0, width))
        return [pool for _, _, pool, _ in cuda.captures[before:]]

    assert pools(9) == [1, 1]
    assert pools(70) == [3, 3]  # longer than memory had room for: all graphs went
    assert not model.compiling.notes
