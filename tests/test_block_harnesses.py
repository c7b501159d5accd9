"""Block-causal checkpoints where users run them: harness runs that go on after a kill, the chat."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llada_plugins import chat
from llada_plugins.engine.engine import Engine
from llada_plugins.engine.request import Request
from llada_plugins.engine.terminal import Screen
from tests.family_checkpoints import with_tokenizer
from tests.test_chat import Terminal, displayed

pytestmark = pytest.mark.floats

# a family and its published sampler; rows end at different steps and are refilled
RUNS: dict[str, dict[str, Any]] = {
    "sdar": dict(threshold=0.1, block_steps=4),
    "llada2": dict(block_length=8, threshold=0.1, edit_threshold=0.05),
    "fast_dllm_v2": dict(block_length=8, sub_block_length=4, threshold=0.1),
}
SLOW = {"llada2", "fast_dllm_v2"}
PROMPTS = ["ab", "a longer prompt", "c", "ab", "of some length"]
LENGTH = 10
TEMPLATE = (
    "{% for each in messages %}<{{ each.role }}>{{ each.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


class Killed(BaseException):
    """Ends a process as a signal does."""


@pytest.fixture(
    scope="module",
    params=[pytest.param(each, marks=[pytest.mark.slow] if each in SLOW else []) for each in RUNS],
)
def given(request, tmp_path_factory) -> dict[str, Any]:
    """What an engine of the family's checkpoint is made of."""
    folder = with_tokenizer(request.param, tmp_path_factory.mktemp(request.param) / "checkpoint")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    said = json.dumps({**settings, "chat_template": TEMPLATE})
    (folder / "tokenizer_config.json").write_text(said)
    return dict(
        pretrained=str(folder),
        device="cpu",
        temperature=1.0,
        early_stop=False,
        **RUNS[request.param],
    )


def killed_after(
    number: int, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[str, Any]]:
    """Let what uses the engine end after so many answers; gives what it is asked to decode."""
    asked: list[tuple[str, Any]] = []
    generate = engine.generate

    def until_killed(requests: list[Request], *rest: Any) -> Iterator[Any]:
        asked.extend((each.prompt, each.stream) for each in requests)
        for done, found in enumerate(generate(requests, *rest)):
            if done == number:
                raise Killed
            yield found

    monkeypatch.setattr(engine, "generate", until_killed)
    return asked


def goes_on(make: Callable[[], tuple[Engine, Callable[[Path], list[str]]]], folder: Path) -> None:
    """A run of all PROMPTS that is killed after two answers and started again.

    make: an engine anew, and the run, which keeps what it has in a folder. It ends with the
    answers of one that was not killed, and decodes again only what was not finished.
    """
    _, whole = make()
    expected = whole(folder / "whole")
    assert len(set(expected)) == len(expected)  # the repeated prompt has two answers
    engine, run = make()
    with pytest.MonkeyPatch.context() as patch:
        first = killed_after(2, engine, patch)
        with pytest.raises(Killed):
            run(folder / "killed")
    engine, run = make()
    with pytest.MonkeyPatch.context() as patch:
        second = killed_after(len(PROMPTS), engine, patch)
        assert run(folder / "killed") == expected
    assert len(first) == len(PROMPTS) and len(second) == len(PROMPTS) - 2
    assert set(second) < set(first)


def test_a_killed_run_of_lm_eval_goes_on(given, tmp_path):
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import CachingLM

    from llada_plugins.lmeval_models import LLaDA

    def make() -> tuple[Engine, Callable[[Path], list[str]]]:
        model = LLaDA(**given, batch_size=2, gen_length=LENGTH)

        def run(folder: Path) -> list[str]:
            requests = [
                Instance("generate_until", {}, (prompt, {}), number, ("task", number, 1))
                for number, prompt in enumerate(PROMPTS)
            ]
            folder.mkdir(exist_ok=True)
            return CachingLM(model, str(folder / "cache.db")).generate_until(requests)

        return model.engine, run

    goes_on(make, tmp_path)


def test_a_killed_run_of_opencompass_goes_on(given, tmp_path, monkeypatch):
    pytest.importorskip("opencompass")
    from llada_plugins.opencompass_models import LLaDA
    from tests import test_opencompass_repeats as stock

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stock, "QUESTIONS", PROMPTS)
    options = {name: each for name, each in given.items() if name != "pretrained"}

    def make() -> tuple[Engine, Callable[[Path], list[str]]]:
        model = LLaDA(given["pretrained"], **options, gen_length=LENGTH)

        def run(folder: Path) -> list[str]:
            rows = stock.entry(inferencer=dict(max_out_len=LENGTH))
            return stock.run(model, folder, rows, batch_size=len(PROMPTS))

        return model.engine, run

    goes_on(make, tmp_path)


# ---- the chat


def flags(given: dict[str, Any], *more: str) -> list[str]:
    """The command line of the chat."""
    words = [word for name, each in given.items() for word in (f"--{name}", str(each).lower())]
    words[words.index("--pretrained") + 1] = given["pretrained"]
    return [*words, "--gen_length", str(LENGTH), *more]


@pytest.fixture
def engine(given) -> Engine:
    return Engine(**given, gen_length=LENGTH)


def direct(engine: Engine, prompt: str) -> str:
    [(_, completion)] = engine.generate([Request(prompt, engine.sampler)])
    return completion.text


def test_the_chat_answers_as_the_engine_does_turn_after_turn(given, engine, capsys, monkeypatch):
    """The second prompt holds the first answer, which ends inside a block."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\ntwo\n"))
    assert chat.main(flags(given)) == 0
    first = direct(engine, engine.render_chat([{"role": "user", "content": "one"}]))
    turns = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "two"},
    ]
    second = direct(engine, engine.render_chat(turns))
    assert capsys.readouterr().out == f"{first}\n{second}\n"


def test_the_chat_draws_blocks_as_they_are_unmasked(given, engine, monkeypatch):
    """From masks alone, in frames as long as what is on the canvas so far."""
    frames: list[str] = []
    draw = Screen.draw
    monkeypatch.setattr(
        Screen, "draw", lambda self, string: frames.append(string) or draw(self, string)
    )
    monkeypatch.setattr(sys, "stdout", out := Terminal())
    assert chat.main(flags(given, "--chat", "false", "--prompt", "abcde")) == 0
    assert displayed(out.getvalue()) == [*direct(engine, "abcde").split("\n"), ""]
    assert set(frames[0]) == {chat.MASK} and len(frames) > 2
