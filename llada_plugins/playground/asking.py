"""What is asked on the page, and the models that answer it."""

from __future__ import annotations

import functools
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from llada_plugins.engine.engine import Engine
from llada_plugins.engine.marked_text import marked_request, whole_text
from llada_plugins.engine.request import Completion, Request
from llada_plugins.methods.table import METHODS

from .form import Value, given
from .job import Done, Show, State

MOST = 1_000_000  # characters of a prompt; more than any context holds
ENCODED_FILE = re.compile(r"\s*data:(?P<kind>[\w.+-]+/[\w.+-]+)[;,]")
NAMES = ("first", "second")  # of the settings that are compared


class Setting(NamedTuple):
    """How an answer is decoded: a method, and what its controls say."""

    method: str
    entered: Mapping[str, Value]


@dataclass(frozen=True, kw_only=True)
class Question:
    """A prompt as it is, a turn of a conversation, or a text with marked spans."""

    prompt: str
    chat: bool = False
    infill: bool = False  # are the prompt's spans filled in?
    system: str = ""
    earlier: Sequence[Mapping[str, str]] = field(default=())  # turns of the conversation

    def __post_init__(self) -> None:
        check_text(self.prompt)

    @property
    def turns(self) -> list[dict[str, str]]:
        """The conversation with this turn."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, *map(dict, self.earlier), {"role": "user", "content": self.prompt}]


def check_text(prompt: object) -> None:
    """Raise ValueError on what is no text that a model can read."""
    if not isinstance(prompt, str):
        raise ValueError(f"the prompt must be text, got {type(prompt).__name__}: type a question")
    if not prompt.strip():
        raise ValueError("the prompt is empty: type a question")
    if len(prompt) > MOST:
        raise ValueError(
            f"the prompt has {len(prompt):,} characters, and at most {MOST:,} are taken: shorten it"
        )
    if encoded := ENCODED_FILE.match(prompt):
        raise ValueError(
            f"the prompt is a file ({encoded['kind']}), and these models read text: type a question"
        )
    if "\0" in prompt:
        raise ValueError(
            "the prompt holds NUL characters, as pictures and other binary files do, and these "
            "models read text: type a question"
        )


class Models:
    """Engines of all methods on one model; one job at a time decodes with them."""

    def __init__(self, method: str, options: Mapping[str, Any]) -> None:
        self.first = Engine(method, **options)
        self._engines: dict[str, Engine] = {}
        self._making, self._decoding = threading.Lock(), threading.Lock()
        self._see: Callable[[Sequence[int]], None] | None = None
        self._keep(self.first)

    @property
    def chats(self) -> bool:
        """Has the tokenizer a chat template?"""
        return bool(self.first.tokenizer.chat_template)

    def of(self, method: str) -> Engine:
        """The engine of a method; ValueError, FileNotFoundError where its add-on is missing."""
        if method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
        with self._making:
            if method not in self._engines:
                self._keep(self.first.beside(method))
            return self._engines[method]

    def _keep(self, engine: Engine) -> None:
        engine.watch(self._watch)
        self._engines[engine.method] = engine

    def _watch(self, answer: Sequence[int]) -> None:
        if self._see is not None:
            self._see(answer)

    def answer(
        self, question: Question, settings: Sequence[Setting], record: Path, show: Show
    ) -> None:
        """Decode the answer under each setting in turn, and write their steps to `record`.

        Raises ValueError before the first forward on whatever one of them lacks.
        """
        asked = [self._request(question, settings, number) for number in range(len(settings))]
        if len(settings) > 1 and len({(engine.method, each) for engine, each in asked}) == 1:
            raise ValueError("both settings decode alike: change an option of one of them")
        with self._decoding:
            try:
                for number, (engine, request) in enumerate(asked):
                    self._see = functools.partial(_show_tokens, show, number)
                    completion = whole(request, _decode(engine, request, record))
                    show(Done(number, completion, request.sampler))
            finally:
                self._see = None

    def _request(
        self, question: Question, settings: Sequence[Setting], number: int
    ) -> tuple[Engine, Request]:
        """What one of the settings is asked; its errors say which it is."""
        if question.chat and not self.chats:
            raise ValueError("this tokenizer has no chat template: choose prompt")
        try:
            return self._checked(question, settings[number])
        except (ValueError, OSError, ImportError) as error:
            if len(settings) == 1:
                raise
            raise ValueError(f"{NAMES[number]} setting: {error}") from error

    def _checked(self, question: Question, setting: Setting) -> tuple[Engine, Request]:
        engine = self.of(setting.method)
        sampler = engine.sampler_for(given(engine, setting.entered))
        if question.infill:
            request = marked_request(question.prompt, sampler)
        else:
            prompt = engine.render_chat(question.turns) if question.chat else question.prompt
            request = Request(prompt, sampler)
        engine.check([request])
        return engine, request


def whole(request: Request, completion: Completion) -> Completion:
    """The same with all of the text, where spans of it were filled in."""
    return completion._replace(text=whole_text(request, completion)) if request.rest else completion


def _decode(engine: Engine, request: Request, record: Path) -> Completion:
    assert engine.recorder is not None  # serving.py asks for one
    engine.recorder.path = record
    ((_, completion),) = engine.generate([request])
    return completion


def _show_tokens(show: Show, number: int, answer: Sequence[int]) -> None:
    show(State(number, tuple(answer)))
