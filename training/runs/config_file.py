"""--config FILE: the flags of a training command in a YAML or JSON file.

They stand there by name, without dashes. They become words of the command line and
stand before its own, which therefore win. Types, choices and rules are checked in one
place.
"""

from __future__ import annotations

import json
from argparse import Action, ArgumentParser, ArgumentTypeError
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from llada_plugins.options.command_line import HELP, OneLineParser
from llada_plugins.options.fields import reject_unknown

OWN = ("help", "config")  # flags that a file cannot hold
UNSET: tuple[Any, ...] = (None, "null", "~", "", [])


def flags(parser: ArgumentParser, argv: Sequence[str]) -> list[str]:
    """The words for the file that --config names in `argv`, none without.

    Raises ValueError that names file and flag.
    """
    path, values = given(argv)
    # in reverse, for of --x and --no_x, which share a name, the first takes a value
    known = {action.dest: action for action in reversed(parser._actions) if action.dest not in OWN}
    try:
        reject_unknown(values, known, "flag", HELP)
        return [word for name, value in values.items() for word in _words(name, value, known[name])]
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def given(argv: Sequence[str]) -> tuple[Path | None, dict[str, Any]]:
    """The file that --config names in `argv` and what it sets."""
    first = OneLineParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config", type=Path)
    path = first.parse_known_args(argv)[0].config
    return path, ({} if path is None else _read(path))


def _read(path: Path) -> dict[str, Any]:
    import yaml

    if path.suffix not in (".yaml", ".yml", ".json"):
        raise ValueError(
            f"--config {path}: give a .yaml, .yml or .json file; python -m "
            "training.create_configs writes some"
        )
    if not path.is_file():
        raise FileNotFoundError(
            f"--config {path}: no such file; python -m training.create_configs writes some"
        )
    # of YAML, values stay the words that were written: 5e-4 and no are not the number
    # and the strategy that it would make of them
    kind = "YAML"
    load: Callable[[str], Any] = partial(yaml.load, Loader=yaml.BaseLoader)
    if path.suffix == ".json":
        kind, load = "JSON", json.loads
    try:
        # editors on Windows write a byte order mark
        values = load(path.read_text(encoding="utf-8-sig"))
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: not {kind}: {' '.join(str(error).split())}") from None
    if values is None:  # nothing but comments
        return {}
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected flags as NAME: VALUE, found {type(values).__name__}")
    return {str(name): value for name, value in values.items() if value not in UNSET}


def _words(name: str, value: Any, action: Action) -> list[str]:
    if isinstance(value, list) and action.nargs not in ("*", "+"):
        raise ValueError(f"{name}: one value is expected, found a list of {len(value)}")
    kind = action.type if callable(action.type) else str
    values = value if isinstance(value, list) else [value]
    words = [each if isinstance(each, str) else json.dumps(each) for each in values]
    for word in words:
        try:
            kind(word)
        except (ValueError, ArgumentTypeError) as error:
            raise ValueError(f"{name}: {error}") from None
    return [f"--{name}", *words] if isinstance(value, list) else [f"--{name}={words[0]}"]
