"""The notebook: it holds no output, its cells run on the tiny models, and the settings for
LLaDA-8B that it offers name options that exist.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llada_plugins.engine.asked import option_classes
from llada_plugins.engine.flags import read_flags
from llada_plugins.engine.question_files import EvaluateConfig
from llada_plugins.options.fields import build, coerce, names, reject_unknown
from llada_plugins.sampling.config import SamplerConfig

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "llada_plugins.ipynb"
RUN = """
import sys
import nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], 4)
where = {"metadata": {"path": sys.argv[2]}}
NotebookClient(notebook, timeout=240, kernel_name="python3", resources=where).execute()
nbformat.write(notebook, sys.argv[2] + "/executed.ipynb")
"""


def code_cells(path: Path) -> list[dict[str, Any]]:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def test_no_output_is_stored() -> None:
    cells = code_cells(NOTEBOOK)
    assert cells
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)


def setups() -> dict[str, Any]:
    """What the first code cell defines."""
    defined: dict[str, Any] = {}
    exec(source(code_cells(NOTEBOOK)[0]), defined)
    return defined


def test_one_line_chooses_between_settings_that_have_the_same_parts() -> None:
    defined = setups()
    assert source(code_cells(NOTEBOOK)[0]).splitlines()[-1] == "SETUP = TINY"
    assert defined["TINY"].keys() == defined["LLADA_8B"].keys()


@pytest.mark.parametrize("name", ["TINY", "LLADA_8B"])
@pytest.mark.parametrize("method, part", [("llada_prm", "judge"), ("llada_ups", "head")])
def test_the_settings_are_options_of_the_methods(name: str, method: str, part: str) -> None:
    setup = setups()[name]
    options = {**setup["model"], **setup[part], **setup["sampler"]}
    reject_unknown(options, names(*option_classes(method)))
    for of in option_classes(method):
        build(of, options)
    assert build(SamplerConfig, coerce(SamplerConfig, setup["sampler"])).gen_length


@pytest.mark.parametrize("name", ["TINY", "LLADA_8B"])
def test_the_settings_are_flags_of_the_evaluation(name: str) -> None:
    setup = setups()[name]
    flags = [part for flag, value in setup["csv_options"].items() for part in (f"--{flag}", value)]
    files = ["--data", "questions.csv", "--output", "metrics.csv"]
    config, options = read_flags(EvaluateConfig, [*files, *flags], usage="", description="")
    assert config.data == "questions.csv"
    assert options["gen_length"] == setup["csv_options"]["gen_length"]


@pytest.mark.slow
def test_every_cell_runs_on_the_tiny_models_and_shows_what_it_says(tmp_path: Path) -> None:
    pytest.importorskip("nbclient")
    pytest.importorskip("math_verify")
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(NOTEBOOK), str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    shown = [
        "".join("".join(output.get("text", "")) for output in cell["outputs"])
        for cell in code_cells(tmp_path / "executed.ipynb")
    ]
    frames = [line.split()[1] for line in shown[1].splitlines() if "░" in line]
    masks = [frame.count("░") for frame in frames]
    assert any(later > earlier for earlier, later in zip(masks, masks[1:])), (
        "nothing was taken back"
    )
    assert "8 questions" in shown[2]
    assert (tmp_path / "outputs" / "notebook" / "head" / "ups.safetensors").is_file()
    assert "times a token was masked again" in shown[-1]
