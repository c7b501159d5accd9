"""Which of several files a program wrote last."""

from __future__ import annotations

from pathlib import Path


def newest(folder: Path, pattern: str) -> Path | None:
    """The file below a folder that was changed last, of those whose names fit; None without any.

    Of files of one moment, the last by name: harnesses put the time there.
    """
    files = folder.rglob(pattern)
    return max(files, key=lambda file: (file.stat().st_mtime_ns, file.name), default=None)
