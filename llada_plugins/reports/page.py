"""Pages of HTML that need no other file and ask no server: of reports, and of the viewer."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from string import Template
from typing import Any


def source(name: str) -> str:
    """A file of reports/pages."""
    return files(__package__).joinpath("pages").joinpath(name).read_text(encoding="utf-8")


def page(
    title: str,
    body: str,
    *,
    style: str = "",
    script: str = "",
    data: Mapping[str, str] | None = None,
) -> str:
    """A whole page; body: its HTML, in which everything that came from elsewhere is escaped.

    data: texts that the script reads, by the id of their element. A policy in the page's
    head lets this script run and no other, and forbids every request.
    """
    told = [_inert(name, value) for name, value in (data or {}).items()]
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    if script:
        told.append(f"<script>{script}</script>")
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        policy += f"; script-src 'sha256-{digest}'"
    return Template(source("page.html")).substitute(
        policy=escape(policy),
        title=escape(title),
        style=source("page.css") + style,
        body=body,
        scripts="\n".join(told),
    )


def _inert(name: str, value: str) -> str:
    """Text that a script reads: JSON, or letters without <; it cannot end its element."""
    harmless = value.replace("<", r"\u003c").encode(errors="replace").decode()
    return f'<script type="text/plain" id="{escape(name)}">{harmless}</script>'


def as_json(value: Any) -> str:
    """JSON for `data`."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table; numbers stand on the right."""
    heads = "".join(f'<th scope="col">{escape(str(each))}</th>' for each in header)
    lines = ["".join(_cell(str(each)) for each in row) for row in rows]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    whole = f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"
    # it may scroll, so the keyboard must reach it
    return f'<div class="wide" tabindex="0" role="group" aria-label="table">{whole}</div>'


def _cell(value: str) -> str:
    try:
        float(value)
    except ValueError:
        return f"<td>{escape(value)}</td>"
    return f'<td class="number">{escape(value)}</td>'


def figure(png: bytes, caption: str) -> str:
    """A picture within the page."""
    content = base64.b64encode(png).decode()
    return (
        f'<figure><img src="data:image/png;base64,{content}" alt="{escape(caption)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )
