"""Tables and plots of reports; matplotlib is imported when it is drawn with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


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


def markdown(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table."""
    return "\n".join(
        f"| {' | '.join(map(str, row))} |" for row in [header, ["---"] * len(header), *rows]
    )
