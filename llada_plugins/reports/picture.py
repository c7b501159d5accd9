"""Answers to one question as a picture: a row a step, a column a token."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np

from llada_plugins.files.atomic import whole_file
from llada_plugins.sampling.frames import UNKNOWN, Frame, frames
from llada_plugins.sampling.trace import Array, Pass

from .recorded import Recorded, changes, events_of
from .render import pyplot
from .visible import visible

KINDS = (".png", ".svg", ".gif")
MOST_STATES = 64  # of more, these are spread over all
WORDS = 40  # columns of which tokens are written out
FRAME = 350  # milliseconds of a moving picture's step


def draw(answers: Sequence[tuple[str, Recorded]], path: Path) -> None:
    """Write the picture of each run's answer; of a moving one the steps follow each other."""
    plot = pyplot()
    path.absolute().parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial:
        named = partial.with_suffix(path.suffix)
        if path.suffix == ".gif":
            _draw_moving(plot, answers, named)
        else:
            figure = _figure(plot, answers, MOST_STATES)
            figure.savefig(named, dpi=130, bbox_inches="tight", metadata=_undated(path))
            plot.close(figure)


def _undated(path: Path) -> dict[str, Any]:
    """So that equal answers make equal files."""
    return {"Date": None} if path.suffix == ".svg" else {}


def _figure(plot: Any, answers: Sequence[tuple[str, Recorded]], upto: int) -> Any:
    """The first states of each answer, side by side."""
    histories = [frames(events_of(answer.line)) for _, answer in answers]
    rows = min(MOST_STATES, max(map(len, histories)))
    widths = [max(4.0, min(14.0, 0.32 * len(found[0].tokens))) for found in histories]
    plot.rcParams["svg.hashsalt"] = "llada-plugins"
    figure, panels = plot.subplots(
        1,
        len(answers),
        figsize=(sum(widths) + 1, 1 + 0.26 * rows),
        squeeze=False,
        width_ratios=widths,
    )
    for axes, (name, answer), found in zip(panels[0], answers, histories):
        _paint(axes, answer, found, upto)
        title = "\n".join(wrap(visible(name), int(10 * widths[0]))).replace("$", r"\$")
        axes.set(xlabel="position", ylabel="after step")
        axes.set_title(title, fontsize=9)
    return figure


def _paint(axes: Any, answer: Recorded, found: Sequence[Frame], upto: int) -> None:
    """One answer: confidence as colour, masks empty, tokens that were taken back outlined."""
    numbers = np.unique(np.linspace(0, len(found) - 1, min(len(found), MOST_STATES)).astype(int))
    values = confidences(answer, found)[numbers]
    values[numbers > upto] = np.nan
    most = max(1.0, float(np.nanmax(values, initial=0)))
    # the darkest blues stay unused: black letters would not be seen on them
    axes.imshow(values, cmap="Blues", vmin=-0.1 * most, vmax=2 * most, aspect="auto")
    axes.set_yticks(range(len(numbers)), numbers)
    axes.tick_params(labelsize=6)
    for change in changes(found):
        row = int(np.searchsorted(numbers, change.step))
        if row < len(numbers) and numbers[row] <= upto:
            corner = (change.position - 0.45, row - 0.45)
            axes.add_patch(
                _plot_rectangle(
                    corner, edgecolor="#b3161b" if change.first != change.final else "#888888"
                )
            )
    if len(found[0].tokens) <= WORDS:
        _write_tokens(axes, answer, [found[number] for number in numbers if number <= upto])


def _plot_rectangle(corner: tuple[float, float], edgecolor: str) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle(corner, 0.9, 0.9, fill=False, edgecolor=edgecolor, linewidth=1.4)


def _write_tokens(axes: Any, answer: Recorded, found: Sequence[Frame]) -> None:
    for row, frame in enumerate(found):
        for place, token in enumerate(frame.tokens.tolist()):
            if token != UNKNOWN:
                word = visible(answer.line["pieces"].get(str(token), "?"))[:6]
                # $ would begin a formula
                axes.text(
                    place, row, word.replace("$", r"\$"), ha="center", va="center", fontsize=6
                )


def confidences(answer: Recorded, found: Sequence[Frame]) -> Array:
    """(F, G) the last score of each token that stands, NaN at masks and where none is known."""
    values = np.full((len(found), len(found[0].tokens)), np.nan)
    events = events_of(answer.line)
    for number, frame in enumerate(found):
        if number:
            values[number] = values[number - 1]
        event = events[frame.event] if frame.event >= 0 else None
        if isinstance(event, Pass) and frame.step is not None:
            score = event.score[frame.step].astype(float)
            before = values[number, event.window]
            values[number, event.window] = np.where(np.isfinite(score), score, before)
    values[np.stack([frame.tokens for frame in found]) == UNKNOWN] = np.nan
    return values


def _draw_moving(plot: Any, answers: Sequence[tuple[str, Recorded]], path: Path) -> None:
    """A GIF that shows a state more every time, and the last one longer."""
    from io import BytesIO

    from PIL import Image

    length = max(len(frames(events_of(answer.line))) for _, answer in answers)
    numbers = np.unique(np.linspace(0, length - 1, min(length, MOST_STATES)).astype(int)).tolist()
    pictures = []
    for number in numbers:
        figure = _figure(plot, answers, number)
        memory = BytesIO()
        figure.savefig(memory, format="png", dpi=90)
        plot.close(figure)
        pictures.append(Image.open(memory).convert("P", palette=Image.Palette.ADAPTIVE))
    times = [FRAME] * (len(pictures) - 1) + [8 * FRAME]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=times, loop=0)
