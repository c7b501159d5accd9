"""Both harnesses give one process' answers, whatever batches, order, processes, parts or kills:
cells of the table of invariance.py under the stock commands and the stock tasks.
"""

from __future__ import annotations

import importlib
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from llada_plugins.engine.request import Request
from tests.commands import OWN_TASKS, OWN_TASKS_TWICE, ROOT, python
from tests.invariance import KINDS, PROMPTS, STOPS, WITH_METHODS, Cell, Engines

pytestmark = [pytest.mark.slow, pytest.mark.floats]

# a method for each kind of network: every kind and every method is in one
PAIRS = [
    ("dream", "llada_ala"),
    ("llada2_stacked", "llada_ups"),
    ("a2d_llama/full", "llada_prm/backmask"),
    ("fast_dllm_v2", "llada"),
]
NUM_CELLS = 5  # of each pair, rules and caches as they are drawn
every_pair = pytest.mark.parametrize("network, method", PAIRS)


@pytest.fixture(scope="module")
def engines(tmp_path_factory) -> Engines:
    return Engines(tmp_path_factory.mktemp("invariance"), device="cpu", dtype="float32")


def some_cells(engines: Engines, network: str, method: str) -> list[Cell]:
    """Cells of the network, as many with the method as they become by taking it."""
    cells, _ = engines.cells(network)
    taken = [cell._replace(method=method) for cell in cells[:: len(cells) // (2 * NUM_CELLS)]]
    return [cell for cell in taken if engines.refusal(cell) is None][:NUM_CELLS]


def alone(engines: Engines, cell: Cell, prompts: tuple[str, ...], until: tuple[str, ...]):
    """The answers of one engine, one by one."""
    engine = engines.engine(cell.network, cell.method)
    sampler = engine.sampler_for(cell.options)
    found = dict(engine.generate([Request(prompt, sampler, until) for prompt in prompts], 1))
    return [found[number].text for number in range(len(prompts))]


def test_the_pairs_have_every_kind_of_network_and_every_method() -> None:
    assert {network for network, _ in PAIRS} == set(KINDS)
    methods = {WITH_METHODS[method]["method_name"] for _, method in PAIRS}
    assert methods == {each["method_name"] for each in WITH_METHODS.values()}


# ---- lm-eval

# of a command that gets SIGKILL from itself once it has so many answers
KILLED = """
import os, runpy, signal, sys
from llada_plugins.engine.engine import Engine
decode = Engine.generate
def generate(engine, *arguments):
    for number, found in enumerate(decode(engine, *arguments)):
        yield found
        if number == 12:
            os.kill(os.getpid(), signal.SIGKILL)
Engine.generate = generate
runpy.run_path(sys.argv.pop(1), run_name="__main__")
"""


def write_tasks(folder: Path, cells: list[Cell]) -> list[str]:
    """A task a cell, whose generation_kwargs are the cell's options; their names."""
    data = folder / "prompts.jsonl"
    data.write_text("".join(json.dumps({"prompt": each}) + "\n" for each in PROMPTS))
    for number, cell in enumerate(cells):
        task = {
            "task": f"cell{number}",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(data)}},
            "output_type": "generate_until",
            "test_split": "test",
            "doc_to_text": "{{prompt}}",
            "doc_to_target": "none",
            "generation_kwargs": {"until": list(STOPS), **cell.options},
            "metric_list": [{"metric": "exact_match"}],
        }
        (folder / f"cell{number}.yaml").write_text(yaml.safe_dump(task))
    return [f"cell{number}" for number in range(len(cells))]


def lm_eval(
    folder: Path,
    engines: Engines,
    cells: list[Cell],
    *more: str,
    launcher: tuple[str, ...] = OWN_TASKS,
    status: int = 0,
) -> dict[str, list[str]]:
    """lm-eval's command on all cells of a network and a method; its answers by task."""
    tasks = write_tasks(folder, cells)
    name, options = engines.arguments(cells[0].network, cells[0].method)
    arguments = ",".join(
        f"{key}={value}" for key, value in options.items() if key not in ("device", "dtype")
    )
    words = ["--model", name, "--model_args", f"{arguments},dtype=float32,manifest=off"]
    words += ["--tasks", ",".join(tasks), "--include_path", str(folder), "--device", "cpu"]
    words += ["--output_path", str(folder / "out"), "--log_samples", *more]
    done = python(*launcher, *words, cwd=folder, PYTHONPATH=str(ROOT))
    assert done.returncode == status, done.stderr[-3000:]
    found = {}
    for task in tasks if status == 0 else []:
        path = max((folder / "out").rglob(f"samples_{task}_*.jsonl"))
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        rows.sort(key=lambda row: row["doc_id"])
        found[task] = [row["resps"][0][0] for row in rows]
    return found


@every_pair
def test_lm_eval_with_two_processes_and_killed_and_resumed(engines, tmp_path, network, method):
    pytest.importorskip("lm_eval")
    cells = some_cells(engines, network, method)
    assert len(cells) == NUM_CELLS
    expected = {
        f"cell{number}": alone(engines, cell, PROMPTS, STOPS) for number, cell in enumerate(cells)
    }
    two, killed = tmp_path / "two", tmp_path / "killed"
    two.mkdir(), killed.mkdir()
    assert lm_eval(two, engines, cells, "--batch_size", "3", launcher=OWN_TASKS_TWICE) == expected
    cached = ("--batch_size", "8", "--use_cache", str(killed / "cache"))
    dies = ("-c", KILLED, *OWN_TASKS)
    lm_eval(killed, engines, cells, *cached, launcher=dies, status=-signal.SIGKILL)
    assert lm_eval(killed, engines, cells, *cached) == expected


# ---- OpenCompass


def model_class(method: str) -> Callable[..., Any]:
    """Its class for OpenCompass."""
    module = importlib.import_module("llada_plugins.opencompass_models")
    return next(
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, module.LLaDA)
        and value.method == WITH_METHODS[method]["method_name"]
    )


@every_pair
def test_opencompass_in_parts_of_any_batches_and_killed_and_resumed(
    engines, tmp_path, monkeypatch, network, method
):
    pytest.importorskip("opencompass")
    from opencompass.partitioners import NumWorkerPartitioner, SizePartitioner

    from tests.test_opencompass_journal import Killed, killed_after
    from tests.test_opencompass_repeats import QUESTIONS, entry, run

    monkeypatch.chdir(tmp_path)  # stock code leaves folders there
    parts = dict(
        workers=dict(partitioner=NumWorkerPartitioner, num_worker=2, min_task_size=1, batch_size=3),
        sizes=dict(partitioner=SizePartitioner, max_task_size=20, gen_task_coef=10, batch_size=8),
    )
    _, options = engines.arguments(network, method)
    for number, cell in enumerate(some_cells(engines, network, method)):
        given = {**options, **cell.options}
        model = model_class(method)(given.pop("pretrained"), **given)
        expected = alone(engines, cell, QUESTIONS, ())
        for name, how in parts.items():
            assert run(model, tmp_path / f"{name}{number}", entry(), **how) == expected, cell
        folder = tmp_path / f"killed{number}"
        with monkeypatch.context() as patch, pytest.raises(Killed):
            killed_after(model, 2, patch)
            run(model, folder, entry(), batch_size=8)
        assert run(model, folder, entry(), batch_size=3) == expected, cell
