"""What runs on a rented GPU, run on this machine: the functions that Modal would call, without
Modal's service. Nothing is deployed, and no network is asked.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

modal = pytest.importorskip("modal", reason="modal is not installed: pip install modal")
FILE = Path(__file__).parents[1] / "deploy" / "modal_app.py"


@pytest.fixture(scope="module")
def cloud() -> ModuleType:
    spec = importlib.util.spec_from_file_location("modal_app", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_app_has_its_functions_and_says_that_it_was_not_deployed(cloud) -> None:
    assert isinstance(cloud.evaluate, modal.Function)
    assert isinstance(cloud.playground, modal.Function)
    assert cloud.GPU == "A100-80GB"
    assert "It was not\ndeployed, and its image was not built." in cloud.__doc__


def test_the_playgrounds_options_are_an_engines(cloud) -> None:
    from llada_plugins.engine.asked import Asked

    assert Asked("llada", cloud.CHECKPOINT).config.pretrained == "GSAI-ML/LLaDA-8B-Instruct"


def test_without_a_password_nothing_is_served(cloud, monkeypatch) -> None:
    monkeypatch.delenv(cloud.PASSWORD, raising=False)
    with pytest.raises(ValueError, match="the playground has no password: modal secret create"):
        cloud.protected({})


@pytest.mark.slow  # imports Gradio
def test_the_playground_asks_for_the_password_and_sends_its_policy(cloud, monkeypatch) -> None:
    pytest.importorskip("gradio")
    from starlette.testclient import TestClient

    monkeypatch.setenv(cloud.PASSWORD, "a word")
    with cloud.kept:
        client = TestClient(cloud.protected({"gen_length": 16, "device": "cpu"}))
        assert client.get("/config").status_code == 401
        page = client.get("/")
        assert "default-src 'self'" in page.headers["content-security-policy"]
        wrong = client.post("/login", data={"username": cloud.NAME, "password": "another"})
        assert wrong.status_code == 400
        client.post("/login", data={"username": cloud.NAME, "password": "a word"})
        assert len(client.get("/config").json()["components"]) > 100


@pytest.mark.slow  # runs lm_eval
def test_evaluate_runs_lm_eval_and_returns_its_scores(cloud, tmp_path) -> None:
    pytest.importorskip("lm_eval")
    asked = dict(batch_size="2", limit=2, results=str(tmp_path))
    scores = cloud.evaluate.local("sudoku4", "gen_length=16,steps=8", **asked)
    assert 0 <= scores["sudoku4"]["acc,none"] <= 1
    assert list(tmp_path.rglob("samples_sudoku4_*.jsonl"))


@pytest.mark.slow
def test_what_lm_eval_refuses_is_an_error(cloud, tmp_path) -> None:
    pytest.importorskip("lm_eval")
    with pytest.raises(RuntimeError, match="lm_eval ended with status 1"):
        cloud.evaluate.local("sudoku4", "stepz=8", results=str(tmp_path))
