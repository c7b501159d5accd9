"""From files to rows to batches; what users import from here is in rows.py."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = [
    "Example",
    "Examples",
    "Vocabulary",
    "collate_answers",
    "encode",
    "read_hub",
    "read_jsonl",
    "vocabulary",
]


def __getattr__(name: str) -> Any:
    """Imported when asked for: `training.convert` pays for no torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.rows"), name)
