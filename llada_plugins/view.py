"""Look at how answers came about: as a page, in the terminal or as a picture.

    python -m llada_plugins.view RUN [RUN ...] --html view.html
    python -m llada_plugins.view RUN --question 3
    python -m llada_plugins.view RUN --question 3 --picture steps.png

RUN: a folder or file that a run with record=trajectory wrote. The page needs no server and no
other file; several runs stand side by side on the same questions. See docs/view.md.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from llada_plugins.reports.looking import look, read_words


def main(argv: Sequence[str] | None = None) -> int:
    """The user's mistakes end it with one line and status 1."""
    try:
        look(read_words(argv, __doc__ or ""))
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
