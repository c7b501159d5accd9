"""Processes that are killed, and what goes on after them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from .runs import (
    METHODS,
    QUESTIONS,
    Fault,
    Run,
    Setting,
    compare,
    ended,
    kill,
    last_line,
    start,
    undisturbed,
)


def kills(harness: str, method: str) -> Callable[[Setting], str]:
    """SIGKILL at random moments, again and again, until the run has ended."""

    def fault(setting: Setting) -> str:
        whole = undisturbed(Run(harness, method, setting.folder / "whole"))
        done, runs, kept = 0, 0, []
        while done < setting.kills:
            run, before = Run(harness, method, setting.folder / f"killed{runs}"), 0
            runs += 1
            while True:
                child = start(run)
                if done == setting.kills:
                    status = ended(child, 900)
                elif done % 2 and before < QUESTIONS - 1:  # half of the kills amid the answers
                    status = answered(run, child, setting.choose.randrange(before + 1, QUESTIONS))
                else:  # half at any moment
                    status = ended(child, setting.choose.uniform(0, whole.seconds))
                if status is not None:
                    break
                kill(child)
                done += 1
                if (now := run.on_disk()) < before:
                    raise Fault(f"a kill took {before - now} finished answers from the disk")
                before = now
                kept.append(now)
            if status:
                raise Fault(f"kill {done}: resumed, it ends with {status}: {last_line(run)}")
            compare(run, whole.answers)
        some = sum(0 < number < QUESTIONS for number in kept)
        return f"{done} kills in {runs} runs, {some} of them amid the answers: all answers equal"

    return fault


def answered(run: Run, child: int, number: int) -> int | None:
    """Wait until so many answers are on the disk; the exit status of a run that ended before."""
    while run.on_disk() < number:
        if (status := ended(child, 0.01)) is not None:
            return status
    return None


def one_of_two(launcher: Sequence[str]) -> Callable[[Setting], str]:
    """SIGKILL to one of two processes, whose launcher starts both again."""

    def fault(setting: Setting) -> str:
        expected = undisturbed(Run("lm_eval", "llada", setting.folder / "one")).answers
        run = Run("lm_eval", "llada", setting.folder / "two")
        command = [sys.executable, "-m", *launcher, "-m", *run.command()]
        log = run.log.open("w")
        process = subprocess.Popen(
            command,
            cwd=setting.folder,
            env={**os.environ, "ACCELERATE_USE_CPU": "1"},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        workers: list[int] = []
        while not run.on_disk() and process.poll() is None:
            time.sleep(0.05)
        workers = children(process.pid)
        if process.poll() is not None or len(workers) < 2:
            raise Fault(f"ended before it was killed: {last_line(run)}")
        os.kill(setting.choose.choice(workers), signal.SIGKILL)
        try:
            status = process.wait(300)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise Fault(f"started again, it hangs: {last_line(run)}") from None
        if status:
            raise Fault(f"started again, it ends with {status}: {last_line(run)}")
        compare(run, expected)
        return "started again by its launcher: all answers are those of one process"

    return fault


def children(process: int) -> list[int]:
    """The Python processes that a process has started."""
    path = Path(f"/proc/{process}/task/{process}/children")
    found = [int(each) for each in path.read_text().split()] if path.exists() else []
    return [each for each in found if b"lm_eval" in Path(f"/proc/{each}/cmdline").read_bytes()]


RESTARTS = ("--max_restarts", "3")
TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc_per_node", "2", *RESTARTS)
ACCELERATE = (
    *("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"),
    *("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", *RESTARTS),
)
FAULTS: dict[str, Callable[[Setting], str]] = {
    **{
        f"SIGKILLs of {harness}, {method}": kills(harness, method)
        for harness in ("lm_eval", "opencompass")
        for method in METHODS
    },
    "one of two processes of torchrun": one_of_two(TORCHRUN),
    "one of two processes of accelerate": one_of_two(ACCELERATE),
}
