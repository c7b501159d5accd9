"""Commands in processes of their own, as a user starts them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


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
