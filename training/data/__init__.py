"""From files to rows to batches."""

from __future__ import annotations

import importlib
from typing import Any

# what users import from here -> its file
_HOMES = {
    "Example": "examples",
    "Examples": "examples",
    "Vocabulary": "encoding",
    "collate_answers": "examples",
    "encode": "encoding",
    "read_hub": "rows",
    "read_jsonl": "rows",
    "vocabulary": "encoding",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    """Imported when asked for: `training.convert` pays for no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
