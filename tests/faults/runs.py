"""Runs of stock commands of both harnesses, each in a fork of this process."""

from __future__ import annotations

import atexit
import json
import os
import random
import resource
import runpy
import signal
import sqlite3
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sqlitedict import SqliteDict

from llada_plugins.harness.lmeval_cache import FINGERPRINT_KEY

ROOT = Path(__file__).parents[2]
QUESTIONS = 96
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
from opencompass.partitioners import NaivePartitioner, NumWorkerPartitioner
from opencompass.runners import LocalRunner
from opencompass.tasks import OpenICLInferTask
from llada_plugins.opencompass_models import {kind}
from llada_plugins.tasks.opencompass import Sudoku4Dataset, Sudoku4Evaluator

datasets = [dict(
    abbr="sudoku4", type=Sudoku4Dataset, num={number},
    reader_cfg=dict(input_columns=["puzzle"], output_column="solution", test_range={rows}),
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
    partitioner={partitioner},
    runner=dict(type=LocalRunner, max_num_workers=1, task=dict(type=OpenICLInferTask)),
)
"""


PARTS = "dict(type=NumWorkerPartitioner, num_worker={parts}, min_task_size=1)"


class Fault(Exception):
    """What should not have happened."""


class Skipped(Exception):
    """Why a fault could not be tried."""


class Run(NamedTuple):
    """A command of a harness and where its results come to lie."""

    harness: str  # lm_eval or opencompass
    method: str
    folder: Path
    options: dict[str, Any] = {}  # beside the method's
    beside: Path | None = None  # where its log and its config lie; None: beside its folder
    results: Path | None = None  # where lm-eval writes results; None: in its folder
    memory: int | None = None  # bytes that it may take beyond those of this process; None: all
    spoil: Callable[[], object] = int  # is called in its process, before all else
    # of OpenCompass
    rows: str = ""  # its data set's test_range
    parts: int = 1  # that its data set is cut into
    steps: tuple[str, ...] = ("--debug", "-m", "infer")  # what of its work is done, and how

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

    @property
    def output(self) -> Path:
        """Where lm-eval writes results."""
        return self.results or self.folder / "out"

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
            out = ["--output_path", str(self.output)]
            return ["lm_eval", *model, *task, *size, *kept, *out]
        config = self.place / f"{self.folder.name}.py"
        partitioner = "dict(type=NaivePartitioner)"
        if self.parts > 1:
            partitioner = PARTS.format(parts=self.parts)
        text = CONFIG.format(
            kind=kind,
            number=QUESTIONS,
            batch=BATCH,
            options=options,
            rows=repr(self.rows),
            partitioner=partitioner,
        )
        config.write_text(text, encoding="utf-8")
        again = ["-r", "latest"] if list(self.folder.glob("2*")) else []
        words = [str(config), "-w", str(self.folder), *self.steps, *again]
        return ["opencompass.cli.main", *words]

    def answers(self) -> list[str]:
        """The answers of a run that has ended, in the order of the questions."""
        if self.harness == "lm_eval":
            path = max(self.output.rglob("samples_*.jsonl"))
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            rows.sort(key=lambda row: row["doc_id"])
            return [row["resps"][0][0] for row in rows]
        [path] = self.folder.rglob("predictions/tiny/sudoku4.json")
        found = json.loads(path.read_text())
        return [found[str(number)]["prediction"] for number in range(len(found))]

    def on_disk(self) -> int:
        """How many finished answers lie on the disk."""
        if self.harness == "opencompass":
            predictions = self.folder.rglob("predictions/tiny/sudoku4.json")
            if any(map(_is_whole, predictions)):  # the journal goes then
                return QUESTIONS
            return sum(map(len, map(_answers, self.folder.rglob("tmp_*.answers.jsonl"))))
        if not self.cache.exists():
            return 0
        try:
            with sqlite3.connect(f"file:{self.cache}?mode=rw", uri=True) as cache:
                [number] = cache.execute("select count(*) from unnamed").fetchone()
        except sqlite3.OperationalError:  # no table yet
            return 0
        return max(0, number - 1) // 2  # the fingerprint; an answer and its costs

    def kept(self) -> list[str]:
        """The finished answers on the disk of a run that did not end well."""
        if self.harness == "opencompass":
            [journal] = self.folder.rglob("tmp_*.answers.jsonl")
            return [json.loads(line)[1][0] for line in _answers(journal)]
        with SqliteDict(str(self.cache), flag="r") as cache:
            return [
                value
                for key, value in cache.items()
                if key != FINGERPRINT_KEY and isinstance(value, str)
            ]


def _answers(journal: Path) -> list[str]:
    """The whole lines of answers; the others say whose come next."""
    lines = journal.read_text(encoding="utf-8").split("\n")[:-1]
    return [line for line in lines if line.startswith("[")]


def _is_whole(path: Path) -> bool:
    try:
        return len(json.loads(path.read_bytes())) == QUESTIONS
    except ValueError:
        return False


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
        if run.memory is not None:
            most = taken() + run.memory
            resource.setrlimit(resource.RLIMIT_AS, (most, most))
        run.spoil()
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
        atexit._run_exitfuncs()
        os._exit(status)


def taken() -> int:
    """The addresses of this process, in bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


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


def finish(run: Run, within: float = 900) -> int:
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


def amid_answers(run: Run) -> None:
    """Start the run, and kill it as soon as an answer is on the disk."""
    child = start(run)
    while not run.on_disk():
        if ended(child, 0.01) is not None:
            raise Fault(f"ended before it was killed: {last_line(run)}")
    kill(child)


def refused(run: Run, *words: str) -> str:
    """The line of a run that must fail which has one of the words; Fault where none has."""
    status = finish(run)
    lines = run.log.read_text(errors="replace").splitlines()
    if not status:
        raise Fault(f"it ends with 0: {last_line(run)}")
    for line in reversed(lines):
        if any(word in line.lower() for word in words):
            return line.strip()
    raise Fault(f"it does not say why: {last_line(run)}")


class Whole(NamedTuple):
    """A run that nothing disturbed."""

    answers: list[str]
    seconds: float


def undisturbed(run: Run) -> Whole:
    """Make the run; Fault where it does not end with 0."""
    begun = time.monotonic()
    if status := finish(run):
        raise Fault(f"an undisturbed run ends with {status}: {last_line(run)}")
    return Whole(run.answers(), time.monotonic() - begun)


def compare(run: Run, expected: Sequence[str]) -> None:
    """Raise Fault where a run's answers are not the expected ones."""
    found = run.answers()
    differ = sum(one != other for one, other in zip(found, expected))
    if len(found) != len(expected) or differ:
        raise Fault(f"{len(found)} answers, of {len(expected)}, {differ} of them others")


class Setting(NamedTuple):
    """What every fault gets."""

    folder: Path  # empty
    kills: int
    choose: random.Random
