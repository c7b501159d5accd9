"""Answers to one question as a picture: a row a step, a column a token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from textwrap import shorten
from typing import NamedTuple

import numpy as np

from llada_plugins.engine.visible import visible
from llada_plugins.files.atomic import whole_file
from llada_plugins.sampling.frames import UNKNOWN, Frame, frames
from llada_plugins.sampling.trace import Array, Pass

from .colours import light
from .recorded import Recorded, changes, events_of
from .shapes import Box, Drawing, Words, as_image, as_svg
from .steps_in_terminal import VERDICTS
from .trajectory import Change

KINDS = (".png", ".svg", ".gif")
MOST_STATES = 64  # of more, these are spread over all
MOST_WORDS = 40  # columns of which tokens are written out
LETTERS = 6  # of a token that are written out
FRAME = 350  # milliseconds of a moving picture's step
# pixels
ROW, LETTER, NARROWEST, WIDE, GAP = 22, 8, 24, 900, 24
LEFT, TOP, LEGEND = 34, 64, 62  # beside, above and below an answer's cells
LEVELS = [light(f"c{level}") for level in range(10)]  # from the least confidence to the most
INK, DIM, MASK, NEW, BAD = (light(name) for name in ("ink", "dim", "mask", "link", "bad"))


class _Panel(NamedTuple):
    """What is drawn of one run's answer."""

    name: str
    answer: Recorded
    numbers: Array  # (R,) of the states that are drawn
    found: list[Frame]  # all states
    gone: list[Change]
    cell: float  # pixels across
    values: Array  # (F, G) see `confidences`

    @property
    def width(self) -> float:
        """Pixels across, or those of the words above it."""
        return max(330.0, self.cell * len(self.found[0].tokens))

    @property
    def spelt(self) -> bool:
        """Is there room for tokens?"""
        return len(self.found[0].tokens) <= MOST_WORDS


def draw(answers: Sequence[tuple[str, Recorded]], path: Path) -> None:
    """Write the picture of each run's answer; of a moving one the steps follow each other."""
    panels = [_panel(name, answer) for name, answer in answers]
    path.absolute().parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial:
        named = partial.with_suffix(path.suffix)
        if path.suffix == ".svg":
            named.write_text(as_svg(drawing(panels)), encoding="utf-8")
        elif path.suffix == ".png":
            as_image(drawing(panels), 2).save(named)
        else:
            _draw_moving(panels, named)


def _panel(name: str, answer: Recorded) -> _Panel:
    found = frames(events_of(answer.line))
    numbers = np.unique(np.linspace(0, len(found) - 1, min(len(found), MOST_STATES)).astype(int))
    columns = max(1, len(found[0].tokens))
    cell = max(3.0, min(NARROWEST, WIDE / columns))
    if columns <= MOST_WORDS:
        tokens = {int(token) for frame in found for token in frame.tokens}
        longest = max(len(_word(answer, token)) for token in tokens)
        cell = max(NARROWEST, LETTER * longest + 8)
    values = confidences(answer, found)
    return _Panel(name, answer, numbers, found, changes(found), cell, values)


def _word(answer: Recorded, token: int) -> str:
    """A token as far as it fits; of a mask nothing."""
    if token == UNKNOWN:
        return ""
    word = visible(answer.line["pieces"].get(str(token), "?")).replace(" ", "·")
    return word if len(word) <= LETTERS else word[: LETTERS - 1] + "…"


def drawing(panels: Sequence[_Panel], upto: int | None = None) -> Drawing:
    """The answers side by side; upto: the last state that is shown (default: all are)."""
    rows = max(len(panel.numbers) for panel in panels)
    lefts = [LEFT + sum(each.width + LEFT + GAP for each in panels[:k]) for k in range(len(panels))]
    bottom = TOP + ROW * rows
    shapes = [
        shape
        for panel, left in zip(panels, lefts)
        for shape in (*_heading(panel, left), *_grid(panel, left, upto))
    ]
    width = max(560.0, lefts[-1] + panels[-1].width + GAP)
    title = "; ".join(_told(panel) for panel in panels)
    return Drawing(
        round(width), bottom + LEGEND, visible(title), [*shapes, *_legend(panels, bottom + 16)]
    )


def _told(panel: _Panel) -> str:
    """Which run, question and verdict it is."""
    return ": ".join([panel.name, *_question(panel)]) + f", {VERDICTS[panel.answer.verdict]}"


def _fitting(panel: _Panel, room: int) -> str:
    """The same in so many letters: what is cut is the end of the run's name."""
    told = visible(_told(panel))
    if len(told) > room:
        verdict = VERDICTS[panel.answer.verdict]
        told = visible(f"{', '.join([*_question(panel), verdict])}: {panel.name}")
    return shorten(told, room, placeholder=" …")


def _question(panel: _Panel) -> list[str]:
    """The question, where a harness asked it."""
    line = panel.answer.line
    names = [str(each) for each in (line["task"], line["doc_id"]) if each is not None]
    return [f"question {' '.join(names)}"] if names else []


def _heading(panel: _Panel, left: float) -> Iterator[Words]:
    """Which run and question it is, what it cost, and what the columns are."""
    line = panel.answer.line
    forwards = max(1, line["num_forwards"])
    costs = f"{line['num_tokens']} tokens, {line['num_forwards']} forwards, "
    costs += f"{line['num_tokens'] / forwards:.2f} tokens a forward"
    title = _fitting(panel, max(20, int(panel.width / 6.5)))
    yield Words(left, 16, title, INK, 12, "start", bold=True)
    yield Words(left, 34, costs, DIM, 11, "start")
    yield Words(left - 8, TOP - 10, "step", DIM, 10, "end")
    every = _every(len(panel.found[0].tokens))
    for place in range(0, len(panel.found[0].tokens), every):
        yield Words(left + (place + 0.5) * panel.cell, TOP - 10, str(place), DIM, 10)


def _every(columns: int) -> int:
    """Of how many columns one is numbered."""
    return next(step for step in (2, 5, 10, 20, 50, 100, 10**6) if columns / step <= 20)


def _grid(panel: _Panel, left: float, upto: int | None) -> Iterator[Box | Words]:
    least, most = bounds(panel.values)
    levels = np.clip(np.nan_to_num(10 * (panel.values - least) / max(1e-9, most - least)), 0, 9)
    taken = {(_row(panel, change.step), change.position): change for change in panel.gone}
    for row, number in enumerate(panel.numbers.tolist()):
        if upto is not None and number > upto:
            return
        top = TOP + ROW * row
        yield Words(left - 8, top + ROW / 2, str(number), DIM, 10, "end")
        before = panel.found[panel.numbers[max(0, row - 1)]].tokens
        for place, token in enumerate(panel.found[number].tokens.tolist()):
            fill = MASK if token == UNKNOWN else LEVELS[int(levels[number, place])]
            cell = Box(left + place * panel.cell, top, panel.cell - 1, ROW - 1, fill)
            change = taken.get((row, place))
            yield from _cell(panel, cell, int(before[place]), token, change)


def _row(panel: _Panel, step: int) -> int:
    """The row in which a change is seen."""
    return int(np.searchsorted(panel.numbers, step))


def _cell(
    panel: _Panel, cell: Box, before: int, token: int, change: Change | None
) -> Iterator[Box | Words]:
    """A token, or the one that was taken back, struck out."""
    word, colour, new = _word(panel.answer, token), INK, before == UNKNOWN != token
    if change is not None:
        border = BAD if change.first != change.final else DIM
        dashed = token == UNKNOWN
        yield _bordered(cell, border, dashed)
        if dashed:  # else it was replaced, and red on blue is hard to read
            word, colour = _word(panel.answer, change.first), border
    elif new:
        yield _bordered(cell, NEW)
    else:
        yield cell
    if panel.spelt and word:
        x, y = cell.left + cell.width / 2, cell.top + cell.height / 2
        struck = change is not None and token == UNKNOWN
        yield Words(x, y, word, colour, 12, bold=new, monospace=True, struck=struck)


def _bordered(cell: Box, colour: str, dashed: bool = False) -> Box:
    """With a border within the cell."""
    return cell._replace(
        left=cell.left + 0.75,
        top=cell.top + 0.75,
        width=cell.width - 1.5,
        height=cell.height - 1.5,
        border=colour,
        thickness=1.5,
        dashed=dashed,
    )


def _legend(panels: Sequence[_Panel], top: float) -> Iterator[Box | Words]:
    """What borders and colours mean."""
    samples = [
        (Box(0, 0, 14, 14, MASK), "masked"),
        (_bordered(Box(0, 0, 14, 14, LEVELS[6]), NEW), "new"),
        (_bordered(Box(0, 0, 14, 14, MASK), DIM, True), "masked again"),
        (_bordered(Box(0, 0, 14, 14, MASK), BAD, True), "masked again, in the end another"),
    ]
    left = float(LEFT)
    for box, told in samples:
        yield box._replace(left=left + box.left, top=top + box.top)
        yield Words(left + 20, top + 7, told, DIM, 11, "start")
        left += 38 + 6.2 * len(told)
    ends = [bounds(panel.values) for panel in panels]
    # each panel has its own scale; where they differ the ends have no number
    least, most = ends[0] if len(set(ends)) == 1 else (None, None)
    sources = dict.fromkeys(panel.answer.line["source"] for panel in panels)
    told = f"confidence ({visible(', '.join(sources))}):"
    low, high = ("least", "most") if least is None else (f"{least:.3g}", f"{most:.3g}")
    yield Words(LEFT, top + 29, f"{told} {low}", DIM, 11, "start")
    left = LEFT + 6.2 * (len(told) + len(low) + 3)
    for number, fill in enumerate(LEVELS):
        yield Box(left + 14 * number, top + 22, 14, 14, fill)
    yield Words(left + 14 * len(LEVELS) + 6, top + 29, high, DIM, 11, "start")


def bounds(values: Array) -> tuple[float, float]:
    """The ends of the scale of colours; of probabilities 0 and 1, so that runs compare."""
    known = values[np.isfinite(values)]
    if not known.size or (known.min() >= 0 and known.max() <= 1):
        return 0.0, 1.0
    return float(known.min()), float(known.max())


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


def _draw_moving(panels: Sequence[_Panel], path: Path) -> None:
    """A GIF that shows a state more every time, and the last one longer."""
    from PIL import Image

    numbers = sorted({int(number) for panel in panels for number in panel.numbers})
    chosen = np.unique(np.linspace(0, len(numbers) - 1, min(len(numbers), MOST_STATES)).astype(int))
    pictures = [
        as_image(drawing(panels, numbers[each]), 1).convert("P", palette=Image.Palette.ADAPTIVE)
        for each in chosen.tolist()
    ]
    times = [FRAME] * (len(pictures) - 1) + [8 * FRAME]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=times, loop=0)
