"""Which software makes a result: versions of packages, the commit of a clone."""

from __future__ import annotations

import functools
import platform
import subprocess
from pathlib import Path

from .installation import PACKAGE, installed

PACKAGES = (
    "llada-plugins",
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "numpy",
    "datasets",
    "lm-eval",
    "opencompass",
    "peft",
    "accelerate",
)


@functools.cache
def versions() -> dict[str, str]:
    """Of Python and of the packages that numbers depend on, where they are installed."""
    found = {name: installed(name) for name in PACKAGES}
    return {
        "python": platform.python_version(),
        **{name: version for name, version in found.items() if version},
    }


@functools.cache
def git_commit() -> str | None:
    """The commit of this package's clone, with + where files differ; None in an installation."""
    root = PACKAGE.parent
    if not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no", "--", "llada_plugins")
    except (OSError, subprocess.SubprocessError):  # no git here
        return None
    return commit + ("+" if changed else "")


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(root), *words], capture_output=True, text=True, check=True, timeout=20
    )
    return done.stdout.strip()
