"""The configs that came with the package, in a clone and in an installed wheel alike.

This prints their folder, a folder in it, or copies them, to be changed:

    python -m llada_plugins.configs
    python -m llada_plugins.configs lmeval                       (opencompass, accelerate)
    python -m llada_plugins.configs copy DEST
    lm_eval --include_path "$(python -m llada_plugins.configs lmeval)" …
    opencompass "$(python -m llada_plugins.configs)/eval_llada.py"
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from llada_plugins.files.atomic import whole_folder
from llada_plugins.files.installation import shipped
from llada_plugins.options.command_line import OneLineParser
from llada_plugins.options.fields import reject_unknown

COPY = "copy"
COMPILED = "__pycache__"


def folders() -> dict[str, Path]:
    """The folders in configs, by name."""
    found = sorted(shipped("configs").iterdir())
    return {path.name: path for path in found if path.is_dir() and path.name != COMPILED}


def copy(destination: Path) -> None:
    """Copy the configs into a new or empty folder, which appears whole or not at all.

    Raises ValueError on a file, on a folder that holds something, and on one within the
    configs.
    """
    source = shipped("configs")
    if destination.resolve().is_relative_to(source.resolve()):
        raise ValueError(
            f"{destination} lies in {source}, which is to be copied: give a folder elsewhere"
        )
    with whole_folder(destination) as partial:
        ignore = shutil.ignore_patterns(COMPILED)
        shutil.copytree(source, partial, ignore=ignore, dirs_exist_ok=True)


def answer(what: str | None, destination: Path | None) -> Path:
    """The folder that the command prints, after copying it where that is asked for."""
    if what == COPY:
        if destination is None:
            raise ValueError(f"{COPY} needs the folder to copy to: give {COPY} DEST")
        copy(destination)
        return destination
    if destination is not None:
        raise ValueError(
            f"{str(destination)!r} has no meaning here: only {COPY} takes a second word"
        )
    if what is None:
        return shipped("configs")
    reject_unknown([what], [*folders(), COPY], "word")
    return folders()[what]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the folder; the user's mistakes end in one line and status 1."""
    program, about = "python -m llada_plugins.configs", __doc__.splitlines()[0]
    parser = OneLineParser(prog=program, description=about)
    parser.add_argument(
        "what",
        nargs="?",
        help="lmeval, opencompass or accelerate: print that "
        f"folder (default: the one above them); {COPY}: copy all to DEST",
    )
    parser.add_argument(
        "destination", nargs="?", type=Path, metavar="DEST", help="new or empty folder"
    )
    try:
        given = parser.parse_args(arguments)
        print(answer(given.what, given.destination))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
