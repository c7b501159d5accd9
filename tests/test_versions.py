"""Answers of another version of the code are never taken for this one's."""

from __future__ import annotations

from pathlib import Path

import pytest

from llada_plugins._lm_eval_hook import DISTRIBUTION
from llada_plugins.engine.engine import Engine
from llada_plugins.files import installation
from llada_plugins.files.installation import PACKAGE, made_by

# rooms that decide no answer: what they read and show is settled by others
WITHOUT = {"files", "huggingface", "options", "playground", "provenance", "reports", "settings"}


@pytest.fixture
def code(tmp_path, monkeypatch) -> Path:
    """A package of few files."""
    for name in ("sampling/rules.py", "reports/page.py", "lmeval_models.py", "check.py"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("a = 1\n")
    monkeypatch.setattr(installation, "PACKAGE", tmp_path)
    return tmp_path


def own_version() -> str | None:
    """Read anew."""
    return made_by.__wrapped__()[DISTRIBUTION]


@pytest.mark.parametrize(
    ("name", "decides"),
    [
        ("sampling/rules.py", True),
        ("lmeval_models.py", True),
        ("reports/page.py", False),
        ("check.py", False),
    ],
)
def test_a_version_is_told_by_the_code_that_decides_answers(code, name, decides):
    before = own_version()
    (code / name).write_text("a = 2\n")
    assert (own_version() != before) == decides
    (code / name).write_text("a = 1\n")
    assert own_version() == before


def test_code_that_is_renamed_is_another(code):
    before = own_version()
    (code / "sampling/rules.py").rename(code / "sampling/other.py")
    assert own_version() != before


def test_every_room_decides_answers_or_is_known_not_to():
    rooms = {path.parent.name for path in PACKAGE.glob("*/*.py")}
    decide = {names.partition("/")[0] for names in installation.ANSWERING if "/" in names}
    assert decide | WITHOUT == rooms and not decide & WITHOUT


def beside_torch(version: str, patch: pytest.MonkeyPatch) -> None:
    """What is made from now on is made beside that version."""
    other = {**made_by(), "torch": version}
    patch.setattr("llada_plugins.engine.identity.made_by", lambda: other)


def test_a_fingerprint_names_the_code(tiny_checkpoint, monkeypatch):
    now = Engine(pretrained=str(tiny_checkpoint)).fingerprint()
    beside_torch("2.12.0", monkeypatch)
    assert Engine(pretrained=str(tiny_checkpoint)).fingerprint() != now


def test_a_response_cache_of_another_version_is_refused_in_one_line(
    tiny_checkpoint, tmp_path, monkeypatch
):
    pytest.importorskip("lm_eval")
    from lm_eval.api.model import CachingLM

    from llada_plugins.lmeval_models import LLaDA

    path = str(tmp_path / "cache.db")
    with monkeypatch.context() as patch:
        beside_torch("2.12.0", patch)
        CachingLM(LLaDA(str(tiny_checkpoint), device="cpu"), path).dbdict.close()
    with pytest.raises(ValueError, match="made_by.torch was '2.12.0', is .*: give another") as told:
        CachingLM(LLaDA(str(tiny_checkpoint), device="cpu"), path)
    assert "\n" not in str(told.value)
