"""Text files: rows of JSONL are told apart by newlines alone, and writing is all or nothing."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from llada_plugins.files.atomic import whole_file, write_whole
from llada_plugins.files.jsonl import each_row, read_pairs, read_prompts
from llada_plugins.files.utf8 import check_text

SEPARATOR = "\u2028"  # a line to str.splitlines, and none to JSON


@pytest.mark.parametrize("read", [read_prompts, read_pairs])
def test_a_line_separator_inside_a_string_ends_no_row(tmp_path: Path, read) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"prompt": "a{SEPARATOR}b", "completion": "c"}}\n', encoding="utf-8")
    [row] = read(path)
    assert f"a{SEPARATOR}b" in (row if isinstance(row, tuple) else (row,))


@pytest.mark.parametrize("read", [read_prompts, read_pairs])
@pytest.mark.parametrize(
    "line, reason",
    [
        (b'{"prompt": "a\xff", "completion": "b"}', "not UTF-8 text: byte 0xff, or lone surrogate"),
        (rb'{"prompt": "a\ud800", "completion": "b"}', r"lone surrogate \ud800 at character 2"),
        (b'{"prompt": "a"', "not JSON: "),
        (b'{"prompt":' + b"[" * 100_000, "nested too deeply"),
        (b'["a", "b"]', "expected "),
        (b'{"prompt": "", "completion": "b"}', "expected "),
    ],
)
def test_a_bad_row_is_refused_by_file_and_line(tmp_path: Path, read, line, reason) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"prompt": "a", "completion": "b"}\n\n' + line + b"\n")
    with pytest.raises(ValueError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}:3: ") and reason in str(caught.value)


def test_rows_are_read_from_gzip_and_a_torn_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress("\ufeff1\n\n2\nbroken\n".encode()))
    rows = each_row(path, int)
    assert [next(rows), next(rows)] == [1, 2]
    with pytest.raises(ValueError, match="rows.jsonl.gz:4: not JSON"):
        next(rows)
    whole = gzip.compress(b"".join(b"%d\n" % (number * 7919) for number in range(9999)))
    for damaged in (whole[:99], b"{}\n", whole[:20] + b"\xff" * 20 + whole[40:], whole[:-3]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="rows.jsonl.gz: no whole gzip file"):
            list(each_row(path, int))


def test_rows_are_read_one_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("1\n2\nbroken\n")
    rows = each_row(path, int)
    assert [next(rows), next(rows)] == [1, 2]
    with pytest.raises(ValueError, match="rows.jsonl:3: not JSON"):
        next(rows)


@pytest.mark.parametrize(
    "text, place",
    [
        ("\udcff", r"byte 0xff, or lone surrogate \\udcff at character 1: give UTF-8 text$"),
        ("ab\ud800c", r"text: lone surrogate \\ud800 at character 3, after 'ab': give UTF-8 text$"),
        ("x" * 99 + "\ud800", "at character 100, after '" + "x" * 16 + "': "),
    ],
)
def test_what_is_not_utf_8_is_told_with_its_place_and_what_stands_before(text, place) -> None:
    with pytest.raises(ValueError, match=place):
        check_text(text)


def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_whole(path, "before")
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "\ud800")
    with pytest.raises(KeyError), whole_file(path) as partial:
        partial.write_text("half")
        raise KeyError
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]
