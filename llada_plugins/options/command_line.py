"""Command lines from option dataclasses; what is wrong with one is told in one line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from .fields import reject_unknown

if TYPE_CHECKING:
    from transformers import HfArgumentParser

HELP = "--help lists them"


class OneLineParser(argparse.ArgumentParser):
    """argparse whose errors are a ValueError of one line.

    argparse itself would print the usage of a hundred flags before it exits.
    """

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see --help")


class FlagParser(OneLineParser):
    """A misspelt flag is told with the nearest known one.

    argparse would first miss the one that it was meant for.
    """

    what = "flag"  # what is unknown, in the message

    def parse_known_args(  # type: ignore[override]  # typeshed's tells namespaces apart
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """As argparse's, but nothing is left over."""
        words = sys.argv[1:] if args is None else list(args)
        known = [option.lstrip("-") for action in self._actions for option in action.option_strings]
        flags = [word[2:].partition("=")[0] for word in words if word.startswith("--")]
        reject_unknown(
            dict.fromkeys(flag for flag in flags if flag and " " not in flag),
            known,
            self.what,
            HELP,
        )
        parsed, rest = super().parse_known_args(words, namespace)
        if rest:
            raise ValueError(
                f"{rest[0]!r} belongs to no flag: flags begin with --, values with spaces need "
                "quotes"
            )
        return parsed, rest


def dataclass_parser(options: type | Sequence[type], **settings: Any) -> HfArgumentParser:
    """A parser of the fields of dataclasses whose errors are one line."""
    from transformers import HfArgumentParser

    class Parser(FlagParser, HfArgumentParser):
        """HfArgumentParser with FlagParser's errors."""

    # transformers has a NewType of its own for dataclasses
    classes: Any = options
    return Parser(classes, allow_abbrev=False, formatter_class=DefaultsOnce, **settings)


class DefaultsOnce(argparse.ArgumentDefaultsHelpFormatter):
    """Help that tells a default where there is one that the text does not tell itself."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.const is False:  # --no_x, of which HfArgumentParser tells what --x does
            return f"turns --{action.dest} off"
        has_none = action.required or action.default in (None, "", [])
        if has_none or "(default: " in (action.help or ""):
            return action.help
        return super()._get_help_string(action)


def run_command(
    options: type, program: str, work: Callable[[Any], str], argv: Sequence[str] | None
) -> int:
    """A report's command line: read `options`, print what `work` returns.

    The user's mistakes end it with one line and status 1.
    """
    parser = dataclass_parser(options, prog=program)
    try:
        (parsed,) = parser.parse_args_into_dataclasses(argv, look_for_args_file=False)
        text = work(parsed)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")
    print(text)
    return 0
