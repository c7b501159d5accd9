"""Where the harness tasks on local files find them."""

from __future__ import annotations

import os
from pathlib import Path


def find(data_dir: str | None, *names: str) -> list[Path]:
    """The files of those names in data_dir, else in the folder $LLADA_PLUGINS_DATA."""
    folder = data_dir or os.environ.get("LLADA_PLUGINS_DATA")
    if not folder:
        raise ValueError(
            "this task reads local files: set LLADA_PLUGINS_DATA to their folder, or pass "
            """--metadata '{"data_dir": "/path"}'"""
        )
    paths = [Path(folder) / name for name in names]
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; {folder} must hold {', '.join(names)}")
    return paths
