"""A drawing of boxes and words, as SVG or as pixels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any, Literal, NamedTuple

from .colours import light

DASH = 3  # pixels of a dash, and of the gap after it
PAPER = light("paper")
MONOSPACE, PLAIN = "ui-monospace, 'DejaVu Sans Mono', monospace", "system-ui, sans-serif"


class Box(NamedTuple):
    """A rectangle; lengths in pixels from the upper left corner of the drawing."""

    left: float
    top: float
    width: float
    height: float
    fill: str
    border: str | None = None
    thickness: float = 1
    dashed: bool = False


class Words(NamedTuple):
    """A line of text, centred at (x, y), or begun or ended there."""

    x: float
    y: float
    text: str
    colour: str
    size: int = 12
    anchor: Literal["start", "middle", "end"] = "middle"
    bold: bool = False
    monospace: bool = False
    struck: bool = False


class Drawing(NamedTuple):
    """Shapes on white, the first at the bottom."""

    width: int
    height: int
    title: str  # for those who cannot see it
    shapes: Sequence[Box | Words]


def as_svg(drawing: Drawing) -> str:
    """The drawing as a file of SVG; equal drawings make equal files."""
    width, height = drawing.width, drawing.height
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" role="img" font-size="12">',
        f"<title>{escape(drawing.title)}</title>",
        f'<rect width="{width}" height="{height}" rx="6" fill="{PAPER}"/>',
        *map(_element, drawing.shapes),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _element(shape: Box | Words) -> str:
    return _rectangle(shape) if isinstance(shape, Box) else _text(shape)


def _rectangle(box: Box) -> str:
    border = ""
    if box.border is not None:
        border = f' stroke="{box.border}" stroke-width="{box.thickness:g}"'
        border += f' stroke-dasharray="{DASH}"' * box.dashed
    return (
        f'<rect x="{box.left:g}" y="{box.top:g}" width="{box.width:g}" height="{box.height:g}" '
        f'fill="{box.fill}"{border}/>'
    )


def _text(words: Words) -> str:
    family = MONOSPACE if words.monospace else PLAIN
    style = ' font-weight="bold"' * words.bold + ' text-decoration="line-through"' * words.struck
    return (
        f'<text x="{words.x:g}" y="{words.y:g}" dy=".35em" text-anchor="{words.anchor}" '
        f'font-family="{family}" font-size="{words.size}" fill="{words.colour}"{style} '
        f'xml:space="preserve">{escape(words.text)}</text>'
    )


def as_image(drawing: Drawing, scale: int) -> Any:
    """The drawing as an image of Pillow, of `scale` pixels for each of its own.

    Raises ImportError with the install line where matplotlib, whose letters it uses, is missing.
    """
    from .render import pyplot

    pyplot()
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (drawing.width * scale, drawing.height * scale), PAPER)
    draw = ImageDraw.Draw(image)
    for shape in drawing.shapes:
        if isinstance(shape, Box):
            _paint_box(draw, shape, scale)
        else:
            _paint_words(draw, shape, scale)
    return image


def _paint_box(draw: Any, box: Box, scale: int) -> None:
    left, top = box.left * scale, box.top * scale
    right, bottom = left + box.width * scale, top + box.height * scale
    whole = None if box.dashed else box.border
    thickness = max(1, round(box.thickness * scale))
    draw.rectangle((left, top, right, bottom), box.fill, whole, thickness)
    if box.dashed:
        for x, y in ((left, top), (left, bottom)):
            for begin, end in _dashes(x, right, DASH * scale):
                draw.line((begin, y, end, y), box.border, thickness)
        for x in (left, right):
            for begin, end in _dashes(top, bottom, DASH * scale):
                draw.line((x, begin, x, end), box.border, thickness)


def _dashes(begin: float, end: float, length: int) -> Iterator[tuple[float, float]]:
    while begin < end:
        yield begin, min(end, begin + length)
        begin += 2 * length


def _paint_words(draw: Any, words: Words, scale: int) -> None:
    font = _font(words, scale)
    anchor = {"start": "lm", "middle": "mm", "end": "rm"}[words.anchor]
    place = words.x * scale, words.y * scale
    draw.text(place, words.text, words.colour, font, anchor)
    if words.struck:
        left, _, right, _ = draw.textbbox(place, words.text, font, anchor)
        draw.line((left, place[1], right, place[1]), words.colour, scale)


def _font(words: Words, scale: int) -> Any:
    import matplotlib
    from PIL import ImageFont

    name = "DejaVuSansMono" if words.monospace else "DejaVuSans"
    file = f"{name}{'-Bold' * words.bold}.ttf"
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return ImageFont.truetype(str(folder / file), words.size * scale)
