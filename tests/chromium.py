"""The browser of tests marked `browser`: they are skipped, with the reason, where there is none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from benchmarks.viewer import chromium

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
try:
    CHROMIUM = chromium()
except FileNotFoundError as error:
    pytest.skip(str(error), allow_module_level=True)
playwright.expect.set_options(timeout=60_000)  # of a busy machine


@contextmanager
def started() -> Iterator[object]:
    """Chromium without a window."""
    with playwright.sync_playwright() as driver:
        made = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield made
        made.close()
