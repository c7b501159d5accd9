"""A report as one page of HTML: plots, tables, the command, the software and all numbers."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator, Mapping
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any

from llada_plugins.files.atomic import write_whole
from llada_plugins.files.digests import SHORT
from llada_plugins.files.software import git_commit, versions

from .page import figure, page, table
from .render import told_in

NAME = "report.html"
HELP = f"also write {NAME}: plots and tables on one page, which needs no other file"


def write_page(folder: Path, title: str, told: str, report: Mapping[str, Any]) -> None:
    """Write the page of the plots in a folder, which `render.save` wrote.

    told: the report's tables and sentences, as it prints them in Markdown. report: all of
    it, for those who want to know more.
    """
    plots = [figure(path.read_bytes(), told_in(path)) for path in sorted(folder.glob("*.png"))]
    manifest = {"command": command(), "software": software(), **report}
    everything = json.dumps(manifest, indent=1, ensure_ascii=False, default=str)
    body = "\n".join(
        [
            f"<main><h1>{escape(title)}</h1>",
            f"<pre>{escape(command())}</pre>",
            *from_markdown(told),
            f'<div class="figures">{"".join(plots)}</div>',
            f'<p class="dim">Made by {escape(made_by())}</p>',
            "<details><summary>Options, model, software and all numbers</summary>",
            f"<pre>{escape(everything)}</pre></details></main>",
        ]
    )
    write_whole(folder / NAME, page(title, body))


def command() -> str:
    """The command line of this process, without the place of Python."""
    return shlex.join(["python", *sys.orig_argv[1:]])


def software() -> dict[str, Any]:
    """What the numbers may depend on beside the command."""
    return {"versions": versions(), "git_commit": git_commit()}


def made_by() -> str:
    """The same in a line."""
    commit = git_commit()
    told = [f"{name} {version}" for name, version in versions().items()]
    if commit:
        told.append(f"commit {commit[:SHORT]}{'+' * commit.endswith('+')}")
    return ", ".join(told)


def from_markdown(told: str) -> Iterator[str]:
    """Tables as tables, other lines as paragraphs: the part of Markdown that reports write."""
    for is_table, lines in groupby(told.split("\n"), lambda line: line.startswith("|")):
        if is_table:
            header, _, *rows = [_cells(line) for line in lines]
            yield table(header, rows)
        else:
            yield from (f"<p>{escape(line.lstrip('# '))}</p>" for line in lines if line.strip())


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]
