"""Make a result again from its manifest, and say whether it is equal.

    python -m llada_plugins.rerun MANIFEST [--output DIR] [--anyway]

MANIFEST: a manifest_*.json or a results_*.json of lm-eval, or RUN/manifests/ABBR.json of
OpenCompass. The run is repeated from the current folder, since commands may name relative
paths. Exit status: 0 equal, 1 cannot be repeated or failed, 2 something that it depends on
has changed (weights, options, versions, device; --anyway repeats it all the same), 3 the
results differ.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from llada_plugins.options.command_line import OneLineParser
from llada_plugins.provenance.rerun import Changed, rerun


def main(arguments: Sequence[str] | None = None) -> int:
    """Repeat the run and print how the results compare; returns the exit status."""
    program, about = "python -m llada_plugins.rerun", __doc__.splitlines()[0]
    parser = OneLineParser(prog=program, description=about)
    parser.add_argument("manifest", type=Path, metavar="MANIFEST")
    parser.add_argument("--output", type=Path, metavar="DIR", help="for the new results")
    parser.add_argument("--anyway", action="store_true", help="also where something has changed")
    try:
        given = parser.parse_args(arguments)
        folder = given.output or Path(tempfile.mkdtemp(prefix="rerun-"))
        outcome = rerun(given.manifest, folder, anyway=given.anyway)
    except Changed as error:
        print(error)
        return 2
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"error: {error}")
    print("\n".join(outcome.lines))
    print(f"{'equal' if outcome.equal else 'NOT equal'}; new results: {folder}")
    return 0 if outcome.equal else 3


if __name__ == "__main__":
    sys.exit(main())
