"""Command lines of programs that ask a model.

They have the program's own options, and every option of the chosen method as a flag of
the same name.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from typing import Any

from llada_plugins.methods.table import METHODS
from llada_plugins.options.command_line import FlagParser, OneLineParser
from llada_plugins.options.fields import build, names

from .asked import option_classes

MISTAKES = (ValueError, OSError, ImportError)  # the user's, told in one line
INTERRUPTED = 130  # what shells report of a program that Ctrl-C ended


def run_program(
    work: Callable[[], object],
    *,
    interrupted: str = "",
    mistakes: tuple[type[Exception], ...] = MISTAKES,
) -> int:
    """The exit status of a program: mistakes end it with one line and status 1.

    interrupted: the line with which Ctrl-C ends it.
    """
    try:
        work()
    except mistakes as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return INTERRUPTED
    return 0


def read_flags(
    own: type,
    argv: Sequence[str] | None,
    *,
    usage: str,
    description: str | None,
    defaults: Mapping[str, Any] | None = None,
) -> tuple[Any, dict[str, str]]:
    """An instance of `own`, and the options of the method that its field `model` names.

    The options are as given; ValueError on what neither has.

    defaults: the program's own, of options of the method, for --help.
    """
    first = OneLineParser(add_help=False, allow_abbrev=False)
    first.add_argument("--model", default="llada")
    model = first.parse_known_args(argv)[0].model
    if model not in METHODS:
        raise ValueError(f"model must be one of {', '.join(METHODS)}, got {model!r}")
    parser = FlagParser(
        usage=usage,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.what = f"{model} option"
    for options in (own, *option_classes(model)):
        group = parser.add_argument_group(options.__name__, (options.__doc__ or "").split("\n")[0])
        for field in fields(options):
            default = (defaults or {}).get(field.name, field.default)
            form = _form(default if options is own else None)
            _add_flag(group, field, default, form=form)
    given = parser.parse_args(argv)
    mine = {name: value for name, value in vars(given).items() if name in names(own)}
    others = {name: value for name, value in vars(given).items() if name not in mine}
    return build(own, mine), others


def _form(default: Any) -> dict[str, Any]:
    """How argparse reads a flag with this default: as a switch, several times, or once."""
    if isinstance(default, bool):  # --NAME and --no-NAME
        return {"action": argparse.BooleanOptionalAction}
    if isinstance(default, tuple):
        return {"action": "append", "metavar": "VALUE"}
    return {"metavar": "VALUE"}


def _add_flag(
    group: argparse._ArgumentGroup, field: Field, default: Any, *, form: dict[str, Any]
) -> None:
    """The flag of a field; form: see `_form`."""
    told = field.metadata["help"]
    if default not in (None, MISSING, ()):
        told += f" (default: {default})"
    group.add_argument(
        f"--{field.name}",
        required=default is MISSING,
        help=told.replace("%", "%%"),
        **form,
    )
