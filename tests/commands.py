"""Commands as a user starts them: in processes of their own, or within the test's."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# launchers of lm-eval that read no tasks but those of --include_path, in one process and two
OWN_TASKS = (str(ROOT / "tests" / "own_tasks.py"),)
OWN_TASKS_TWICE = (
    *("-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"),
    *OWN_TASKS,
)


def python(
    *words: str, cwd: Path, timeout: float = 900, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the interpreter with these words in a test's own folder, to its end.

    The network is not asked, and what libraries keep for the next run is kept in the folder.
    environment: further variables, or other values of these.
    """
    variables = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HOME": str(cwd / "hf"),
        **environment,
    }
    return subprocess.run(
        [sys.executable, *words],
        cwd=cwd,
        env=variables,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def stock(cwd: Path, *words: str) -> str:
    """Run `python -m …`, which must end with 0; returns what it printed."""
    done = python("-m", *words, cwd=cwd, PYTHONPATH=str(ROOT))
    printed = done.stdout + done.stderr
    assert done.returncode == 0, printed[-3000:]
    return printed


def in_process(module: str, *words: str) -> int | str | None:
    """Run `python -m module words` within this process; returns what it exits with.

    A process of its own imports torch and both harnesses first, which takes seconds.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [module, *words])
        # a package stays: made anew, it would lack the modules that others have imported
        if not hasattr(sys.modules.get(module), "__path__"):
            patch.delitem(sys.modules, module, raising=False)
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as exit:
            return exit.code
    return None
