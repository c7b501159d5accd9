"""The public API, and what importing it costs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import llada_plugins

PUBLIC = [
    "load_model",
    "SpecialTokens",
    "SamplerConfig",
    "Sample",
    "Step",
    "Trace",
    "generate",
    "infill",
    "Infilled",
    "log_likelihood",
    "LogLikelihood",
    "Canvas",
    "Denoiser",
    "Prediction",
    "guided",
    "routed",
    "Engine",
    "EngineConfig",
]


def test_the_public_names_are_these():
    assert llada_plugins.__all__ == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_can_be_imported_and_says_what_it_is(name):
    value = getattr(llada_plugins, name)
    assert value.__doc__
    assert value.__name__ == name
    assert value.__module__.startswith("llada_plugins.")


def test_another_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'llada_plugins' has no attribute 'Sampler'"):
        _ = llada_plugins.Sampler


@pytest.mark.parametrize(
    "statement, absent",
    [
        ("import llada_plugins", ("torch", "transformers", "lm_eval", "opencompass")),
        (
            "from llada_plugins import *; SamplerConfig()",
            ("transformers", "lm_eval", "opencompass"),
        ),
    ],
    ids=["import", "every name"],
)
def test_importing_pulls_in_no_more_than_it_needs(statement, absent):
    code = f"import sys; {statement}; print([name for name in {absent!r} if name in sys.modules])"
    root = Path(llada_plugins.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=root, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
