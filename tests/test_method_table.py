"""The METHODS table: every row can be asked for in either harness, and nothing else can."""

from __future__ import annotations

import configparser
import importlib
from pathlib import Path

import pytest

from llada_plugins.methods.table import METHODS

ROOT = Path(__file__).parents[1]


def entry_points() -> dict[str, str]:
    """lm-eval's --model names in setup.cfg, each with its "module:Class"."""
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    lines = settings["options.entry_points"]["lm_eval.models"].strip().splitlines()
    return dict((part.strip() for part in line.split("=")) for line in lines)


def test_the_model_names_of_lm_eval_are_the_methods():
    assert list(entry_points()) == list(METHODS)


@pytest.mark.parametrize("method", METHODS)
def test_a_model_name_of_lm_eval_is_a_class_of_its_method(method):
    pytest.importorskip("lm_eval")
    module, _, name = entry_points()[method].partition(":")
    assert getattr(importlib.import_module(module), name).method == method


def test_every_method_has_a_class_for_opencompass():
    pytest.importorskip("opencompass")
    from llada_plugins import opencompass_models

    classes = [
        value
        for value in vars(opencompass_models).values()
        if isinstance(value, type) and issubclass(value, opencompass_models.LLaDA)
    ]
    assert sorted(each.method for each in classes) == sorted(METHODS)
