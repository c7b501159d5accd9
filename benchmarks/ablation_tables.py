"""What benchmarks.ablation found, as tables and as a plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llada_plugins.reports.render import SIZE, legend_below, markdown, pyplot, save
from llada_plugins.reports.ups_problems import SOURCES

from .paired import Interval


def tables(result: Mapping[str, Any]) -> str:
    """Both tables and the verdicts as Markdown."""
    options = result["options"]
    return "\n\n".join(
        [
            f"{options['num']} problems, greedy; ± and [] are 95 % intervals, the latter paired",
            _source_table(result["sources"], options["steps"]),
            _frontier_table(result["frontier"], options["max_forwards"]),
            _target_table(result["targets"]),
        ]
    )


def _source_table(sources: Sequence[Mapping[str, Any]], steps: Sequence[int]) -> str:
    cells = {(row["source"], row["steps"]): _source_cells(row) for row in sources}
    header, rows = ["source"], [[source] for source in SOURCES]
    for num in steps:
        header += [f"{num} steps", "ups less this"]
        for row in rows:
            row.extend(cells[row[0], num])
    return markdown(header, rows)


def _frontier_table(frontier: Sequence[Mapping[str, Any]], max_forwards: int) -> str:
    header = [
        "rule",
        "accuracy",
        "mean forwards",
        f"at the cap of {max_forwards}",
        "less the same without revision",
        "frontier",
    ]
    rows = [
        [
            row["name"],
            f"{row['accuracy']:.3f} ± {row['half']:.3f}",
            f"{row['mean_forwards']:.2f}",
            "–" if row["cap"] is None else f"{100 * row['at_cap']:.1f} %",
            Interval(**row["less_unrevised"]) if "less_unrevised" in row else "",
            "yes" if row["on_frontier"] else "",
        ]
        for row in frontier
    ]
    return markdown(header, rows)


def _target_table(targets: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            each["target"],
            "–" if each["value"] is None else f"{each['value']:.3f}",
            Interval(**each["interval"]) if "interval" in each else each["row"] or "",
            "met" if each["met"] else "MISSED",
        ]
        for each in targets
    ]
    return markdown(["target", "measured", "interval or row", ""], rows)


def _source_cells(row: Mapping[str, Any]) -> tuple[str, str]:
    difference = "" if row["source"] == "ups" else str(Interval(**row["ups_less_this"]))
    return f"{row['accuracy']:.3f} ± {row['half']:.3f}", difference


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Accuracy over mean forwards.

    A line for each source under fixed K_n, and one each for adaptive rules with and
    without revision.
    """
    plot = pyplot()
    figure, axes = plot.subplots(figsize=SIZE)
    for source in SOURCES:
        rows = [row for row in result["sources"] if row["source"] == source]
        axes.plot(
            [row["mean_forwards"] for row in rows],
            [row["accuracy"] for row in rows],
            marker=".",
            alpha=0.7,
            label=f"K_n, {source}",
        )
    adaptive = [row for row in result["frontier"] if row["cap"] is not None]
    for revised, style in ((False, "o--"), (True, "s-")):
        rows = [row for row in adaptive if (row["revise_below"] is not None) == revised]
        axes.plot(
            [row["mean_forwards"] for row in rows],
            [row["accuracy"] for row in rows],
            style,
            color="black",
            markersize=4,
            label=f"threshold and factor, {'ups revision' if revised else 'no revision'}",
        )
    axes.set(
        xlabel="mean forward passes",
        ylabel="accuracy",
        title=f"4x4 sudoku, {result['options']['num']} problems",
    )
    axes.grid(alpha=0.3)
    legend_below(axes)
    save(figure, path, "Accuracy against mean forward passes of every source and rule")
