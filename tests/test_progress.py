"""How far a run is, as a bar on a terminal and as lines in a log; the clock is the test's."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from llada_plugins.engine import progress as module
from llada_plugins.engine.progress import EVERY, progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch) -> SimpleNamespace:
    """Its `now` is the time, in seconds."""
    told = SimpleNamespace(now=100.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: told.now))
    return told


@pytest.fixture
def log(monkeypatch, capsys) -> Callable[[], str]:
    """What standard error got, which is no terminal, since it was asked last."""
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    return lambda: capsys.readouterr().err


def test_a_log_gets_a_line_a_minute(clock, log):
    bar = progress(1000, "llada generate_until")
    for _ in range(180):
        clock.now += 1
        bar.add(20, 10)
    lines = log().splitlines()
    assert len(lines) == 180 / EVERY
    assert lines[0] == (
        "llada generate_until: 60 of 1000 requests, 20.0 tokens/s, 2.00 tokens/forward, 15:40 left"
    )


def test_a_short_run_leaves_a_log_empty(clock, log):
    bar = progress(3, "llada")
    for _ in range(3):
        clock.now += 1
        bar.add(5, 5)
    bar.close()
    assert log() == ""


def test_a_long_run_ends_its_log_with_the_whole(clock, log):
    bar = progress(2, "llada")
    for _ in range(2):
        clock.now += 3000
        bar.add(6000, 3000)
    bar.close()
    last = "llada: 2 of 2 requests, 2.0 tokens/s, 2.00 tokens/forward"
    assert log().splitlines()[-1] == last


def test_answers_known_before_do_not_shorten_the_time_left(clock, log):
    bar = progress(100, "llada")
    for _ in range(50):
        bar.known()
    clock.now += 60
    bar.add(10, 10)
    assert bar.left() == 60 * 49
    assert "51 of 100 requests, 0.2 tokens/s, 1.00 tokens/forward, 49:00 left" in log()


def test_answers_that_stop_early_shorten_the_time_left(clock, log):
    whole, early = progress(10, "whole"), progress(10, "early")
    clock.now += 8
    for _ in range(4):
        whole.add(64, 64)
    for _ in range(8):
        early.add(8, 8)
    assert (whole.left(), early.left()) == (12, 2)


def test_without_a_total_no_time_left_is_told(clock, log):
    bar = progress(None, "task")
    clock.now += EVERY
    bar.add()
    assert bar.left() is None
    assert log() == "task: 1 requests\n"


def test_a_run_that_is_no_first_process_tells_nothing(clock, log):
    bar = progress(2, "llada", disable=True)
    clock.now += EVERY
    bar.add(1, 1)
    bar.known()
    bar.close()
    assert log() == ""


def test_a_terminal_gets_a_bar_with_speed(log, monkeypatch):
    out = Terminal()
    monkeypatch.setattr(sys, "stderr", out)
    bar = progress(3, "llada")
    bar.known()
    bar.add(8, 4)
    bar.add(8, 4)
    bar.close()
    end = out.getvalue().split("\r")[-1]
    assert "3/3" in end and "tokens/s, 2.00 tokens/forward" in end


def test_a_notebook_gets_a_bar(log, monkeypatch):
    monkeypatch.setitem(sys.modules, "ipykernel", SimpleNamespace())
    bar = progress(1, "llada")
    bar.add(8, 4)
    bar.close()
    assert "1/1" in log()


def test_memory_of_a_gpu_is_told_where_one_is_in_use(clock, log, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_initialized", lambda: True)
    monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda: 17_200_000_000)
    bar = progress(2, "llada")
    clock.now += EVERY
    bar.add(60, 30)
    assert "1.0 tokens/s, 2.00 tokens/forward, 17.2 GB at most" in log()
