"""Is this installation whole, and do the harnesses find our models? One screen.

    python -m llada_plugins.doctor

What is broken is marked FAIL, with what to do about it in the line below; then the exit
status is 1. Both harnesses are asked for real, each in a Python of its own, as their
commands look us up.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from llada_plugins.options.command_line import OneLineParser
from llada_plugins.reports.doctor import findings
from llada_plugins.reports.finding import FAIL


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the report; status 1 where something needed is broken."""
    program, about = "python -m llada_plugins.doctor", __doc__.splitlines()[0]
    try:
        OneLineParser(prog=program, description=about).parse_args(arguments)
    except ValueError as error:
        sys.exit(f"error: {error}")
    broken = 0
    for finding in findings():
        print(finding, flush=True)
        broken += finding.state == FAIL
    print(f"{broken} broken: see FAIL" if broken else "nothing is broken")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
