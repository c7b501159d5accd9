"""Commands of README and docs/: each is run on the shipped models, or, where it needs what
is the user's, its options are known.
"""

from __future__ import annotations

import configparser
import glob
import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from llada_plugins.engine.asked import option_classes
from llada_plugins.methods.table import METHODS
from llada_plugins.options.fields import build, coerce, names, reject_unknown
from llada_plugins.sampling.config import SamplerConfig
from tests.commands import in_process, python

ROOT = Path(__file__).parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
}
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
CI = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)

# run as they stand by .ci/run
DEMO = ("make demo", "make test", "opencompass configs/eval_llada.py")
# need a checkpoint, data or another command's output, which are the user's
PLACEHOLDERS = re.compile(
    r"GSAI-ML/|LLADA_MODEL=|\bDIR\b|FILE\.(jsonl|csv)|--preset (?:nim|few_shot) "
    r"|--(?:model|student) outputs/"
)
SETTING = re.compile(r"^[A-Z_]+=\S*$")  # of the environment, before a command
SHORTER = {
    "lm_eval": ["--limit", "2"],
    "frontier": ["--limit", "2"],
    "training": ["--max_steps", "2", "--overwrite"],
}
RANGE = re.compile(r"=[\d.]+\.\.[\d.]+$")  # of a sweep: six values


def blocks(page: str, language: str) -> list[str]:
    return [text for found, text in BLOCK.findall(PAGES[page]) if found == language]


def commands(page: str) -> list[str]:
    """Of a page's blocks without a language, one a line."""
    lines = [line for text in blocks(page, "") for line in text.replace("\\\n", " ").splitlines()]
    return [re.sub(r"\s+#.*", "", line).strip() for line in lines if line.strip()]


COMMANDS = list(dict.fromkeys(command for page in PAGES for command in commands(page)))


def words(command: str) -> list[str]:
    """The command's words, without what is set in its environment."""
    found = shlex.split(command)
    while SETTING.match(found[0]):
        found.pop(0)
    return found


def program(command: str) -> str:
    return words(command)[0]


# those that differ in their folder of results alone are one
RUNNABLE = {
    re.sub(r"outputs/\S+", "outputs/", command): command
    for command in COMMANDS
    if not PLACEHOLDERS.search(command)
    and command not in DEMO
    and program(command) not in ("make", "pip")
}.values()
OF_LM_EVAL = [command for command in COMMANDS if "lm_eval" in words(command)]
OF_THE_USER = [
    command for command in COMMANDS if PLACEHOLDERS.search(command) and program(command) == "python"
]


# -- what is written


def test_readme_is_read_in_two_minutes():
    assert len(PAGES["README.md"].splitlines()) <= 130


def test_readme_shows_commands_of_every_kind():
    assert {"pip", "lm_eval", "opencompass", "python"} <= set(map(program, commands("README.md")))


def test_the_demo_runs_what_readme_says_it_runs():
    assert "opencompass configs/eval_llada.py" in MAKEFILE
    assert "lm_eval --model llada --tasks sudoku4 --include_path configs/lmeval" in MAKEFILE
    assert {"test", "test-slow", "demo", "docs"} <= set(
        re.search(r"for target in (.*);", CI)[1].split()
    )


@pytest.mark.parametrize("page", PAGES)
def test_every_module_that_a_page_calls_exists(page):
    for module in set(re.findall(r"python -m ([\w.]+\w)", PAGES[page])):
        assert importlib.util.find_spec(module), module


@pytest.mark.parametrize("page", PAGES)
def test_every_make_target_that_a_page_names_exists(page):
    targets = set(re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)[1].split())
    assert set(re.findall(r"`make ([\w-]+)", PAGES[page])) <= targets
    assert {
        words(command)[1] for command in commands(page) if program(command) == "make"
    } <= targets


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_a_page_names_exists(page):
    # a name of the hub may end in a number of its version
    quoted = re.findall(r"`((?:[\w.-]+/)+[\w.-]+\.[a-z]\w*)`", PAGES[page])
    configs = re.findall(r"\bconfigs/[\w/.-]+\.(?:py|yaml|json)", PAGES[page])
    for path in quoted + configs:
        if re.search(r"NAME|FAMILY", path):  # of what a recipe adds
            continue
        assert any((ROOT / base / path).exists() for base in ("", "llada_plugins")), path


@pytest.mark.parametrize("page", PAGES)
def test_every_extra_that_a_page_installs_exists(page):
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    for extras in re.findall(r"(?:llada-plugins|\.)\[([\w,]+)\]", PAGES[page]):
        assert set(extras.split(",")) <= set(settings["options.extras_require"]), extras


@pytest.mark.parametrize("page", PAGES)
def test_python_of_a_page_compiles(page):
    for text in blocks(page, "python"):
        compile(text, page, "exec")


# -- what needs the user's checkpoint or data


@pytest.mark.parametrize("command", OF_LM_EVAL)
def test_options_in_an_lm_eval_command_are_known(command):
    flags = dict(zip(words(command), words(command)[1:], strict=False))
    method = flags["--model"]
    given = dict(
        pair.split("=", 1)
        for flag in ("--model_args", "--gen_kwargs")
        for pair in flags.get(flag, "").split(",")
        if pair
    )
    reject_unknown(given, names(*option_classes(method)))
    build(SamplerConfig, coerce(SamplerConfig, given), SamplerConfig(gen_length=16))
    build(METHODS[method].options, coerce(METHODS[method].options, given))


@pytest.mark.slow
@pytest.mark.parametrize("command", OF_THE_USER)
def test_flags_in_commands_that_need_the_users_files_exist(command, capsys):
    line = words(command)
    if line[1] != "-m" or line[2] == "llada_plugins.configs":
        return
    module, method = line[2], [line[n + 1] for n, word in enumerate(line) if word == "--model"]
    chosen = ["--model", *method] if method and method[0] in METHODS else []
    assert in_process(module, *chosen, "--help") in (None, 0)
    told = capsys.readouterr().out
    assert all(word in told for word in line if word.startswith("--"))


# -- what runs


def test_the_python_example_of_readme_runs(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    exec("\n".join(blocks("README.md", "python")), {"__name__": "__main__"})
    assert len(capsys.readouterr().out.splitlines()) == 2


@pytest.mark.slow
@pytest.mark.parametrize("command", RUNNABLE)
def test_a_command_runs(command, tmp_path, monkeypatch):
    line = [
        str(tmp_path / "out") if word.startswith("outputs/") else word for word in words(command)
    ]
    line = [each for word in line for each in (sorted(glob.glob(word, root_dir=ROOT)) or [word])]
    line = [f"{word}/2" if RANGE.search(word) else word for word in line]
    kinds = re.findall(r"lm_eval|frontier|training(?=\.\w*(?:sft|train))", command)
    line += SHORTER[kinds[0]] if kinds else []
    monkeypatch.chdir(ROOT)
    if line[0] == "torchrun":
        done = python(
            "-m", "torch.distributed.run", *line[1:], cwd=ROOT, HF_HOME=str(tmp_path / "hf")
        )
        assert done.returncode == 0, done.stderr[-3000:]
    elif line[0] == "lm_eval":
        assert in_process(*line) in (None, 0)
    else:
        assert line[:2] == ["python", "-m"]
        assert in_process(*line[2:]) in (None, 0)
