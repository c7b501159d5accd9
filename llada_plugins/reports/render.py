"""Files of a report: a folder that appears whole or not at all, and plots. Knows no model; matplotlib is imported when it is drawn with."""
from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llada_plugins.options.fields import FlagParser

if TYPE_CHECKING:
    from transformers import HfArgumentParser


def dataclass_parser(options: type | Sequence[type], **settings: Any) -> HfArgumentParser:
    """A parser of the fields of dataclasses whose errors are one line."""
    from transformers import HfArgumentParser

    class Parser(FlagParser, HfArgumentParser):
        """HfArgumentParser with FlagParser's errors."""

    return Parser(options, allow_abbrev=False, formatter_class=DefaultsOnce, **settings)


class DefaultsOnce(argparse.ArgumentDefaultsHelpFormatter):
    """Help that tells a default where there is one that the text does not tell itself."""

    def _get_help_string(self, action: argparse.Action) -> str:
        if action.const is False:        # --no_x, of which HfArgumentParser tells what --x does
            return f"turns --{action.dest} off"
        told = action.required or action.default in (None, "", []) or "(default: " in action.help
        return action.help if told else super()._get_help_string(action)


def run_command(options: type, program: str, work: Callable[[Any], str], argv: Sequence[str] | None) -> int:
    """A report's command line: read `options`, print what `work` returns; the user's mistakes end it with one line and status 1."""
    parser = dataclass_parser(options, prog=program)
    try:
        parsed, = parser.parse_args_into_dataclasses(argv, look_for_args_file=False)
        text = work(parsed)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")
    print(text)
    return 0


def pyplot() -> Any:
    """matplotlib.pyplot that draws into files; raises ImportError with the install line."""
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install matplotlib (the extra opencompass brings it: "
                          "pip install 'llada-plugins[opencompass]')") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot as plot

    return plot


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A new folder that takes the place of `folder` when the block ends well; otherwise nothing is left. Refuses one with contents."""
    check_empty(folder)
    folder.absolute().parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.absolute().parent))
    try:
        yield partial
        partial.chmod(0o755)        # mkdtemp makes it private
        partial.replace(folder.absolute())
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_empty(folder: Path) -> None:
    """Raise ValueError where `folder` is a file or holds anything."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"output {folder} is {'not empty' if folder.is_dir() else 'a file'}: give another folder, or remove it")


def markdown(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in [header, ["---"] * len(header), *rows])


def draw(report: Mapping[str, Any], folder: Path) -> None:
    """auc.png, calibration.png, confusion.png and mask_count.png."""
    plot = pyplot()
    for name, (title, across, up, paint) in PLOTS.items():
        figure, axes = plot.subplots(figsize=(6, 4))
        paint(report, axes)
        axes.set(title=title, xlabel=across, ylabel=up)
        figure.savefig(folder / f"{name}.png", dpi=120, bbox_inches="tight")
        plot.close(figure)


def _paint_auc(report: Mapping[str, Any], axes: Any) -> None:
    kinds = list(report["detection"])
    for shift, confidence in ((-0.2, "policy"), (0.2, "tps_prob")):
        heights = [report["detection"][kind]["auc"][confidence] for kind in kinds]
        bars = axes.bar([place + shift for place in range(len(kinds))], heights, 0.4, label=confidence)
        axes.bar_label(bars, fmt="%.3f")
    axes.set_xticks(range(len(kinds)), kinds)
    axes.set_ylim(0, 1.1)
    axes.legend(loc="lower right")


def _paint_calibration(report: Mapping[str, Any], axes: Any) -> None:
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":")
    for kind, found in report["detection"].items():
        axes.plot([row["mean_probability"] for row in found["reliability"]], [row["share_clean"] for row in found["reliability"]],
                  marker="o", label=f"{kind}, error {found['calibration_error']['policy']:.3f}")
    axes.legend()


def _paint_confusion(report: Mapping[str, Any], axes: Any) -> None:
    counts = report["detection"]["answer_alphabet"]["confusion"]
    rows = [[counts["tn"], counts["fp"]], [counts["fn"], counts["tp"]]]
    axes.imshow([[count / max(1, sum(row)) for count in row] for row in rows], cmap="Blues", vmin=0, vmax=1)
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
        axes.text(column, row, str(rows[row][column]), ha="center", va="center", bbox=dict(facecolor="white", edgecolor="none"))
    axes.set_xticks([0, 1], ["h < 0", "h ≥ 0"])
    axes.set_yticks([0, 1], ["incorrect", "clean"])


def _paint_mask_count(report: Mapping[str, Any], axes: Any) -> None:
    for number, (source, found) in enumerate(report["decoding"].items()):        # curves coincide: thinner ones lie on top
        axes.plot(found["mask_count"], marker=".", linewidth=2 * (len(report["decoding"]) - number), alpha=0.6, label=source)
    axes.legend()


PLOTS: dict[str, tuple[str, str, str, Callable[[Mapping[str, Any], Any], None]]] = {
    "auc": ("Incorrect-token detection", "incorrect tokens are", "AUC", _paint_auc),
    "calibration": ("Reliability of sigmoid(h) at visible tokens", "mean sigmoid(h)", "share of clean tokens", _paint_calibration),
    "confusion": ("Visible tokens, incorrect ones from the answer's alphabet", "policy", "token", _paint_confusion),
    "mask_count": ("Masked tokens of the answer (mean over problems)", "step", "masked tokens", _paint_mask_count),
}
