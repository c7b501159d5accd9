"""What users type, name in a config or import stays where it is, whatever moves inside."""

from __future__ import annotations

import importlib
from importlib.metadata import distribution

import pytest

from tests.commands import in_process

COMMANDS = {
    "llada_plugins.analyze": "--compare",
    "llada_plugins.app": "--port",
    "llada_plugins.chat": "--prompt",
    "llada_plugins.check": "differs beyond",
    "llada_plugins.compare": "result folder or file",
    "llada_plugins.configs": "copy all to DEST",
    "llada_plugins.doctor": "installation whole",
    "llada_plugins.effective_rank": "--num_masks",
    "llada_plugins.evaluate": "--data",
    "llada_plugins.families": "special tokens",
    "llada_plugins.frontier": "--sweep",
    "llada_plugins.infilling": "<|infill:8|>",
    "llada_plugins.presets": "--task",
    "llada_plugins.rerun": "--anyway",
    "llada_plugins.ups_report": "--noise_draws",
    "training.average": "--share",
    "training.convert": "--format",
    "training.create_configs": "--output",
    "training.distill": "--learning_rate",
    "training.merge": "--peft",
    "training.pretrain": "--learning_rate",
    "training.prm_sft": "--learning_rate",
    "training.remask_sft": "--learning_rate",
    "training.router_sft": "--learning_rate",
    "training.sft": "--learning_rate",
    "training.step_data": "--split",
}
REEXPORTS = {
    "llada_plugins.engine": ("Completion", "Engine", "EngineConfig", "Request"),
    "llada_plugins.likelihood": ("LogLikelihood", "log_likelihood"),
    "llada_plugins.hf": ("CheckpointConfig", "CheckpointModel", "Generated", "register"),
    "llada_plugins._lm_eval_hook": ("find", "register"),  # .pth files of old installations name it
    "llada_plugins.tasks.nim": ("is_winning", "problems"),
    "llada_plugins.tasks.sudoku": ("is_valid", "problems"),
    "llada_plugins.tasks.mathematics": ("grade", "read"),
    "llada_plugins.tasks.local_files": ("find",),
    "training.data": ("Example", "Vocabulary", "collate_answers", "read_hub", "read_jsonl"),
}
IN_LM_EVAL = {"llada_plugins.lmeval_models": ("LLaDA", "LLaDAUPS", "LLaDAALA", "LLaDAPRM")}
IN_OPENCOMPASS = {
    "llada_plugins.opencompass_models": (
        "LLaDA",
        "LLaDAUPS",
        "LLaDAALA",
        "LLaDAPRM",
        "unwrap_prediction",
    ),
    "llada_plugins.opencompass_inferencers": ("PPLInferencer", "LLInferencer"),
    "llada_plugins.tasks.opencompass": (
        "Sudoku4Dataset",
        "Sudoku4Evaluator",
        "NimDataset",
        "NimEvaluator",
    ),
}


def places(table: dict[str, tuple[str, ...]]) -> list[tuple[str, str]]:
    return [(module, name) for module, names in table.items() for name in names]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_runs_under_its_name(command, capsys):
    assert in_process(command, "--help") in (None, 0)
    told = " ".join(capsys.readouterr().out.split())
    assert COMMANDS[command] in told


def test_the_page_of_options_is_printed_by_a_command(capsys):
    assert in_process("llada_plugins.reference") in (None, 0)
    assert capsys.readouterr().out.startswith("# Options\n")


def test_lm_eval_with_our_models_is_a_command(capsys):
    pytest.importorskip("lm_eval")
    assert in_process("llada_plugins.cli", "--help") in (None, 0)
    assert "usage" in capsys.readouterr().out.lower()


@pytest.mark.parametrize("module, name", places(REEXPORTS))
def test_every_public_place_has_its_names(module, name):
    assert getattr(importlib.import_module(module), name).__doc__


@pytest.mark.parametrize("module, name", places(IN_LM_EVAL))
def test_the_classes_that_lm_eval_loads_are_defined_where_entry_points_say(module, name):
    pytest.importorskip("lm_eval")
    assert getattr(importlib.import_module(module), name).__module__ == module


@pytest.mark.parametrize("module, name", places(IN_OPENCOMPASS))
def test_the_classes_that_opencompass_configs_name_are_defined_there(module, name):
    pytest.importorskip("opencompass")
    assert getattr(importlib.import_module(module), name).__module__ == module


def test_every_entry_point_leads_to_something():
    pytest.importorskip("lm_eval")
    points = distribution("llada-plugins").entry_points
    ours = [point for point in points if point.value.startswith("llada_plugins.")]
    assert {point.name for point in ours} == {
        "llada",
        "llada_ups",
        "llada_ala",
        "llada_prm",
        "llada-eval",
    }
    for point in ours:
        assert callable(point.load())
