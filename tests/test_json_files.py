"""JSON files of a checkpoint: what is read, and what every message names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llada_plugins.files.json_files import (
    FLAG,
    TEXT,
    either,
    list_of,
    misfit,
    nullable,
    number,
    one_of,
    read_json,
    record,
    table_of,
    whole,
)

KIND = record(
    {"size": whole(1, 9)},
    {
        "rate": number(0, 1),
        "on": FLAG,
        "names": list_of(TEXT),
        "table": table_of(whole()),
        "ends": nullable(either(whole(0), list_of(whole(0)))),
        "inner": record({"id": whole(0)}),
        "way": one_of("left", 0),
    },
)
WRONG = {
    "size is missing, expected a whole number from 1 to 9": {},
    "size is 0, expected a whole number from 1 to 9": {"size": 0},
    "size is True, expected a whole number": {"size": True},
    "size is 1.0, expected a whole number": {"size": 1.0},
    "size is '1', expected a whole number": {"size": "1"},
    "size is None, expected a whole number": {"size": None},
    "rate is 1.5, expected a number from 0 to 1": {"size": 1, "rate": 1.5},
    "rate is False, expected a number": {"size": 1, "rate": False},
    "on is 1, expected true or false": {"size": 1, "on": 1},
    r"names\[1\] is 2, expected a string": {"size": 1, "names": ["a", 2]},
    "names is 'ab', expected a list, each a string": {"size": 1, "names": "ab"},
    r"table\['k'\] is None, expected a whole number": {"size": 1, "table": {"k": None}},
    r"ends\[0\] is -1, expected a whole number from 0": {"size": 1, "ends": [-1]},
    "inner.id is missing": {"size": 1, "inner": {}},
    'way is False, expected "left" or 0': {"size": 1, "way": False},
}


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "file.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize("message", WRONG)
def test_a_field_that_is_not_as_declared_is_named_with_what_was_found_and_expected(
    tmp_path, message
):
    path = write(tmp_path, json.dumps(WRONG[message]))
    with pytest.raises(ValueError, match=f"^{path}: {message}") as error:
        read_json(path, KIND)
    assert "\n" not in str(error.value)


def test_what_is_as_declared_is_read_as_it_stands(tmp_path):
    value = {
        "size": 9,
        "rate": 0,
        "on": False,
        "names": [],
        "table": {"a": 1},
        "ends": None,
        "inner": {"id": 0, "more": "é\n"},
        "way": 0.0,
    }
    assert misfit(KIND, value) is None
    assert read_json(write(tmp_path, json.dumps(value)), KIND) == value


NO_JSON = {
    "Expecting": "{",
    "'a' stands twice": '{"a": 1, "b": 2, "a": 1}',
    "NaN is no JSON number": '{"a": NaN}',
    "-Infinity is no JSON number": '{"a": [-Infinity]}',
    "1e999 is too large a number": '{"a": 1e999}',
    "nests too deep": '{"a":' + "[" * 10**5,
    "byte 6 is not UTF-8": b'{"a": \xff}',
    "half a character": '{"a": "\\ud83d"}',
    "4300 digits": '{"a": ' + "9" * 5000 + "}",
    "BOM": b"\xef\xbb\xbf{}",
    "Invalid control character": '{"a": "b\nc"}',
}


@pytest.mark.parametrize("message", NO_JSON)
def test_what_is_not_strict_json_is_refused_in_one_line_that_names_the_file(tmp_path, message):
    path = write(tmp_path, NO_JSON[message])
    with pytest.raises(ValueError, match=f"^{path} is not valid JSON: .*{message}") as error:
        read_json(path)
    assert "\n" not in str(error.value)


def test_a_folder_or_a_loop_of_links_in_a_files_place_is_told_and_not_taken_for_an_absent_file(
    tmp_path,
):
    folder, loop = tmp_path / "folder.json", tmp_path / "loop.json"
    folder.mkdir()
    loop.symlink_to(loop)
    with pytest.raises(IsADirectoryError, match="folder.json is a folder, expected a file"):
        read_json(folder)
    with pytest.raises(FileNotFoundError, match="loop.json is a link that leads to no file"):
        read_json(loop)
    with pytest.raises(FileNotFoundError, match="has no absent.json"):
        read_json(tmp_path / "absent.json")
    with pytest.raises(ValueError, match="must hold a JSON object, found list"):
        read_json(write(tmp_path, "[]"))
