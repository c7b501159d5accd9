"""What a type checker says to callers of the public names."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import llada_plugins

ROOT = Path(llada_plugins.__file__).parents[1]
CALLER = """\
from llada_plugins import SamplerConfig, load_model
load_model("folder", nonsense=3)
SamplerConfig(gen_lenght=4)
from llada_plugins import Sampler
"""


def test_every_public_name_has_a_home():
    assert list(llada_plugins._HOMES) == llada_plugins.__all__


@pytest.mark.slow
def test_mypy_refuses_options_and_names_that_do_not_exist(tmp_path):
    pytest.importorskip("mypy")
    (tmp_path / "caller.py").write_text(CALLER)
    every_name = "".join(f"from llada_plugins import {n} as {n}\n" for n in llada_plugins.__all__)
    (tmp_path / "names.py").write_text(every_name)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent"),
            *("--config-file", "", "--cache-dir", tmp_path / "cache"),
            *("--no-error-summary", tmp_path / "caller.py", tmp_path / "names.py"),
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=600,
    )
    assert (done.returncode, done.stderr) == (1, "")
    # names.py has no error, each line of caller.py but the first has one
    assert re.findall(r"(\w+)\.py:(\d+): error: (\w+)", done.stdout) == [
        ("caller", "2", "Unexpected"),
        ("caller", "3", "Unexpected"),
        ("caller", "4", "Module"),
    ]
