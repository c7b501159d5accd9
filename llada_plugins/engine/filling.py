"""A text with marked spans, filled in on standard output. For infilling.py at the root."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llada_plugins.files.utf8 import check_text, read_text
from llada_plugins.methods.table import METHODS
from llada_plugins.options.fields import arg
from llada_plugins.sampling.config import SamplerConfig

from .engine import Engine
from .infilling import check_ahead
from .marked_text import marked
from .talking import tell, tell_cost


@dataclass(frozen=True, kw_only=True)
class InfillConfig:
    """What is filled in."""

    model: Literal[tuple(METHODS)] = arg(  # type: ignore[valid-type]  # names of a table
        "llada", f"one of {', '.join(METHODS)}"
    )
    text: str | None = arg(None, "a text whose spans are marked, <|infill:8|>")
    file: str | None = arg(None, "a file that holds it, in place of text")

    def __post_init__(self) -> None:
        if (self.text is None) == (self.file is None):
            raise ValueError("give the text with its marked spans: one of --text and --file")

    @property
    def content(self) -> str:
        """The text."""
        if self.text is not None:
            return self.text
        found = read_text(Path(self.file or ""))
        try:
            check_text(found)
        except ValueError as error:
            raise ValueError(f"{self.file}: {error}") from None
        return found


def run(config: InfillConfig, options: dict[str, str]) -> None:
    """Print the text with its spans filled in; mistakes are told before weights are read."""
    options = {"overlong": "error", **options}
    marked(config.content, SamplerConfig.gen_length)
    check_ahead(config.model, options)
    filled = Engine(config.model, **options).infill(config.content)
    tell(filled.text.removesuffix("\n"))
    tell_cost(filled.completion)
