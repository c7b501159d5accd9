"""What engines on one model share: the model, and what their methods load beside it."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeVar
from weakref import WeakValueDictionary

from llada_plugins.models.llada import LLaDA

Part = TypeVar("Part")


class Loading:
    """A model that is read once, and parts of methods, each as long as an engine holds it."""

    def __init__(self, read: Callable[[], LLaDA]) -> None:
        self._read = read
        self._model: LLaDA | None = None
        self._parts: WeakValueDictionary[Hashable, object] = WeakValueDictionary()

    def __call__(self) -> LLaDA:
        """The model."""
        if self._model is None:
            self._model = self._read()
        return self._model

    def part(self, key: Hashable, load: Callable[[], Part]) -> Part:
        """The part of that key, loaded where no engine holds it.

        key: all that determines it, and its kind.
        """
        found: Part = self._parts.get(key)  # type: ignore[assignment]  # the key tells its kind
        if found is None:
            found = load()
            self._parts[key] = found
        return found
