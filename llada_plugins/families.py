"""The families of checkpoints that load here: sizes, licences, special tokens, what was verified.

python -m llada_plugins.families
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from llada_plugins.options.command_line import OneLineParser
from llada_plugins.reports.families import lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the list; the user's mistakes end in one line and status 1."""
    program, about = "python -m llada_plugins.families", __doc__.splitlines()[0]
    try:
        OneLineParser(prog=program, description=about).parse_args(arguments)
    except ValueError as error:
        sys.exit(f"error: {error}")
    for line in lines():
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
