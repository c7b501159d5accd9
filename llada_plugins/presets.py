"""The settings that authors published for their checkpoints, with scores: a list, or one of them.

    python -m llada_plugins.presets [--model M] [--task T]
    python -m llada_plugins.presets show NAME
    python -m llada_plugins.presets write DIR       (the files of configs/ that are made of them)

`show` prints the exact command of each harness. In a run, preset=NAME sets what nothing else
sets: in lm-eval's --model_args, in an OpenCompass model's entry, in Engine(preset=NAME).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from llada_plugins.options.command_line import OneLineParser
from llada_plugins.reports.presets import described, listed
from llada_plugins.settings.config_files import files
from llada_plugins.settings.table import chosen, find

__all__ = ["find", "main"]


def write(folder: Path) -> None:
    """Write the files of configs/ that are made from the table."""
    for place, text in files().items():
        path = folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what is asked for; the user's mistakes end in one line and status 1."""
    program, about = "python -m llada_plugins.presets", __doc__.splitlines()[0]
    parser = OneLineParser(prog=program, description=about)
    parser.add_argument("what", nargs="?", choices=["show", "write"], help="default: the list")
    parser.add_argument("name", nargs="?", help="of a preset to show; of a folder to write into")
    parser.add_argument("--model", metavar="M", help="only presets of this model")
    parser.add_argument("--task", metavar="T", help="only presets of this task")
    try:
        given = parser.parse_args(arguments)
        if given.what and not given.name:
            raise ValueError(f"{given.what} needs a second word; see --help")
        if given.what == "write":
            write(Path(given.name))
            return 0
        lines = (
            described(find(given.name)) if given.what else listed(chosen(given.model, given.task))
        )
        print("\n".join(lines))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
