"""Run the package beside other versions of what it needs, and write the table of docs/install.md.

    python -m tests.matrix [--only TEXT,TEXT] [--checks NAME,NAME] [--folder DIR]   (make matrix)

Each row is a throw-away environment. One of other packages is a folder of them in front of
this environment's own; one of another Python is made by venv, with the torch of TORCH. torch
is never replaced. In each: all golden data, five questions in stock lm-eval and in stock
OpenCompass, and two updates of all weights and two of a LoRA adapter, whose losses are
compared with this environment's.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "install.md"
BEGIN, END = "<!-- matrix: written by make matrix -->", "<!-- end of matrix -->"
TRANSFORMERS = ("4.46.3", "4.51.3", "4.57.6", "5.0.0", "5.10.2", "newest")
LM_EVAL = ("0.4.10", "0.4.11", "0.4.12", "0.4.13")
PEFT = ("0.17.0", "0.19.0")
PYTHONS = ("3.10", "3.11", "3.12")
CHECKS = ("golden", "lm-eval", "OpenCompass", "training", "LoRA")
COLUMNS = (*CHECKS, "when")
PINS = ("-c", str(ROOT / "constraints.txt"))
NEVER = {"torch", "numpy"}  # never installed beside the environment's own
RIGHT = "right"
FOLDERS = re.compile(
    r"(?<![\w.])/(?:[^/\s]+/)+"
)  # of a machine's paths, which say nothing elsewhere


class Row(NamedTuple):
    """An environment, and what became of each check in it, or why it was not made."""

    name: str
    requirements: tuple[str, ...] = ()  # put in front of this environment's packages
    python: str | None = None  # another interpreter, with an environment of its own


def rows() -> list[Row]:
    """The environments of the table; the first is this one, with which others are compared."""
    here = ".".join(platform.python_version_tuple()[:2])
    found = [Row(f"the pins, Python {here}")]
    for package, versions in (("transformers", TRANSFORMERS), ("lm-eval", LM_EVAL), ("peft", PEFT)):
        for each in versions:
            wanted = package if each == "newest" else f"{package}=={each}"
            found.append(Row(f"{package} {each}", (wanted,)))
    return found + [Row(f"Python {each}", (), each) for each in PYTHONS if each != here]


# ---- environments


class NotMade(RuntimeError):
    """Why an environment could not be made, in one line."""


def pip(python: str, *arguments: str) -> None:
    """Run pip; NotMade with the reason that it gives."""
    command = [python, "-m", "pip", "--disable-pip-version-check", "install", "-q", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise NotMade((errors or [f"pip ended with {done.returncode}"])[0].removeprefix("ERROR: "))


def overlay(folder: Path, requirements: Sequence[str]) -> None:
    """Put the packages into a folder, and what they need in other versions than there are."""
    wanted = list(requirements)
    while wanted:
        pip(sys.executable, "--no-deps", "--no-compile", "--upgrade", "--target", folder, *wanted)
        wanted = missing(folder)


def missing(folder: Path) -> list[str]:
    """Requirements of the folder's packages that neither they nor this environment meet."""
    ours = {each.metadata["Name"]: each for each in distributions()}
    theirs = {each.metadata["Name"]: each for each in distributions(path=[str(folder)])}
    installed: dict[str, Distribution] = {
        canonicalize_name(name): each for name, each in {**ours, **theirs}.items()
    }
    found = []
    for each in theirs.values():
        for requirement in map(Requirement, each.requires or []):
            if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
                continue
            name = canonicalize_name(requirement.name)
            has = installed.get(name)
            if has is not None and requirement.specifier.contains(has.version, prereleases=True):
                continue
            if name in NEVER:
                raise NotMade(f"{each.metadata['Name']} needs {requirement}")
            found.append(f"{requirement.name}{requirement.specifier}")
    return found


def interpreter(wanted: str) -> str:
    """A Python of that version that can make environments; NotMade where there is none."""
    for name in (f"python{wanted}", "python3"):
        path = shutil.which(name)
        said = "import ensurepip, sys, venv; print('%d.%d' % sys.version_info[:2])"
        if path is None:
            continue
        done = subprocess.run([path, "-c", said], capture_output=True, text=True)
        if done.stdout.strip() == wanted:
            return path
    raise NotMade(f"no interpreter python{wanted} here")


def environment(folder: Path, python: str) -> str:
    """The interpreter of an environment with the pinned versions, made in the folder."""
    subprocess.run([interpreter(python), "-m", "venv", folder], check=True)
    own = str(folder / "bin" / "python")
    pip(own, *PINS, *os.environ.get("TORCH", "torch==2.13.0").split())
    pip(own, *PINS, "-e", f"{ROOT}[lmeval,train]")
    return own


# ---- checks


class Failed(RuntimeError):
    """What a check ended with, in one line."""


def run(python: str, path: str, folder: Path, *command: str) -> None:
    """Run a module's command; Failed with its last line of errors."""
    forbidden = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
    variables = {
        **os.environ,
        **dict.fromkeys(forbidden, "1"),
        "PYTHONPATH": path,
        "HF_HOME": str(folder / "home"),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    done = subprocess.run(
        [python, "-W", "ignore", "-m", *command],
        cwd=ROOT,
        env=variables,
        capture_output=True,
        text=True,
        timeout=1200,
    )
    if done.returncode:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise Failed((lines or [f"ended with {done.returncode}"])[-1])


def golden(python: str, path: str, folder: Path) -> object:
    """All recordings; the command fails where one is not reproduced."""
    sets = sorted(str(each) for each in (ROOT / "tests" / "golden").iterdir())
    run(python, path, folder, "tests.check_golden", *sets)
    return RIGHT


def lm_eval(python: str, path: str, folder: Path) -> object:
    """The answers to five sudokus."""
    model = ("--model", "llada", "--model_args", "pretrained=sudoku4,steps=8")
    task = ("--tasks", "sudoku4", "--include_path", "configs/lmeval", "--limit", "5")
    output = ("--output_path", str(folder / "lmeval"), "--log_samples", "--device", "cpu")
    run(python, path, folder, "lm_eval", *model, *task, *output)
    [samples] = (folder / "lmeval").rglob("samples_*.jsonl")
    lines = [json.loads(line) for line in samples.read_text().splitlines()]
    return [line["resps"] for line in sorted(lines, key=lambda line: line["doc_id"])]


def opencompass(python: str, path: str, folder: Path) -> object:
    """The answers to five sudokus and their score."""
    from tests.faults.runs import CONFIG

    if python != sys.executable:  # where it cannot be installed, all else can still be run
        pip(python, *PINS, "-e", f"{ROOT}[opencompass]")
    config, run_folder = folder / "opencompass.py", folder / "opencompass"
    options = dict(kind="LLaDA", number=5, batch=5, options=dict(steps=8), rows="''")
    text = CONFIG.format(**options, partitioner="dict(type=NaivePartitioner)")
    config.write_text(text, encoding="utf-8")
    words = ("opencompass.cli.main", str(config), "-w", str(run_folder), "--debug")
    run(python, path, folder, *words)
    [answers] = run_folder.glob("*/predictions/tiny/sudoku4.json")
    [score] = run_folder.glob("*/results/tiny/sudoku4.json")
    rows = json.loads(answers.read_text()).values()
    return [row["prediction"] for row in rows], json.loads(score.read_text())


def two_updates(python: str, path: str, folder: Path, *flags: str) -> object:
    """The losses of two updates of the tiny model: the second shows what the first did.

    To four digits, as older transformers write them.
    """
    data, name = folder / "data.jsonl", "lora" if flags else "sft"
    data.write_text('{"prompt": "41..2...1....4..=", "completion": "4132231413243241"}\n' * 4)
    given = ("--model", "sudoku4", "--data", str(data), "--output_dir", str(folder / name))
    length = ("--max_steps", "2", "--per_device_train_batch_size", "2", "--logging_steps", "1")
    rate = ("--learning_rate", "1e-2", "--warmup_steps", "0", "--save_strategy", "no")
    run(python, path, folder, "training.sft", *given, *length, *rate, "--use_cpu", *flags)
    lines = (folder / name / "metrics.jsonl").read_text().splitlines()
    return [round(line["loss"], 4) for line in map(json.loads, lines) if "loss" in line]


def lora(python: str, path: str, folder: Path) -> object:
    """The losses of two updates of an adapter."""
    return two_updates(python, path, folder, "--lora", "--lora_r", "2")


DO: dict[str, Callable[[str, str, Path], object]] = dict(
    zip(CHECKS, (golden, lm_eval, opencompass, two_updates, lora), strict=True)
)


def checks(
    python: str, path: str, folder: Path, names: Sequence[str]
) -> Iterator[tuple[str, object]]:
    """What each of these CHECKS gives in an environment: a value, or Failed."""
    folder.mkdir(exist_ok=True)
    for name in names:
        try:
            yield name, DO[name](python, path, folder)
        except (Failed, NotMade) as error:
            yield name, error
        except subprocess.TimeoutExpired:
            yield name, Failed("took more than 20 minutes")


def outcome(found: object, expected: object) -> str:
    """A cell: right, another value than this environment's, or what the check ended with."""
    if isinstance(found, NotMade):
        return f"not run: {str(found)[:160]}"
    if isinstance(found, Failed):
        said = FOLDERS.sub("", str(found))
        refused = said.startswith("error: ")
        return f"{'refused' if refused else 'fails'}: {said.removeprefix('error: ')[:160]}"
    return RIGHT if found == expected else f"other numbers: {str(found)[:80]}"


# ---- the table

Cells = dict[str, str]  # a row's: of each check, or "not run", and "when"


def table(outcomes: Mapping[str, Mapping[str, str]]) -> str:
    """Markdown of the outcomes by row and check; a row that was not run has one cell."""
    lines = [f"| with | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, cells in outcomes.items():
        row = [cells.get(column, cells.get("not run", "")) for column in COLUMNS]
        lines.append(f"| {name} | {' | '.join(each.replace('|', '/') for each in row)} |")
    return "\n".join(lines)


def parse(text: str) -> dict[str, Cells]:
    """The outcomes in a table of `table`, whatever columns it has."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    if not lines:
        return {}
    (_, *columns), *rows = lines
    return {name: dict(zip(columns, cells)) for name, *cells in rows}


def merged(old: Mapping[str, Cells], new: Mapping[str, Cells]) -> dict[str, Cells]:
    """Rows of both, the new ones in the place of old ones, in the order of `rows`."""
    order = [row.name for row in rows()]

    def known(name: str) -> str:
        """The name in `rows`: without what "newest" was."""
        return name.partition(",")[0] if "newest" in name else name

    both = {name: _both(old.get(name, {}), cells) for name, cells in new.items()}
    fresh = {known(name) for name in new}
    found = {name: cells for name, cells in old.items() if known(name) not in fresh} | both
    kept = [name for name in found if known(name) in order]
    return {name: found[name] for name in sorted(kept, key=lambda name: order.index(known(name)))}


def _both(old: Mapping[str, str], new: Mapping[str, str]) -> Cells:
    """A row's cells: of checks that were not repeated the old ones, and the date of the oldest."""
    kept = {name: old[name] for name in CHECKS if name in old and name not in new}
    if "not run" in new or not kept:
        return dict(new)
    return {**kept, **new, "when": min(old["when"], new["when"])}


def write(outcomes: Mapping[str, Cells]) -> None:
    """Put the rows into the table of the page, between the marks."""
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    between, after = rest.split(END)
    whole = table(merged(parse(between), outcomes))
    PAGE.write_text(f"{before}{BEGIN}\n{whole}\n\n{END}{after}", encoding="utf-8")


def try_row(
    row: Row, folder: Path, expected: dict[str, object], names: Sequence[str] = CHECKS
) -> Cells:
    """The cells of a row for these checks. expected: of the first row, which fills it."""
    python, path = sys.executable, str(ROOT)
    cells = {"when": str(date.today())}
    try:
        if row.requirements:
            overlay(folder / "packages", row.requirements)
            path = os.pathsep.join([str(folder / "packages"), path])
        if row.python:
            python = environment(folder / "venv", row.python)
    except NotMade as error:
        return {**cells, "not run": outcome(error, None)}
    for name, found in checks(python, path, folder / "out", names):
        cells[name] = outcome(found, expected.setdefault(name, found))
        print(f"{row.name}: {name}: {cells[name]}", flush=True)
    return cells


def named(row: Row, folder: Path) -> str:
    """The row's name; "newest" is followed by what it is."""
    if not row.name.endswith("newest"):
        return row.name
    [package] = row.requirements
    [found] = distributions(name=package, path=[str(folder / "packages")])
    return f"{row.name}, {found.version}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the rows, and write each into the page as soon as it has ended."""
    parser = argparse.ArgumentParser(prog="python -m tests.matrix")
    parser.add_argument("--only", default="", help="rows whose names have one of TEXT,TEXT…")
    parser.add_argument("--checks", default=",".join(CHECKS), help="NAME,NAME of the columns")
    parser.add_argument("--folder", type=Path, help="where the environments go, and stay")
    given = parser.parse_args(arguments)
    first, *others = rows()
    wanted = given.only.split(",")
    chosen = [first, *(row for row in others if any(text in row.name for text in wanted))]
    expected: dict[str, object] = {}
    outcomes = {}
    with tempfile.TemporaryDirectory() as name:
        folder = given.folder or Path(name)
        for number, row in enumerate(chosen):
            own = folder / str(number)
            own.mkdir(parents=True)
            cells = try_row(row, own, expected, given.checks.split(","))
            outcomes[named(row, own) if "not run" not in cells else row.name] = cells
            write(outcomes)
            if given.folder is None:
                shutil.rmtree(own)
    print(table(outcomes))
    return 0


if __name__ == "__main__":
    sys.exit(main())
