"""Tables and plots of reports; matplotlib is imported when it is drawn with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

# of a plot, in inches: its letters have 15 pixels in a page 40rem wide, 10 on a telephone
SIZE = (5.6, 3.8)


def pyplot() -> Any:
    """matplotlib.pyplot that draws into files; raises ImportError with the install line."""
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError(
            "plots need matplotlib: pip install matplotlib (the extra opencompass brings it: "
            "pip install 'llada-plugins[opencompass]')"
        ) from error
    matplotlib.use("Agg")
    from matplotlib import pyplot as plot

    return plot


def legend_below(axes: Any, columns: int = 2) -> None:
    """The legend under the plot, where it hides nothing."""
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=columns, frameon=False)


def save(figure: Any, file: Path | IO[bytes], told: str) -> None:
    """Write a figure as PNG, with a sentence in it for those who cannot see it; close it."""
    figure.savefig(file, dpi=160, bbox_inches="tight", format="png", metadata={"Title": told})
    pyplot().close(figure)


def told_in(path: Path) -> str:
    """The sentence in a PNG of `save`."""
    from PIL import Image

    with Image.open(path) as image:
        return str(image.info["Title"])


def markdown(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table."""
    return "\n".join(
        f"| {' | '.join(map(str, row))} |" for row in [header, ["---"] * len(header), *rows]
    )
