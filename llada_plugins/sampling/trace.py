"""What the steps of a decode call did to each answer, moved off the device once a block."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llada_plugins.diffusion.denoiser import PADDING
from llada_plugins.files.json_files import short

from .config import SamplerConfig
from .draft import Draft, Filled, Review, unreviewed
from .step import Step

# bits of Pass.flags
MASKED, KEPT, REMASKED, EDITED = 1, 2, 4, 8
ROOM = 1 << 21  # positions of steps that stay on the device before a block ends: 64 MB at most

Array: TypeAlias = NDArray[Any]


class Pass(NamedTuple):
    """The S steps that filled a window of W positions of one answer, once.

    Under a Review a window is filled several times: by candidates and refills.
    """

    fill: int  # number of the fill in the call; candidates of one fill have it in common
    start: int  # the window's first position in the answer
    proposed: Array  # (S, W) int32 tokens; where nothing is proposed, the one that stands there
    score: Array  # (S, W) float16 by the confidence source; inf where a token is pinned
    policy: Array | None  # (S, W) float16 sigmoid(h) of a policy stream, if the model has one
    flags: Array  # (S, W) uint8, sums of MASKED (before the step), KEPT, REMASKED, EDITED
    seconds: Array  # (S,) float32 wall time of the batch's step, which its rows share

    @property
    def window(self) -> slice:
        """Its positions in the answer."""
        return slice(self.start, self.start + self.proposed.shape[1])

    @property
    def masked_after(self) -> Array:
        """Which positions are masked after each step, (S, W) bool."""
        masked: Array = self.flags & MASKED > 0
        after: Array = (masked & (self.flags & KEPT == 0)) | (self.flags & REMASKED > 0)
        return after


class Judged(NamedTuple):
    """Scores of an unfinished answer by a process reward model."""

    fill: int  # of the call, after which it was asked
    scores: list[float | None]  # of the answer's blocks, 0-1
    answer: list[int]


class Accepted(NamedTuple):
    """An answer as a Review left it at the end of a block."""

    fill: int  # of the call, the last before
    answer: list[int]


# which prompts, their answers so far -> scores of their blocks, as of a Review's scorer
Scorer: TypeAlias = Callable[
    [Sequence[int], Sequence[Sequence[int]]], Sequence[Sequence[float | None]]
]
Event: TypeAlias = Pass | Judged | Accepted


class _Stamp:
    """A moment on the device's own clock, which is read without waiting for the device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.host = time.perf_counter()
        self.event: torch.cuda.Event | None = None
        if device.type == "cuda":
            self.event = torch.cuda.Event(enable_timing=True)
            self.event.record()

    def since(self, earlier: _Stamp) -> float:
        """Seconds; on a GPU once the device has come to this moment."""
        if self.event is None or earlier.event is None:
            return self.host - earlier.host
        milliseconds: float = earlier.event.elapsed_time(self.event)
        return milliseconds / 1000


class _Fill(NamedTuple):
    """Steps of one fill, still on the device: of a step as many as rows are at other blocks."""

    number: int
    steps: list[Step]
    stamps: dict[int, _Stamp]  # by number of the step, after it; -1: before the first

    def begins_another(self, step: Step) -> bool:
        """Is this step the first of the fill after this one?"""
        if step.step > 0:
            return False
        return max(self.stamps) > 0 or step.block in {each.block for each in self.steps}


class Trace:
    """Observes one decode call, and keeps what happened to each prompt's answer in order.

    Give `on_step` and `review(...)` to the call. Between the ends of blocks nothing waits
    for the device, unless the steps take more than ROOM in its memory.

    rows: the prompts that are observed (default: all). max_tokens: blocks that begin at
    this position of an answer or later are not observed.
    """

    def __init__(
        self,
        config: SamplerConfig,
        rows: Collection[int] | None = None,
        max_tokens: int | None = None,
    ) -> None:
        if not isinstance(config, SamplerConfig):
            raise ValueError(f"config must be the SamplerConfig of the call, got {short(config)}")
        if rows is not None and not isinstance(rows, Collection):
            raise ValueError(f"rows must be a set of numbers of prompts, got {short(rows)}")
        self.config, self.rows, self.max_tokens = config, rows, max_tokens
        self.events: defaultdict[int, list[Event]] = defaultdict(list)  # by prompt
        self.cut: set[int] = set()  # prompts of which blocks were left out
        # of the block in work: scores, and parts of passes by prompt, fill and place
        self._judged: list[tuple[int, Judged]] = []
        self._parts: defaultdict[tuple[int, int, int], list[Pass]] = defaultdict(list)
        self._fills: list[_Fill] = []
        self._num_fills = 0
        self._num_positions = 0
        self._observing = True
        self._stamp: _Stamp | None = None

    def passes(self, row: int) -> list[Pass]:
        """The passes over the answer to this prompt, in order."""
        return [event for event in self.events[row] if isinstance(event, Pass)]

    def on_step(self, step: Step) -> None:
        """Keep a step; see `decode_each`."""
        if not self._observing:
            return
        assert self._stamp is not None  # of the block's begin, or of the scores
        if not self._fills or self._fills[-1].begins_another(step):
            self._fills.append(_Fill(self._num_fills, [], {-1: self._stamp}))
            self._num_fills += 1
        self._stamp = _Stamp(step.rows.device)
        self._fills[-1].steps.append(step)
        self._fills[-1].stamps[step.step] = self._stamp
        self._num_positions += step.proposal.numel()
        if self._num_positions > ROOM:
            last = self._fills[-1]
            self._move()
            self._fills = [last._replace(steps=[])]

    def review(self, review: Review = unreviewed, *, judged: bool = False) -> Review:
        """The same review, which tells this trace where a block begins and ends.

        judged: may it leave another answer than the last pass did?
        """

        def traced(draft: Draft) -> Filled:
            self._begin(draft)
            try:
                filled = review(draft)
                self._move()
            except BaseException:
                self._forget()
                raise
            self._end(draft, judged)
            return filled

        return traced

    def scorer(self, score: Scorer) -> Scorer:
        """The same scorer of a Review, whose scores are kept as well."""

        def traced(
            rows: Sequence[int], answers: Sequence[Sequence[int]]
        ) -> Sequence[Sequence[float | None]]:
            found = score(rows, answers)
            if self._observing:
                for row, scores, answer in zip(rows, found, answers):
                    if self._wants(row):
                        judged = Judged(self._num_fills - 1, list(scores), list(answer))
                        self._judged.append((row, judged))
            if self._stamp is not None:
                self._stamp = _Stamp(self._stamp.device)  # no step took this time
            return found

        return traced

    def _wants(self, row: int) -> bool:
        return self.rows is None or row in self.rows

    def _begin(self, draft: Draft) -> None:
        self._forget()
        wanted = [row for row in draft.rows.tolist() if self._wants(row)]
        within = self.max_tokens is None or draft.number * self.config.block < self.max_tokens
        if not within:
            self.cut.update(wanted)
        self._observing = within and bool(wanted)
        self._stamp = _Stamp(draft.rows.device)

    def _end(self, draft: Draft, judged: bool) -> None:
        found: list[tuple[int, Event]] = [
            (row, whole_pass(parts)) for (row, _, _), parts in self._parts.items()
        ]
        # a stable sort: what was scored after a fill comes after it
        for row, event in sorted([*found, *self._judged], key=lambda each: each[1].fill):
            self.events[row].append(event)
        if judged and self._observing:
            columns = slice(draft.start, draft.start + (draft.number + 1) * self.config.block)
            for row, answer in zip(draft.rows.tolist(), draft.tokens[:, columns].tolist()):
                if self._wants(row):
                    self.events[row].append(Accepted(self._num_fills - 1, answer))
        self._forget()

    def _forget(self) -> None:
        """Nothing of the block in work: it is done, or memory was too small for it."""
        self._judged, self._fills, self._num_positions = [], [], 0
        self._parts.clear()

    def _move(self) -> None:
        """Take the steps off the device, each row's together."""
        for fill in self._fills:
            if fill.steps:
                for place, row, found in moved(fill):
                    if self._wants(row):
                        self._parts[row, fill.number, place].append(found)
        self._fills, self._num_positions = [], 0


def moved(fill: _Fill) -> Iterator[tuple[int, int, Pass]]:
    """(row of the canvas, prompt, its pass) of everything in a fill; waits for the device."""
    steps = fill.steps
    every = Step.joined(steps)
    rows, places, starts = (
        each.cpu().numpy() for each in (every.rows, every.places, every.start)
    )  # (N,) of all steps
    order = np.argsort(places, kind="stable")

    def in_order(values: Tensor, kind: torch.dtype) -> Array:
        """On the host, the steps of a row together."""
        array: Array = values.to(kind).cpu().numpy()[order]
        return array

    proposed = in_order(every.proposal, torch.int32)  # (N, W)
    score = in_order(every.score, torch.float16)
    flags = in_order(_flags(every), torch.uint8)
    policy = None
    if every.policy is not None:
        policy = in_order(every.policy.float().sigmoid(), torch.float16)
    numbers = np.repeat([step.step for step in steps], [step.rows.numel() for step in steps])
    seconds = _seconds(fill)[numbers[order]]
    ordered = places[order]
    begins = (np.flatnonzero(ordered[1:] != ordered[:-1]) + 1).tolist()
    for first, last in zip([0, *begins], [*begins, len(ordered)]):
        number, start = order[first], int(starts[order[first]])
        columns = _of_answer(proposed[first], start)
        here = slice(first, last), columns
        of_policy = None if policy is None else policy[here]
        arrays = proposed[here], score[here], of_policy, flags[here], seconds[first:last]
        found = Pass(fill.number, start + columns.start, *arrays)
        yield int(places[number]), int(rows[number]), found


def _seconds(fill: _Fill) -> Array:
    """Of each step of a fill, by its number."""
    stamps = fill.stamps
    numbers = range(max(stamps) + 1)
    return np.array([stamps[each].since(stamps[each - 1]) for each in numbers], np.float32)


def _of_answer(tokens: Array, start: int) -> slice:
    """The columns of a block that hold answer: not a prompt's end, nor padding after it."""
    filled = np.flatnonzero(tokens != PADDING)
    return slice(max(0, -start), int(filled[-1]) + 1)


def whole_pass(parts: Sequence[Pass]) -> Pass:
    """One pass of its parts, which left the device one after another."""
    if len(parts) == 1:
        return parts[0]

    def joined(name: str) -> Array:
        return np.concatenate([getattr(part, name) for part in parts])

    return parts[0]._replace(
        proposed=joined("proposed"),
        score=joined("score"),
        policy=None if parts[0].policy is None else joined("policy"),
        flags=joined("flags"),
        seconds=joined("seconds"),
    )


def _flags(step: Step) -> Tensor:
    """(B, W) uint8."""
    flags = step.masked * MASKED + step.kept * KEPT
    return (flags + step.remasked * REMASKED + step.replaced * EDITED).to(torch.uint8)
