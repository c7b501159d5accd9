"""JSON files that a run left: of any content, and refused by name where they are torn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .jsonl import reason


def load(path: Path) -> Any:
    """The value in a file; ValueError that names the file where it holds none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: {reason(error)}") from None
