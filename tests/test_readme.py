"""README's commands: each is run here on the shipped model, or is known to be run by
`make demo` or to need a real checkpoint.
"""

from __future__ import annotations

import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    re.sub(r"\s+#.*", "", line).strip()
    for language, block in BLOCKS
    if not language
    for line in block.replace("\\\n", " ").splitlines()
    if line.strip()
]
# .ci/run runs them as they stand
DEMO = ("make demo", "make test", "opencompass configs/eval_llada.py")
# need a checkpoint or data that are the user's
PLACEHOLDERS = re.compile(r"GSAI-ML/|\bDIR\b|FILE\.jsonl")
RUNNABLE = [
    command for command in COMMANDS if not PLACEHOLDERS.search(command) and command not in DEMO
]
SHORTER = {"lm_eval": ["--limit", "2"], "training": ["--max_steps", "2", "--overwrite"], "make": []}


def test_readme_shows_commands_of_every_kind() -> None:
    programs = {shlex.split(command)[0] for command in COMMANDS}
    assert {"make", "lm_eval", "opencompass", "python"} <= programs


def test_the_demo_runs_what_readme_says_it_runs() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert (
        "opencompass configs/eval_llada.py" in makefile
        and "lm_eval --model llada --tasks sudoku4 --include_path configs/lmeval" in makefile
    )
    assert re.search(
        r"for target in .*\btest\b.*\bdemo\b.*; do",
        (ROOT / ".ci" / "run").read_text(encoding="utf-8"),
    )


def test_the_python_example_runs() -> None:
    example = "\n".join(block for language, block in BLOCKS if language == "python")
    done = subprocess.run(
        [sys.executable, "-c", example], capture_output=True, text=True, timeout=300, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", [command for command in RUNNABLE if not command.startswith("make")]
)
def test_a_command_of_readme_runs(command: str, tmp_path: Path) -> None:
    words = shlex.split(command)
    kind = (
        "lm_eval"
        if words[0] == "lm_eval"
        else "training"
        if "training." in command and "convert" not in command
        else "make"
    )
    program = [sys.executable, "-m", "lm_eval"] if words[0] == "lm_eval" else [sys.executable]
    words = [str(tmp_path / "out") if word.startswith("outputs/") else word for word in words[1:]]
    done = subprocess.run(
        [*program, *words, *SHORTER[kind]],
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize(
    "command",
    [command for command in COMMANDS if PLACEHOLDERS.search(command) and "training." in command],
)
def test_flags_in_commands_that_need_the_users_files_exist(command: str, capsys) -> None:
    words = shlex.split(command)
    module = words[words.index("-m") + 1]
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(module).main(["--help"])
    assert not ended.value.code
    said = capsys.readouterr().out
    assert all(word in said for word in words if word.startswith("--"))
