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
import random
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partialmethod
from pathlib import Path

from . import caches, disks, kills, traps, workers
from .runs import Fault, Setting, Skipped

FAULTS = {
    **kills.FAULTS,
    **workers.FAULTS,
    **disks.FAULTS,
    **caches.FAULTS,
    **traps.FAULTS,
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
    import lm_eval.evaluator
    import torch
    from lm_eval.tasks import TaskManager

    for name in IMPORTED:
        importlib.import_module(name)
    torch.set_num_threads(1)
    # what lm-eval asks of the machine for its results file takes seconds
    lm_eval.evaluator.add_env_info = lambda results: None
    # to read all of lm-eval's own tasks, of which none is needed, takes most of a short run
    TaskManager.__init__ = partialmethod(TaskManager.__init__, include_defaults=False)


def failed(number: int, title: str, given: argparse.Namespace, folder: Path) -> bool:
    """Try a fault, if it is wanted, and print its line; was there something that should not be?"""
    if given.only not in title:
        return False
    own, begun, before, fault = folder / str(number), time.monotonic(), processors(), False
    own.mkdir(parents=True)
    try:
        said = FAULTS[title](Setting(own, given.kills, random.Random(f"{given.seed} {title}")))
    except Skipped as error:
        said = f"skipped: {error}"
    except Fault as error:
        said, fault = f"FAULT: {error}", True
    seconds, of_processors = time.monotonic() - begun, processors() - before
    print(f"{title}: {said} ({seconds:.0f} s, processors {of_processors:.0f} s)", flush=True)
    return fault


def processors() -> float:
    """Seconds of processors that ended processes had: of a busy machine less than a clock's."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main(arguments: Sequence[str] | None = None) -> int:
    """Try the faults, a line for each; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults")
    parser.add_argument("--kills", type=int, default=30, help="of each harness and method")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--only", default="", help="faults whose names have this text in them")
    parser.add_argument("--folder", type=Path, help="where the runs leave their files")
    given = parser.parse_args(arguments)
    preload()
    folder = given.folder or Path(tempfile.mkdtemp(prefix="llada-faults"))
    try:
        found = [failed(*each, given, folder.resolve()) for each in enumerate(FAULTS)]
        return int(any(found))
    finally:
        # not a TemporaryDirectory, which every fork would remove when it ends
        if given.folder is None:
            shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main())
