"""A conversation with a model, turn by turn."""

from __future__ import annotations

from .engine import Engine
from .infilling import FilledIn
from .request import Completion, Request


class Conversation:
    """Turns with one engine. Without a chat template each stands alone."""

    def __init__(self, engine: Engine, chat: bool, system: str | None = None) -> None:
        self.engine = engine
        self.chat = chat
        self.beginning = [{"role": "system", "content": system}] if system is not None else []
        self.messages = list(self.beginning)

    def reset(self) -> None:
        """Forget all turns."""
        self.messages = list(self.beginning)

    def fill_in(self, line: str) -> FilledIn:
        """A text with marked spans, filled in; it is no turn of the conversation."""
        return self.engine.infill(line)

    def ask(self, line: str) -> Completion:
        """The answer; a turn that does not fit the context (ValueError) is forgotten.

        So is one that is interrupted.
        """
        turns = [*self.messages, {"role": "user", "content": line}]
        prompt = self.engine.render_chat(turns) if self.chat else line
        ((_, completion),) = self.engine.generate([Request(prompt, self.engine.sampler)])
        self.messages = [*turns, {"role": "assistant", "content": completion.text}]
        return completion
