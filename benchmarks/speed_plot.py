"""The plot of benchmarks.generation.

A step's time over its floor, speeds over the published loop and over peers, memory.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llada_plugins.reports.render import pyplot

SUFFIXES = (".png", ".pdf", ".svg")


def check_suffix(plot: str | None) -> None:
    """Raise ValueError for a file whose format is not known, before anything is measured."""
    if plot and Path(plot).suffix not in SUFFIXES:
        raise ValueError(f"plot must end in {', '.join(SUFFIXES)}, got {plot!r}")


def draw(result: dict[str, Any], file: Path) -> None:
    """Up to four panels, as far as they were measured."""
    panels = (
        [_floors, _ratios] + [_memory] * bool(result["memory"]) + [_peers] * bool(result["peers"])
    )
    plot = pyplot()
    figure, axes = plot.subplots(
        1, len(panels), figsize=(7 * len(panels), 8), squeeze=False, layout="constrained"
    )
    for panel, paint in zip(axes[0], panels):
        paint(result, panel)
    figure.suptitle(
        f"{result['shape']['name']}, {result['machine']['dtype']}, {result['machine']['device']}"
    )
    figure.savefig(file, dpi=120)
    plot.close(figure)


def _bars(values: dict[str, float], panel: Any, form: str) -> None:
    bars = panel.barh(list(values), list(values.values()))
    panel.bar_label(bars, fmt=form)
    panel.invert_yaxis()
    panel.margins(x=0.15)


def _floors(result: dict[str, Any], panel: Any) -> None:
    floor = result["floor"]["seconds"]
    panel.barh(list(floor), [1000 * result["seconds"][name] for name in floor], label="measured")
    panel.barh(list(floor), [1000 * each for each in floor.values()], label="floor")
    panel.invert_yaxis()
    panel.set(xscale="log", xlabel="ms of a step", title="Time and floor")
    panel.legend(loc="lower right")


def _ratios(result: dict[str, Any], panel: Any) -> None:
    _bars(result["ratios"], panel, "%.1f")
    panel.set(xlabel="times faster", title="Speed over the published loop")


def _memory(result: dict[str, Any], panel: Any) -> None:
    peaks = result["memory"]["peaks"]
    panel.plot(list(peaks), [peak / 1e6 for peak in peaks.values()], marker="o")
    panel.set(
        xlabel="columns of the canvas",
        ylabel="peak MB beyond the model",
        title="Memory of the exact step",
        ylim=(0, None),
    )


def _peers(result: dict[str, Any], panel: Any) -> None:
    _bars(result["peers"], panel, "%.2f")
    panel.axvline(1, color="grey", linestyle=":")
    panel.set(xlabel="times faster", title="Speed over peers")
