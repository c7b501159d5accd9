"""What python -m llada_plugins.view does: which runs, which question, and how it is shown."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llada_plugins.files.atomic import write_whole
from llada_plugins.options.command_line import OneLineParser

from .picture import KINDS, draw
from .recorded import Recorded, Run, names, read_runs
from .steps_in_terminal import show
from .viewer import viewer


@dataclass(frozen=True, kw_only=True)
class Words:
    """The command line."""

    runs: list[Path]
    html: Path | None
    picture: Path | None
    question: str | None


def read_words(argv: Sequence[str] | None, description: str) -> Words:
    """The command line; ValueError, of one line, on what is wrong with it."""
    parser = OneLineParser(
        prog="python -m llada_plugins.view",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder or file")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page of all questions")
    parser.add_argument(
        "--picture",
        type=Path,
        metavar="FILE",
        help=f"draw one question: {', '.join(KINDS)}, which the name's end says",
    )
    parser.add_argument(
        "--question",
        metavar="ID",
        help="number of the question in its task, or TASK:NUMBER (default: the first)",
    )
    words = Words(**vars(parser.parse_args(argv)))
    if words.html is not None and words.question is not None:
        raise ValueError("--question has no effect with --html: the page has all of them")
    if words.html is not None and words.picture is not None:
        raise ValueError("--html and --picture exclude each other: give one")
    if words.picture is not None and words.picture.suffix not in KINDS:
        raise ValueError(
            f"--picture {words.picture}: its name must end in one of {', '.join(KINDS)}"
        )
    return words


def look(words: Words) -> None:
    """Show the runs as the command line says."""
    runs = read_runs(words.runs)
    for run in runs:
        if run.damaged:
            print(
                f"{run.path}: {run.damaged} places held no whole line, as a killed run leaves; "
                "the other lines are shown",
                file=sys.stderr,
            )
    if words.html is not None:
        words.html.absolute().parent.mkdir(parents=True, exist_ok=True)
        write_whole(words.html, viewer(runs))
        print(
            f"{words.html}: {sum(len(run.answers) for run in runs)} answers; open it in a browser"
        )
        return
    chosen = choose(runs, words.question)
    if words.picture is not None:
        draw(chosen, words.picture)
        print(words.picture)
        return
    for name, answer in chosen:
        show(answer, name, sys.stdout)


def choose(runs: Sequence[Run], question: str | None) -> list[tuple[str, Recorded]]:
    """The answers to one question with the names of their runs; ValueError where it has none."""
    known = [answer for run in runs for answer in run.answers]
    wanted = known[0].key if question is None else question
    found = []
    for name, run in zip(names(runs), runs):
        meant = [answer for answer in run.answers if _is(answer, wanted)]
        found += [(name, answer) for answer in meant[:1]]
    if not found:
        some = ", ".join(f"{each.line['task']}:{each.line['doc_id']}" for each in known[:5])
        raise ValueError(f"--question {question}: no run answered it; there are {some}, …")
    return found


def _is(answer: Recorded, wanted: str | tuple[Any, ...]) -> bool:
    """Is it an answer to this question: a key, NUMBER or TASK:NUMBER?"""
    if not isinstance(wanted, str):
        return answer.key == wanted
    task, _, number = wanted.rpartition(":")
    return str(answer.line["doc_id"]) == number and task in ("", answer.line["task"])
