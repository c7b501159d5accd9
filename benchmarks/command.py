"""The command line that the benchmarks share.

Options, a table, the numbers as JSON, and a status that says whether outputs agreed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from llada_plugins.options.command_line import run_command


def check_folder(name: str, file: str | None) -> None:
    """Raise ValueError where the folder of an output file does not exist.

    It is said before the measurement, not after it.
    """
    if file is not None and not Path(file).absolute().parent.is_dir():
        raise ValueError(f"{name}={file!r}: its folder does not exist: create it first")


def check_counts(options: object, *names: str) -> None:
    """Raise ValueError where an option of these names, each a number of something, is below 1."""
    for name in names:
        if getattr(options, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(options, name)}")


def run_benchmark(
    options: type,
    name: str,
    run: Callable[[Any], dict[str, Any]],
    table: Callable[[dict[str, Any]], str],
    agreed: Callable[[dict[str, Any]], bool],
    argv: Sequence[str] | None,
) -> int:
    """Read `options` (which have threads and json), run, print the table, write the JSON.

    Returns 0 if the compared outputs agreed, else 1.
    """
    results: list[dict[str, Any]] = []

    def work(parsed: Any) -> str:
        torch.set_num_threads(parsed.threads)
        results.append(run(parsed))
        if parsed.json:
            Path(parsed.json).write_text(json.dumps(results[0], indent=1) + "\n", encoding="utf-8")
        return table(results[0])

    run_command(options, f"python -m benchmarks.{name}", work, argv)
    return 0 if agreed(results[0]) else 1
