"""configs/lmeval_published: each run has its header, tasks of lm-eval, and options that its
checkpoint's family takes.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("lm_eval")

from lm_eval.config.evaluate_config import EvaluatorConfig
from lm_eval.tasks import TaskManager

from llada_plugins.engine.asked import Asked
from llada_plugins.engine.engine import Engine
from llada_plugins.harness.lmeval_requests import read_request
from llada_plugins.models.folder import read_config
from llada_plugins.sampling.for_model import fitted
from llada_plugins.settings.table import find
from tests.family_checkpoints import GOLDEN
from tests.test_published import dream  # noqa: F401  # a fixture

RUNS = sorted((Path(__file__).parents[1] / "configs" / "lmeval_published").glob("*.yaml"))
every_run = pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
DREAMS = ("Dream-org/", "apple/DiffuCoder")
HEADER = ("Reproduces", "Preset", "Command", "Cost", "Published", "Ours")


def named_in(path: Path) -> str:
    """The first preset in a file's header."""
    return re.search(r"^# Preset: +([^,\s]+)", path.read_text(encoding="utf-8"), re.MULTILINE)[1]


@pytest.fixture(scope="module")
def known_tasks() -> set[str]:
    return set(TaskManager().all_tasks)


def test_there_are_runs_of_every_family_with_published_settings():
    begins = {path.stem.partition("_")[0] for path in RUNS}
    assert {"dream", "diffucoder", "llada", "illada", "llada2", "sdar", "fast"} <= begins


@every_run
def test_a_run_says_what_it_reproduces_and_how_it_is_started(path):
    said = dict(re.findall(r"^# (\w+): +(.+)$", path.read_text(encoding="utf-8"), re.MULTILINE))
    assert not [name for name in HEADER if name not in said]
    assert said["Command"] == f"lm_eval run --config configs/lmeval_published/{path.name}"


@pytest.mark.slow  # lm-eval reads all of its tasks
@every_run
def test_a_run_names_fields_and_tasks_that_lm_eval_knows(path, known_tasks):
    raw: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert not raw.keys() - set(EvaluatorConfig.__dataclass_fields__)
    assert not set(raw["tasks"]) - known_tasks
    assert raw["output_path"] == f"outputs/{path.stem}"


FAMILY = {"sdar": "sdar", "llada2": "llada2", "fast": "fast_dllm_v2"}  # by a file's first word
BLOCK_CAUSAL = [path for path in RUNS if path.stem.partition("_")[0] in FAMILY]
FULL = [path for path in RUNS if path not in BLOCK_CAUSAL]


@pytest.mark.parametrize("path", BLOCK_CAUSAL, ids=lambda path: path.stem)
def test_a_run_of_a_block_causal_family_is_its_sampler(path):
    family = FAMILY[path.stem.partition("_")[0]]
    config = read_config(GOLDEN / "families" / family / "checkpoint")
    asked = Asked("llada", yaml.safe_load(path.read_text(encoding="utf-8"))["model_args"])
    options = asked.sampler(family)
    sampler = fitted(asked.built(options), config)
    assert sampler.causal and sampler.blocks_from == "row"
    assert {name: getattr(sampler, name) for name in options} == options


@pytest.mark.parametrize("path", FULL, ids=lambda path: path.stem)
def test_a_run_is_a_sampler_or_an_estimator_of_its_family(
    path,
    dream,
    tiny_checkpoint,
):
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    options = dict(raw["model_args"])
    preset = find(options["preset"]) if "preset" in options else None
    is_dream = (preset or find(named_in(path))).pretrained.startswith(DREAMS)
    options["pretrained"] = str(dream if is_dream else tiny_checkpoint)
    engine = Engine(**options)
    options |= preset.options if preset else {}
    asked = {"until": ["\n"], "do_sample": False, **raw.get("gen_kwargs", {})}
    request = read_request(engine, "a", asked)
    if "estimator" in options:
        assert engine.config.budget().limit == options["mc_num"]
        return
    sampler = request.sampler
    # what the task asks for by itself must not switch the published temperature off
    assert sampler.temperature == options.get("temperature", asked.get("temperature", 0.0))
    if is_dream:
        assert (sampler.fixed_schedule, sampler.confidence_of, sampler.source) == (
            "dream",
            "filtered",
            "entropy",
        )
        assert sampler.gen_length == sampler.steps == options["gen_length"]
        assert sampler.top_p == options["top_p"]
    if "until" in raw.get("gen_kwargs", {}):
        assert request.until == ()
