"""Plots of the report on an unmasking policy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .render import SIZE, legend_below, pyplot, save


def draw(report: Mapping[str, Any], folder: Path) -> None:
    """auc.png, calibration.png, confusion.png and mask_count.png."""
    plot = pyplot()
    for name, (title, across, up, paint, told) in PLOTS.items():
        figure, axes = plot.subplots(figsize=SIZE)
        paint(report, axes)
        axes.set(title=title, xlabel=across, ylabel=up)
        save(figure, folder / f"{name}.png", told)


def _paint_auc(report: Mapping[str, Any], axes: Any) -> None:
    kinds = list(report["detection"])
    for shift, confidence in ((-0.2, "policy"), (0.2, "tps_prob")):
        heights = [report["detection"][kind]["auc"][confidence] for kind in kinds]
        bars = axes.bar(
            [place + shift for place in range(len(kinds))], heights, 0.4, label=confidence
        )
        axes.bar_label(bars, fmt="%.3f")
    axes.set_xticks(range(len(kinds)), kinds)
    axes.set_ylim(0, 1.1)
    legend_below(axes)


def _paint_calibration(report: Mapping[str, Any], axes: Any) -> None:
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":")
    for kind, found in report["detection"].items():
        axes.plot(
            [row["mean_probability"] for row in found["reliability"]],
            [row["share_clean"] for row in found["reliability"]],
            marker="o",
            label=f"{kind}, error {found['calibration_error']['policy']:.3f}",
        )
    legend_below(axes)


def _paint_confusion(report: Mapping[str, Any], axes: Any) -> None:
    counts = report["detection"]["answer_alphabet"]["confusion"]
    rows = [[counts["tn"], counts["fp"]], [counts["fn"], counts["tp"]]]
    axes.imshow(
        [[count / max(1, sum(row)) for count in row] for row in rows], cmap="Blues", vmin=0, vmax=1
    )
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
        axes.text(
            column,
            row,
            str(rows[row][column]),
            ha="center",
            va="center",
            bbox=dict(facecolor="white", edgecolor="none"),
        )
    axes.set_xticks([0, 1], ["h < 0", "h ≥ 0"])
    axes.set_yticks([0, 1], ["incorrect", "clean"])


def _paint_mask_count(report: Mapping[str, Any], axes: Any) -> None:
    # curves coincide: thinner ones lie on top
    for number, (source, found) in enumerate(report["decoding"].items()):
        axes.plot(
            found["mask_count"],
            marker=".",
            linewidth=2 * (len(report["decoding"]) - number),
            alpha=0.6,
            label=source,
        )
    legend_below(axes)


PLOTS: dict[str, tuple[str, str, str, Callable[[Mapping[str, Any], Any], None], str]] = {
    "auc": (
        "Incorrect-token detection",
        "incorrect tokens are",
        "AUC",
        _paint_auc,
        "How well the policy and the token's own probability tell incorrect tokens from clean ones",
    ),
    "calibration": (
        "Reliability of sigmoid(h) at visible tokens",
        "mean sigmoid(h)",
        "share of clean tokens",
        _paint_calibration,
        "How many tokens are clean of those to which the policy gives about the same probability",
    ),
    "confusion": (
        "Visible tokens, incorrect ones from the answer's alphabet",
        "policy",
        "token",
        _paint_confusion,
        "How many incorrect and clean tokens the policy would mask again, and how many keep",
    ),
    "mask_count": (
        "Masked tokens of the answer (mean over problems)",
        "step",
        "masked tokens",
        _paint_mask_count,
        "How many tokens are masked after each step under every source; the curves may coincide",
    ),
}
