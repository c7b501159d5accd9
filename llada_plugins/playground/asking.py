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
from llada_plugins.options.fields import names
from llada_plugins.rewards.prm_config import PRMConfig

from .drawing import decoded_with
from .form import Value, given
from .job import Done, Show, State

MOST = 1_000_000  # characters of a prompt; more than any context holds
ENCODED_FILE = re.compile(r"\s*data:(?P<kind>[\w.+-]+/[\w.+-]+)[;,]")
NAMES = ("first", "second")  # of the settings that are compared
# options of methods that name files or hub ids, decide how much memory they take, or may take
# any time to match
PRIVATE = ("ups", "router", *names(PRMConfig), "question_pattern")


class Setting(NamedTuple):
    """How an answer is decoded: a method, and what controls say."""

    method: str
    entered: Mapping[str, Value]  # of decoding
    own: Mapping[str, Value] = {}  # of the method's own options; empty: as they begin


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


# what a method's own options are, where somebody has changed them
Changed = tuple[tuple[str, Any], ...]


class Models:
    """Engines of all methods on one model; one job at a time decodes with them.

    public: may anybody ask? Then nobody names files, or what reads them.
    """

    def __init__(self, method: str, options: Mapping[str, Any], *, public: bool = False) -> None:
        self.first, self.public = Engine(method, **options), public
        self._engines: dict[tuple[str, Changed], Engine] = {}  # the newest last
        self._making, self._decoding = threading.Lock(), threading.Lock()
        self._see: Callable[[Sequence[int]], None] | None = None
        self.first.watch(self._watch)
        self._keep((method, ()), self.first)

    @property
    def chats(self) -> bool:
        """Has the tokenizer a chat template?"""
        return bool(self.first.tokenizer.chat_template)

    def begins(self, method: str) -> Any:
        """A method's own options before somebody changes them; ValueError where there is none."""
        if method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
        if method == self.first.method:
            return self.first.method_options
        return METHODS[method].options()

    def of(self, method: str, own: Mapping[str, Value] | None = None) -> Engine:
        """The engine of a method; own: what the controls of its options say.

        ValueError, FileNotFoundError where an option is wrong, or its add-on is missing.
        """
        options = given(self.begins(method), own or {})
        if self.public and (private := [name for name in PRIVATE if name in options]):
            raise ValueError(
                f"{private[0]} is for who runs the playground alone, since the page is public: "
                "leave it as it is"
            )
        key = method, tuple(options.items())
        with self._making:
            engine = self._engines.pop(key, None)
            if engine is None:
                engine = self.first.beside(method, **{**self._told(method), **options})
                engine.watch(self._watch)
            self._keep(key, engine)
            return engine

    def _told(self, method: str) -> dict[str, Any]:
        """What the command line says of a method's own options."""
        if method != self.first.method:
            return {}
        explicit = self.first.asked.explicit
        return {name: explicit[name] for name in names(METHODS[method].options) if name in explicit}

    def _keep(self, key: tuple[str, Changed], engine: Engine) -> None:
        """Have it, and of those whose options were changed as many as are compared."""
        self._engines[key] = engine
        changed = [each for each in self._engines if each[1]]
        for each in changed[: -len(NAMES)]:
            del self._engines[each]

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
        if len(settings) > 1 and asked[0] == asked[1]:
            raise ValueError("both settings decode alike: change an option of one of them")
        with self._decoding:
            try:
                for number, (engine, request) in enumerate(asked):
                    self._see = functools.partial(_show_tokens, show, number)
                    completion = whole(request, _decode(engine, request, record))
                    show(Done(number, completion, decoded_with(engine, request.sampler)))
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
        engine = self.of(setting.method, setting.own)
        sampler = engine.sampler_for(given(engine.sampler, setting.entered))
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
