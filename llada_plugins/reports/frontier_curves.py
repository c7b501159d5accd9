"""The curves of a sweep: their scores, and the files that tell of them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from llada_plugins.files.atomic import whole_file, write_whole

from .aup import Measured, aup, counted
from .frontier_points import Result
from .render import SIZE, legend_below, markdown, pyplot, save


class Curve(NamedTuple):
    """The settings of one method, and its score."""

    label: str
    results: list[Result]
    aup: float

    @property
    def points(self) -> list[Measured]:
        """As the score reads them, in the order of the sweep."""
        return measured(self.results)

    @property
    def ordered(self) -> list[tuple[Measured, Result]]:
        """The settings by parallelism."""
        return sorted(zip(self.points, self.results), key=lambda pair: pair[0])


def measured(results: Sequence[Result]) -> list[Measured]:
    """Results as points of a curve."""
    return [Measured(each.tokens_per_forward, 100 * each.accuracy) for each in results]


def curves(results: Sequence[Result], model: str, y_max: float | None) -> list[Curve]:
    """A curve for each series; where no y_max is given it is the best of all of them."""
    best = y_max or 100 * max(each.accuracy for each in results) or None
    found = []
    for series in dict.fromkeys(each.series for each in results):
        own = [each for each in results if each.series == series]
        label = f"{model} {series}".strip()
        found.append(Curve(label, own, aup(measured(own), best)))
    return found


def rows(found: Sequence[Curve]) -> list[dict[str, Any]]:
    """Every setting as a row, by curve and parallelism; for CSV and JSON."""
    table = []
    for curve in found:
        kept = set(counted(curve.points))
        for point, result in curve.ordered:
            low, high = result.interval or (None, None)
            table.append(
                {
                    "curve": curve.label,
                    **result.options,
                    "tokens_per_forward": round(result.tokens_per_forward, 4),
                    "accuracy": round(100 * result.accuracy, 4),
                    "low": None if low is None else round(100 * low, 4),
                    "high": None if high is None else round(100 * high, 4),
                    "answers": result.answers,
                    **{
                        f"{name}_per_answer": round(getattr(result, name), 4)
                        for name in ("forwards", "tokens", "revised", "seconds")
                    },
                    "counted": point in kept,
                }
            )
    return table


def table(found: Sequence[Curve], task: str) -> str:
    """The settings and the scores as Markdown."""
    options = list(dict.fromkeys(name for curve in found for name in curve.results[0].options))
    header = [*options, "tokens a forward", "accuracy, %", "95 %", "forwards", "revised", "seconds"]
    lines = [
        [
            *(row[name] for name in options),
            f"{row['tokens_per_forward']:.2f}",
            f"{row['accuracy']:.1f}{'' if row['counted'] else ' (not counted)'}",
            "-" if row["low"] is None else f"{row['low']:.1f} to {row['high']:.1f}",
            f"{row['forwards_per_answer']:.2f}",
            f"{row['revised_per_answer']:.2f}",
            f"{row['seconds_per_answer']:.3f}",
        ]
        for row in rows(found)
    ]
    scores = [f"AUP of {curve.label}: {curve.aup:.2f}" for curve in found]
    answers = found[0].results[0].answers
    return "\n".join(
        [f"{task}, {answers} answers each; costs are of an answer", "", markdown(header, lines), ""]
        + scores
    )


def leaderboard(found: Sequence[Curve], task: str) -> str:
    """The list that the AUP leaderboard reads: task, method, [tokens a forward, percent]."""
    lines = [f"{json.dumps(task)}:"]
    for curve in found:
        lines.append(f"  {json.dumps(curve.label)}:")
        lines += [f"  - [{rho:.4g}, {accuracy:.4g}]" for rho, accuracy in sorted(curve.points)]
    return "\n".join(lines) + "\n"


def draw(found: Sequence[Curve], task: str, path: Path) -> None:
    """Accuracy against tokens a forward with its intervals; hollow points are not counted."""
    plot = pyplot()
    figure, axes = plot.subplots(figsize=SIZE)
    for curve in found:
        across, up = zip(*(point for point, _ in curve.ordered))
        (line,) = axes.plot(across, up, label=f"{curve.label}, AUP {curve.aup:.1f}")
        for (rho, accuracy), result in curve.ordered:
            kept = (rho, accuracy) in counted(curve.points)
            face = line.get_color() if kept else "white"
            reach = None
            if result.interval is not None:
                low, high = (100 * bound for bound in result.interval)
                reach = [[max(0.0, accuracy - low)], [max(0.0, high - accuracy)]]
            axes.errorbar(
                rho, accuracy, yerr=reach, fmt="o", color=line.get_color(), mfc=face, capsize=3
            )
    axes.set(title=task, xlabel="tokens a forward", ylabel="accuracy, %")
    legend_below(axes, columns=1)
    told = f"Accuracy against tokens a forward on {task}, a curve for each series"
    with whole_file(path) as partial:
        save(figure, partial, told)


def write(
    found: Sequence[Curve], task: str, told: Mapping[str, Any], output: Path
) -> dict[str, Any]:
    """frontier.json, which is returned, points.csv, leaderboard.yaml, table.md and frontier.png.

    told: how the sweep was asked for.
    """
    listed = rows(found)
    scores = {curve.label: round(curve.aup, 4) for curve in found}
    report = {"task": task, "aup": scores, "points": listed, "options": told}
    text = io.StringIO()
    writer = csv.DictWriter(text, list(listed[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(listed)
    write_whole(output / "frontier.json", json.dumps(report, indent=1) + "\n")
    write_whole(output / "points.csv", text.getvalue())
    write_whole(output / "leaderboard.yaml", leaderboard(found, task))
    write_whole(output / "table.md", table(found, task) + "\n")
    draw(found, task, output / "frontier.png")
    return report
