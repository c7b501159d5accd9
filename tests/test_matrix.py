"""tests.matrix: what an environment lacks, how outcomes are told, and the table of the page."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from tests import matrix

FOUND = {
    "the pins, Python 3.11": {**dict.fromkeys(matrix.CHECKS, "right"), "when": "2026-01-01"},
    "peft 0.17.0": {"golden": "right", "lm-eval": "fails: a / b", "when": "2026-01-02"},
    "Python 3.12": {"not run": "not run: no interpreter", "when": "2026-01-02"},
}


def distribution(folder: Path, name: str, version: str, *requires: str) -> None:
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    lines = [
        f"Name: {name}",
        f"Version: {version}",
        *(f"Requires-Dist: {each}" for each in requires),
    ]
    (info / "METADATA").write_text("Metadata-Version: 2.1\n" + "\n".join(lines) + "\n")


def test_what_neither_the_folder_nor_the_environment_has_is_missing(tmp_path):
    needs = ("packaging>=1", "packaging<2", "beside==1", 'never; python_version < "3"', "absent>3")
    distribution(tmp_path, "newer", "1.0", *needs, 'extra-only; extra == "all"')
    distribution(tmp_path, "beside", "1.0")
    assert matrix.missing(tmp_path) == ["packaging<2", "absent>3"]


def test_torch_is_never_replaced(tmp_path):
    distribution(tmp_path, "newer", "1.0", "torch<1")
    with pytest.raises(matrix.NotMade, match="newer needs torch<1"):
        matrix.missing(tmp_path)


def test_an_outcome_is_right_refused_or_what_went_wrong():
    assert matrix.outcome([0.5], [0.5]) == "right"
    assert matrix.outcome([0.25], [0.5]) == "other numbers: [0.25]"
    assert matrix.outcome(matrix.Failed("error: needs 4.57"), [0.5]) == "refused: needs 4.57"
    assert matrix.outcome(matrix.Failed("KeyError: 'a'"), [0.5]) == "fails: KeyError: 'a'"
    assert matrix.outcome(matrix.NotMade("no such package"), [0.5]) == "not run: no such package"


def test_an_outcome_names_files_without_the_folders_of_this_machine():
    said = "ImportError: no a/b in transformers (/home/me/.venv/lib/transformers/__init__.py)"
    told = matrix.outcome(matrix.Failed(said), [0.5])
    assert told == "fails: ImportError: no a/b in transformers (__init__.py)"


def test_rows_of_a_later_run_take_the_place_of_earlier_ones():
    old = matrix.parse(matrix.table(FOUND))
    assert old["the pins, Python 3.11"] == FOUND["the pins, Python 3.11"]
    assert old["Python 3.12"]["golden"] == old["Python 3.12"]["LoRA"] == "not run: no interpreter"
    row = dict.fromkeys(matrix.COLUMNS, "right")
    new = {"peft 0.17.0": row, "transformers newest, 9.1": row}
    found = matrix.merged(matrix.merged(old, new), {"transformers newest, 9.2": row})
    names = [row.name for row in matrix.rows()]
    assert found["peft 0.17.0"] == row and "transformers newest, 9.1" not in found
    order = [names.index(name.partition(",")[0] if "newest" in name else name) for name in found]
    assert order == sorted(order) and len(order) == len(FOUND) + 1


def test_a_check_that_is_run_alone_leaves_a_rows_other_cells():
    old = {"peft 0.19.0": {"golden": "right", "LoRA": "fails: a", "when": "2026-01-01"}}
    before = matrix.parse(matrix.table(old))
    new = {"peft 0.19.0": {"LoRA": "right", "when": "2026-01-02"}}
    found = matrix.merged(before, new)["peft 0.19.0"]
    assert (found["golden"], found["LoRA"], found["when"]) == ("right", "right", "2026-01-01")
    whole = {"peft 0.19.0": dict.fromkeys(matrix.COLUMNS, "right") | {"when": "2026-01-02"}}
    assert matrix.merged(before, whole) == whole
    not_run = {"peft 0.19.0": {"not run": "not run: no pip", "when": "2026-01-02"}}
    assert matrix.merged(before, not_run) == not_run


def test_a_table_of_other_columns_is_read_by_its_head():
    head = "| with | golden | LoRA | when |\n|---|---|---|---|\n| peft 0.19.0 | right | a | b |"
    assert matrix.parse(head) == {"peft 0.19.0": {"golden": "right", "LoRA": "a", "when": "b"}}


def floors() -> dict[str, Version]:
    """Of setup.cfg, the lowest versions that the matrix has a row for: package -> floor."""
    parser = configparser.ConfigParser()
    parser.read(matrix.ROOT / "setup.cfg")
    extras = parser["options.extras_require"]
    texts = (parser["options"]["install_requires"], extras["lmeval"], extras["train"])
    found: dict[str, Version] = {}
    for line in "\n".join(texts).splitlines():
        if not line or line.startswith("#"):
            continue
        requirement = Requirement(line)
        lowest = [
            each.version
            for each in SpecifierSet(str(requirement.specifier))
            if each.operator == ">="
        ]
        if lowest:
            found.setdefault(requirement.name, Version(lowest[0]))
    return found


@pytest.mark.parametrize(
    "package, check", (("transformers", "lm-eval"), ("lm-eval", "lm-eval"), ("peft", "LoRA"))
)
def test_the_floors_of_setup_cfg_are_the_lowest_versions_that_passed(package, check):
    between = matrix.PAGE.read_text(encoding="utf-8").split(matrix.BEGIN)[1].split(matrix.END)[0]
    passed = [
        Version(match[1])
        for name, cells in matrix.parse(between).items()
        if (match := re.match(rf"{package} (\d\S*)$", name)) and cells[check] == "right"
    ]
    if not passed:
        pytest.skip("make matrix has written no row of it")
    floor = floors()[package]
    assert min(passed).release[: len(floor.release)] == floor.release[: len(min(passed).release)]
