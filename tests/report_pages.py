"""Pages of HTML as tests look at them."""

from __future__ import annotations

import json
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path


class Elements(HTMLParser):
    """The elements of a page, with their attributes and what is in scripts."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, str] = {}
        self.feed(content)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_data(self, data):
        tag, attributes = self.found[-1] if self.found else ("", {})
        name = attributes.get("id") or tag
        self.texts[name] = self.texts.get(name, "") + data


def check_report_page(path: Path, *, plots: int, rows: int, words: list[str]) -> None:
    """A report's page has so many plots, at least so many rows of tables, and these words.

    It has the command, the software and the numbers, and names no other place.
    """
    content = path.read_text(encoding="utf-8")
    elements = Elements(content)
    images = [attributes for tag, attributes in elements.found if tag == "img"]
    assert len(images) == plots and all(each["alt"] for each in images)
    assert all(each["src"].startswith("data:image/png;base64,") for each in images)
    assert [tag for tag, _ in elements.found].count("tr") >= rows
    assert "https:" not in content and "http:" not in content
    shown = unescape(re.sub(r"<[^>]+>", "", content))
    assert all(each in shown for each in words), words
    [everything] = re.findall(r"<details>.*?<pre>(.*?)</pre>", content, re.S)
    numbers = json.loads(unescape(everything))
    assert numbers["command"].startswith("python ") and numbers["command"] in shown
    assert {"python", "torch"} <= set(numbers["software"]["versions"])
    assert f"torch {numbers['software']['versions']['torch']}" in shown
