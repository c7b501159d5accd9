"""The machinery of `make faults`: its runs end as stock commands do, and leave what they wrote."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_a_fault_is_tried_in_a_folder_that_outlives_its_runs(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    pytest.importorskip("opencompass")
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults", "--only", "cache of another model"],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, "refused in one line" in done.stdout) == (0, True), done.stdout
    assert not list(tmp_path.glob("llada-faults*"))
