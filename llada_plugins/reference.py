"""Every option of the models as one page of Markdown, from the dataclasses that declare them.

    python -m llada_plugins.reference > docs/options.md

The page is docs/options.md; `make options` writes it, and tests/test_reference.py keeps
it current. A text that reads badly there is mended where the option is declared.
"""

from __future__ import annotations

import sys

from llada_plugins.reports.reference import page


def main() -> None:
    """Print the page."""
    sys.stdout.write(page())


if __name__ == "__main__":
    main()
