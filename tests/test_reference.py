"""The page of options: complete, current, and sound Markdown."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from llada_plugins.engine.asked import option_classes
from llada_plugins.methods.table import METHODS
from llada_plugins.options.fields import names
from llada_plugins.reports import reference

PAGE = Path(__file__).parents[1] / "docs" / "options.md"
ROWS = [line for line in reference.page().splitlines() if line.startswith("| `")]


def test_the_committed_page_is_what_the_command_prints():
    assert PAGE.read_text(encoding="utf-8") == reference.page(), "run make options"


@pytest.mark.parametrize("method", METHODS)
def test_every_option_of_a_method_has_one_row(method):
    told = [name for group in reference.groups() for name in group.names]
    for name in names(*option_classes(method)):
        assert told.count(name) == 1, name


def test_a_group_names_only_options_of_its_class():
    for group in reference.groups():
        assert set(group.names) <= set(names(group.options)), group.title


def test_every_row_has_the_cells_of_its_head():
    assert {len(re.findall(r"\|", row)) for row in ROWS} == {5, 3}  # options; published names


def test_no_text_of_a_row_is_read_as_html():
    assert not [row for row in ROWS if "<" in row]
