"""Does a result agree with what is published? Ours, theirs, and every setting that differs.

    python -m llada_plugins.check RESULTS

RESULTS: a results file or folder of lm-eval, or a work dir of OpenCompass (the newest run
in it). A run without preset= is held against the nearest one. Exit status: 0 every score
agrees (the published one is within the 95 % binomial interval of ours), 1 one differs
beyond the interval, 2 RESULTS cannot be read, 3 one is not comparable: a setting differs,
or there is no score; the reasons are told. OpenCompass exits with 0 where all tasks
failed; this does not.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from llada_plugins.options.command_line import OneLineParser
from llada_plugins.provenance.drift import compare, described, status
from llada_plugins.provenance.finding_runs import runs_in


def main(arguments: Sequence[str] | None = None) -> int:
    """Print how the runs stand to what is published; returns the exit status."""
    parser = OneLineParser(
        prog="python -m llada_plugins.check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("results", type=Path, metavar="RESULTS")
    try:
        found = [
            compare(run, presets) for run, presets in runs_in(parser.parse_args(arguments).results)
        ]
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for each in found:
        print("\n".join(described(each)))
    return status(found)


if __name__ == "__main__":
    sys.exit(main())
