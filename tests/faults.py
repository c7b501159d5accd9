"""Kill, fill and spoil what an evaluation stands on, and compare what it gives in the end.

    python -m tests.faults [--kills 30] [--seed 0] [--only TEXT] [--folder DIR]     (make faults)

Runs are the stock commands of both harnesses, in forks of one process that has imported
them. A line for each fault says what was found. Exit status 1 where an answer was lost or
differs from that of an undisturbed run, where a failure went by with exit status 0, or where a
message was none. What cannot be tried here is skipped, with the reason.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import runpy
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partialmethod
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
QUESTIONS = 160
BATCH = 16
PRM = dict(method="backmask", backmasking_lookback=2, steps=4, block_length=4)
METHODS: dict[str, tuple[str, dict[str, Any]]] = {  # --model, class and options
    "llada": ("LLaDA", dict(steps=16)),
    "llada_prm": ("LLaDAPRM", PRM),
}
CONFIG = """
from opencompass.openicl.icl_inferencer import GenInferencer
from opencompass.openicl.icl_prompt_template import PromptTemplate
from opencompass.openicl.icl_retriever import ZeroRetriever
from opencompass.partitioners import NaivePartitioner
from opencompass.runners import LocalRunner
from opencompass.tasks import OpenICLInferTask
from llada_plugins.opencompass_models import {kind}
from llada_plugins.tasks.opencompass import Sudoku4Dataset, Sudoku4Evaluator

datasets = [dict(
    abbr="sudoku4", type=Sudoku4Dataset, num={number},
    reader_cfg=dict(input_columns=["puzzle"], output_column="solution"),
    infer_cfg=dict(
        prompt_template=dict(type=PromptTemplate, template="{{puzzle}}"),
        retriever=dict(type=ZeroRetriever),
        inferencer=dict(type=GenInferencer, max_out_len=16),
    ),
    eval_cfg=dict(evaluator=dict(type=Sudoku4Evaluator)),
)]
models = [dict(type={kind}, abbr="tiny", path=None, batch_size={batch}, gen_length=16,
               run_cfg=dict(num_gpus=0), **{options})]
infer = dict(
    partitioner=dict(type=NaivePartitioner),
    runner=dict(type=LocalRunner, max_num_workers=1, task=dict(type=OpenICLInferTask)),
)
"""


class Fault(Exception):
    """What should not have happened."""


class Skipped(Exception):
    """Why a fault could not be tried."""


# ---- runs


class Run(NamedTuple):
    """A command of a harness and where its results come to lie."""

    harness: str  # lm_eval or opencompass
    method: str
    folder: Path
    options: dict[str, Any] = {}  # beside the method's
    beside: Path | None = None  # where its log and its config lie; None: beside its folder

    @property
    def place(self) -> Path:
        """Where it runs."""
        return self.beside or self.folder.parent

    @property
    def log(self) -> Path:
        """Its output."""
        return self.place / f"{self.folder.name}.log"

    @property
    def cache(self) -> Path:
        """lm-eval's file of answers."""
        return self.folder / "cache_rank0.db"

    def command(self) -> list[str]:
        """The words of the command line, after `python -m`."""
        kind, options = METHODS[self.method]
        options = {**options, **self.options}
        if self.harness == "lm_eval":
            arguments = ",".join(f"{name}={value}" for name, value in options.items())
            model = ["--model", self.method, "--model_args", f"gen_length=16,{arguments}"]
            task = ["--tasks", "sudoku4", "--include_path", str(ROOT / "configs" / "lmeval")]
            size = ["--limit", str(QUESTIONS), "--batch_size", str(BATCH), "--device", "cpu"]
            kept = ["--use_cache", str(self.folder / "cache"), "--log_samples"]
            out = ["--output_path", str(self.folder / "out")]
            return ["lm_eval", *model, *task, *size, *kept, *out]
        config = self.place / f"{self.folder.name}.py"
        text = CONFIG.format(kind=kind, number=QUESTIONS, batch=BATCH, options=options)
        config.write_text(text, encoding="utf-8")
        again = ["-r", "latest"] if list(self.folder.glob("2*")) else []
        return [
            "opencompass.cli.main",
            *(str(config), "-w", str(self.folder), "--debug", "-m", "infer", *again),
        ]

    def answers(self) -> list[str]:
        """The answers of a run that has ended, in the order of the questions."""
        if self.harness == "lm_eval":
            path = max((self.folder / "out").rglob("samples_*.jsonl"))
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            rows.sort(key=lambda row: row["doc_id"])
            return [row["resps"][0][0] for row in rows]
        [path] = self.folder.rglob("predictions/tiny/sudoku4.json")
        found = json.loads(path.read_text())
        return [found[str(number)]["prediction"] for number in range(len(found))]

    def on_disk(self) -> int:
        """How many finished answers lie on the disk."""
        if self.harness == "opencompass":
            files = self.folder.rglob("tmp_*.answers.jsonl")
            return sum(path.read_bytes().count(b"\n") for path in files)
        if not self.cache.exists():
            return 0
        try:
            with sqlite3.connect(f"file:{self.cache}?mode=rw", uri=True) as cache:
                [number] = cache.execute("select count(*) from unnamed").fetchone()
        except sqlite3.OperationalError:  # no table yet
            return 0
        return max(0, number - 1) // 2  # the fingerprint; an answer and its costs


def start(run: Run) -> int:
    """Begin the command in a fork, with a process group of its own; its process id."""
    command = run.command()
    child = os.fork()
    if child:
        return child
    status = 99
    try:
        os.setsid()
        log = os.open(run.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(log, stream)
        os.chdir(run.place)
        sys.argv = command
        runpy.run_module(command[0], run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        import atexit

        atexit._run_exitfuncs()
        os._exit(status)


def ended(child: int, within: float) -> int | None:
    """The exit status of a process; None where it still runs after so many seconds."""
    deadline = time.monotonic() + within
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            return None
        time.sleep(0.02)


def kill(child: int) -> None:
    """SIGKILL to a process and all that it has started."""
    try:
        os.killpg(child, signal.SIGKILL)
    except ProcessLookupError:
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def finish(run: Run, within: float = 300) -> int:
    """The exit status of the whole command."""
    child = start(run)
    status = ended(child, within)
    if status is None:
        kill(child)
        raise Fault(f"did not end within {within:.0f} seconds: {last_line(run)}")
    return status


def last_line(run: Run) -> str:
    """The last line of a run's output."""
    lines = run.log.read_text(errors="replace").splitlines()
    return next((line for line in reversed(lines) if line.strip()), "nothing was said")


class Whole(NamedTuple):
    """A run that nothing disturbed."""

    answers: list[str]
    first: float  # seconds until an answer was on the disk
    seconds: float


def undisturbed(run: Run) -> Whole:
    """Make the run; Fault where it does not end with 0."""
    begun, first, child = time.monotonic(), 0.0, start(run)
    while (status := ended(child, 0.1)) is None:
        if not first and run.on_disk():
            first = time.monotonic() - begun
    if status:
        raise Fault(f"an undisturbed run ends with {status}: {last_line(run)}")
    return Whole(run.answers(), first, time.monotonic() - begun)


def compare(run: Run, expected: Sequence[str]) -> None:
    """Raise Fault where a run's answers are not the expected ones."""
    found = run.answers()
    differ = sum(one != other for one, other in zip(found, expected))
    if len(found) != len(expected) or differ:
        raise Fault(f"{len(found)} answers, of {len(expected)}, {differ} of them others")


# ---- faults


class Setting(NamedTuple):
    """What every fault gets."""

    folder: Path  # empty
    kills: int
    choose: random.Random


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
                # half of the kills at any moment, half amid the answers
                earliest = whole.first if done % 2 else 0
                within = setting.choose.uniform(earliest, whole.seconds)
                status = ended(child, within if done < setting.kills else 300)
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


def one_of_two(launcher: Sequence[str]) -> Callable[[Setting], str]:
    """SIGKILL to one of two processes, whose launcher starts both again."""

    def fault(setting: Setting) -> str:
        expected = undisturbed(Run("lm_eval", "llada", setting.folder / "one")).answers
        run = Run("lm_eval", "llada", setting.folder / "two")
        command = [sys.executable, "-m", *launcher, "-m", *run.command()]
        log = run.log.open("w")
        process = subprocess.Popen(
            command, cwd=setting.folder, stdout=log, stderr=log, start_new_session=True
        )
        workers: list[int] = []
        while not run.on_disk() and process.poll() is None:
            time.sleep(0.05)
        workers = children(process.pid)
        if process.poll() is not None or len(workers) < 2:
            raise Fault(f"ended before it was killed: {last_line(run)}")
        os.kill(setting.choose.choice(workers), signal.SIGKILL)
        if status := process.wait(300):
            raise Fault(f"started again, it ends with {status}: {last_line(run)}")
        compare(run, expected)
        return "started again by its launcher: all answers are those of one process"

    return fault


def children(process: int) -> list[int]:
    """The Python processes that a process has started."""
    path = Path(f"/proc/{process}/task/{process}/children")
    found = [int(each) for each in path.read_text().split()] if path.exists() else []
    return [each for each in found if b"lm_eval" in Path(f"/proc/{each}/cmdline").read_bytes()]


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Callable[[str], None]]:
    """A file system in memory; gives what mounts it anew with other options."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise Skipped(f"nothing can be mounted here: {error}") from None
    if done.returncode:
        raise Skipped(f"nothing can be mounted here: {done.stderr.strip()}")

    def remount(options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)

    try:
        yield remount
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def full_disk(harness: str) -> Callable[[Setting], str]:
    """A disk that fills amid the answers; then room is made, and the command repeated."""

    def fault(setting: Setting) -> str:
        expected = undisturbed(Run(harness, "llada", setting.folder / "whole")).answers
        disk = setting.folder / "disk"
        with small_disk(disk, "64k") as remount:
            run = Run(harness, "llada", disk / "run", beside=setting.folder)
            status = finish(run)
            said = last_line(run)
            if not status:
                raise Fault(f"it ends with 0 on a full disk: {said}")
            lines = run.log.read_text(errors="replace").splitlines()
            reasons = [line for line in lines if "No space left" in line or "disk is full" in line]
            if not reasons:
                raise Fault(f"it does not say why: {said}")
            remount("size=64m")
            if status := finish(run):
                raise Fault(f"with room again it ends with {status}: {last_line(run)}")
            compare(run, expected)
        return f"non-zero exit ({reasons[-1][:80]}); with room again all answers are there"

    return fault


def read_only(harness: str) -> Callable[[Setting], str]:
    """An output folder that cannot be written to."""

    def fault(setting: Setting) -> str:
        disk = setting.folder / "disk"
        with small_disk(disk, "1m") as remount:
            remount("ro")
            run = Run(harness, "llada", disk / "run", beside=setting.folder)
            status, said = finish(run), last_line(run)
        if not status:
            raise Fault(f"it ends with 0, and nothing was written: {said}")
        if "read-only" not in said.lower() and "readonly" not in said.lower():
            raise Fault(f"its last line does not say why: {said}")
        return f"non-zero exit ({said[:80]})"

    return fault


def spoilt_cache(spoil: Callable[[Path], None]) -> Callable[[Setting], str]:
    """A file of answers that is not what it was: refused, or decoded again."""

    def fault(setting: Setting) -> str:
        run = Run("lm_eval", "llada", setting.folder / "run")
        expected = undisturbed(run).answers
        spoil(run.cache)
        shutil.rmtree(run.folder / "out")
        status = finish(run)
        if not status:
            compare(run, expected)
            return "ends with 0, all answers equal"
        return f"refused: {last_line(run)[:120]}"

    return fault


def cut_in_half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def no_database(path: Path) -> None:
    path.write_text("no database")


def other_model(setting: Setting) -> str:
    """A file of answers that other options wrote."""
    run = Run("lm_eval", "llada", setting.folder / "run")
    undisturbed(run)
    status = finish(run._replace(options=dict(steps=8)))
    said = last_line(run)
    if not status or "written by another model or other options" not in said:
        raise Fault(f"ends with {status}: {said}")
    return "refused in one line"


def two_runs(setting: Setting) -> str:
    """Two runs at once that write one file of answers."""
    expected = undisturbed(Run("lm_eval", "llada", setting.folder / "whole")).answers
    run = Run("lm_eval", "llada", setting.folder / "both")
    pair = [start(run), start(run)]
    statuses = [ended(child, 300) for child in pair]
    for child, status in zip(pair, statuses):
        if status is None:
            kill(child)
            raise Fault("one of them did not end")
    if all(statuses):
        raise Fault(f"none of them ends with 0: {last_line(run)}")
    compare(run, expected)
    if finish(run):
        raise Fault(f"a third run cannot read what they left: {last_line(run)}")
    compare(run, expected)
    return f"exit statuses {statuses}, all answers equal, and of a third run too"


TORCHRUN = ("torch.distributed.run", "--nproc_per_node", "2", "--max_restarts", "3")
FAULTS: dict[str, Callable[[Setting], str]] = {
    **{
        f"SIGKILLs of {harness}, {method}": kills(harness, method)
        for harness in ("lm_eval", "opencompass")
        for method in METHODS
    },
    "one of two processes of torchrun": one_of_two(TORCHRUN),
    "full disk, lm_eval": full_disk("lm_eval"),
    "full disk, opencompass": full_disk("opencompass"),
    "read-only output, lm_eval": read_only("lm_eval"),
    "read-only output, opencompass": read_only("opencompass"),
    "cache cut in half": spoilt_cache(cut_in_half),
    "cache that is no database": spoilt_cache(no_database),
    "cache of another model": other_model,
    "two runs on one cache": two_runs,
}


IMPORTED = (  # by every run
    "lm_eval.__main__",
    "lm_eval.evaluator",
    "opencompass.cli.main",
    "opencompass.openicl.icl_inferencer",
    "llada_plugins.lmeval_models",
    "llada_plugins.opencompass_models",
)


def preload() -> None:
    """Import what forks would import each by themselves."""
    import torch
    from lm_eval.tasks import TaskManager

    for name in IMPORTED:
        importlib.import_module(name)
    torch.set_num_threads(1)
    # to read all of lm-eval's own tasks, of which none is needed, takes most of a short run
    TaskManager.__init__ = partialmethod(TaskManager.__init__, include_defaults=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Try the faults, a line for each; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults")
    parser.add_argument("--kills", type=int, default=30, help="of each harness and method")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--only", default="", help="faults whose names have this text in them")
    parser.add_argument("--folder", type=Path, help="where the runs leave their files")
    given = parser.parse_args(arguments)
    preload()
    failed = False
    with tempfile.TemporaryDirectory() as name:
        for number, (title, fault) in enumerate(FAULTS.items()):
            if given.only not in title:
                continue
            folder = (given.folder or Path(name)).resolve() / str(number)
            folder.mkdir(parents=True)
            begun = time.monotonic()
            setting = Setting(folder, given.kills, random.Random(f"{given.seed} {title}"))
            try:
                said = fault(setting)
            except Skipped as error:
                said = f"skipped: {error}"
            except Fault as error:
                said, failed = f"FAULT: {error}", True
            print(f"{title}: {said} ({time.monotonic() - begun:.0f} s)", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
