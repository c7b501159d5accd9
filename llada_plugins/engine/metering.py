"""What each answer of a call costs: its share of the time, and how many tokens were taken back.

How time is shared: a step's is divided equally among the rows that are in work in it, and
what a review does beside its steps among the rows of its batch. So the seconds of all
answers sum to the time of all blocks. A batch that memory was too small for is not counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from llada_plugins.diffusion.denoiser import Canvas, Denoiser, Prediction
from llada_plugins.methods.prepared import Judge
from llada_plugins.sampling.config import SamplerConfig
from llada_plugins.sampling.draft import Draft, Fill, Filled, Review
from llada_plugins.sampling.step import Step


def shared(steps: Sequence[float], forwards: Sequence[int]) -> list[float]:
    """Each row's part of what its steps took.

    steps: seconds of each. forwards: of each row, which is in work in that many steps
    from the first on. Sums to the seconds of all steps. Where a row pauses, its forwards
    are not those of the first steps: then each row's part is as its number of forwards.
    """
    if len(steps) != max(forwards, default=0):
        return [sum(steps) * number / max(1, sum(forwards)) for number in forwards]
    parts = [
        seconds / sum(step < number for number in forwards) for step, seconds in enumerate(steps)
    ]
    until = list(accumulate(parts, initial=0.0))  # of a row in work in so many steps
    return [until[number] for number in forwards]


class Marks:
    """Moments of one fill; on a GPU those at which it gets there, which nothing waits for."""

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self.began = time.perf_counter()
        self.events: list[torch.cuda.Event] = []
        self.times: list[float] = []

    def add(self) -> None:
        """Another moment."""
        if self.on_gpu:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.events.append(event)
        else:
            self.times.append(time.perf_counter())

    def steps(self) -> list[float]:
        """Seconds of each step, from marks before each and after the last.

        What comes before the first step belongs to it. Sums to the time since this
        object was made; the GPU's work is done when this is asked.
        """
        whole = time.perf_counter() - self.began
        if self.on_gpu:
            pairs = zip(self.events, self.events[1:])
            spans = [begin.elapsed_time(end) for begin, end in pairs]
        else:
            spans = [end - begin for begin, end in zip(self.times, self.times[1:])]
        total = sum(spans)
        return [whole * span / total if total else whole / len(spans) for span in spans]


class Costs(NamedTuple):
    """Of one answer."""

    seconds: float
    prm_seconds: float  # of them, in the process reward model
    # tokens that stood and were masked again or replaced, in all copies of the row
    num_revised: int


class Meter:
    """A review that also measures what it costs each row."""

    def __init__(
        self, review: Review, judge: Judge | None, num_rows: int, device: torch.device
    ) -> None:
        self.review, self.judge, self.device = review, judge, device
        self.seconds = [0.0] * num_rows
        self.prm_seconds = [0.0] * num_rows
        self.num_revised = [0] * num_rows
        self._marks = Marks(device)
        self._in_fills = 0.0
        self._revised: list[tuple[Tensor, Tensor]] = []  # rows and numbers, of the current draft
        self._shares: list[tuple[int, float]] = []  # rows and seconds, of the current draft

    def of(self, row: int) -> Costs:
        """What the row has cost so far."""
        return Costs(self.seconds[row], self.prm_seconds[row], self.num_revised[row])

    def marking(self, denoise: Denoiser) -> Denoiser:
        """The denoiser of which every call is a step."""

        def denoise_marked(canvas: Canvas, window: slice) -> Prediction:
            self._marks.add()
            return denoise(canvas, window)

        return denoise_marked

    def observer(self, sampler: SamplerConfig) -> Callable[[Step], None] | None:
        """What counts tokens taken back; none, and no cost, where no step can take any."""
        return self._see if sampler.revises else None

    def _see(self, step: Step) -> None:
        self._revised.append((step.rows, (step.remasked | step.replaced).sum(-1)))

    def __call__(self, draft: Draft) -> Filled:
        """What the review says; its costs go to the draft's rows."""
        self._revised, self._shares, self._in_fills = [], [], 0.0
        began, before = time.perf_counter(), self._in_prm()
        filled = self.review(draft._replace(fill=self._metered(draft.fill)))
        filled.forwards.tolist()  # waits for the device
        seconds, in_prm = time.perf_counter() - began, self._in_prm() - before
        rows = draft.rows.tolist()
        for row in rows:
            self.seconds[row] += (seconds - self._in_fills) / len(rows)
            self.prm_seconds[row] += in_prm / len(rows)
        for row, share in self._shares:
            self.seconds[row] += share
        if filled.num_revised is not None:
            self._revised.append((draft.rows, filled.num_revised))
        for owners, numbers in self._revised:
            for row, number in zip(owners.tolist(), numbers.tolist()):
                self.num_revised[row] += number
        return filled

    def _metered(self, fill: Fill) -> Fill:
        def fill_metered(
            tokens: Tensor,
            rows: Tensor,
            keys: Tensor,
            blocks: range,
            config: SamplerConfig | None = None,
            steps: int | None = None,
        ) -> Tensor:
            self._marks = Marks(self.device)
            forwards = fill(tokens, rows, keys, blocks, config, steps)
            self._marks.add()
            counts = forwards.tolist()  # waits for the device
            spans = self._marks.steps()
            self._in_fills += sum(spans)
            self._shares += zip(rows.tolist(), shared(spans, counts))
            return forwards

        return fill_metered

    def _in_prm(self) -> float:
        return self.judge.scorer.seconds if self.judge else 0.0
