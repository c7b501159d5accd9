"""How far a run is: requests done, tokens a second and a forward, time left, memory on a GPU.

A bar on a terminal and in a notebook; elsewhere, as in a log file, a line a minute.
"""

from __future__ import annotations

import sys
import time
import warnings
from typing import Any, TextIO

import torch

EVERY = 60.0  # seconds between two lines in a log


class Progress:
    """What is told of a run; make one with `progress`.

    The time left is that of the requests still to decode at the mean pace so far. Answers
    that stopped early are in the mean, those that were known before are not.
    """

    def __init__(self, total: int | None, description: str, disable: bool) -> None:
        self.total, self.description = total, description
        self.num_known = self.num_done = self.num_tokens = self.num_forwards = 0
        self._began = self._told = time.perf_counter()
        self._out: TextIO | None = None if disable else sys.stderr
        self._bar = _bar(total, description) if not disable and _is_watched(sys.stderr) else None

    def known(self) -> None:
        """One request less: its answer was known before, and took no time."""
        self.num_known += 1
        if self._bar is not None:
            self._bar.initial += 1  # what tqdm leaves out of the pace
            self._bar.update()

    def add(self, num_tokens: int = 0, num_forwards: int = 0) -> None:
        """One more request is done; its answer's tokens, 0 where it was scored."""
        self.num_done += 1
        self.num_tokens += num_tokens
        self.num_forwards += num_forwards
        if self._bar is not None:
            self._bar.set_postfix_str(self.speed(), refresh=False)
            self._bar.update()
        elif time.perf_counter() - self._told >= EVERY:
            self._tell()

    def speed(self) -> str:
        """Tokens a second and a forward, and the GPU's memory, as far as they are known."""
        told = []
        if self.num_tokens:
            seconds = max(time.perf_counter() - self._began, 1e-9)
            told.append(f"{self.num_tokens / seconds:.1f} tokens/s")
        if self.num_tokens and self.num_forwards:
            told.append(f"{self.num_tokens / self.num_forwards:.2f} tokens/forward")
        if torch.cuda.is_initialized():
            told.append(f"{torch.cuda.max_memory_allocated() / 1e9:.1f} GB at most")
        return ", ".join(told)

    def left(self) -> float | None:
        """Seconds until the end at the mean pace so far; None where that is not known."""
        if self.total is None or not self.num_done:
            return None
        seconds = time.perf_counter() - self._began
        return seconds / self.num_done * (self.total - self.num_known - self.num_done)

    def close(self) -> None:
        """Leave the line as it is; a log gets a last one, if it got any."""
        if self._bar is not None:
            self._bar.close()
        elif self._told > self._began:
            self._tell()
        self._out = None

    def _tell(self) -> None:
        """A line in the log."""
        self._told = time.perf_counter()
        if self._out is None:
            return
        of = "" if self.total is None else f" of {self.total}"
        parts = [f"{self.description}: {self.num_known + self.num_done}{of} requests", self.speed()]
        if left := self.left():
            parts.append(f"{_clock(left)} left")
        print(", ".join(filter(None, parts)), file=self._out, flush=True)


def progress(total: int | None, description: str, disable: bool = False) -> Progress:
    """What tells on stderr how far `total` requests are.

    None where the harness does not say how many will come: then no time left is told.
    """
    return Progress(total, description, disable)


def _bar(total: int | None, description: str) -> Any:
    with warnings.catch_warnings():
        # a notebook without ipywidgets gets the terminal's bar
        warnings.simplefilter("ignore")
        from tqdm.auto import tqdm

    return tqdm(
        total=total,
        desc=description,
        unit=" requests",
        mininterval=1.0,
        smoothing=0,  # the mean of all: batches end in bursts
        dynamic_ncols=True,
    )


def _is_watched(out: TextIO) -> bool:
    """Does somebody see it as it is written: a terminal, or a notebook?"""
    return out.isatty() or "ipykernel" in sys.modules


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
