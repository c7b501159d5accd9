"""Tokenizers that lm-eval's own tasks load by what pretrained= or tokenizer= names.

RULER and BABILong measure texts with `AutoTokenizer.from_pretrained(name)`. transformers
does not know the names of shipped models, and has only remote code for tokenizers without
tokenizer.json. For such a name AutoTokenizer gives the model's own tokenizer.
"""

from __future__ import annotations

from copy import deepcopy
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llada_plugins.models.folder import SHIPPED
from llada_plugins.models.slow_tokenizer import is_slow

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_lent: dict[str, PreTrainedTokenizerBase] = {}  # by name


def lend(name: str | None, tokenizer: PreTrainedTokenizerBase) -> None:
    """Let AutoTokenizer give a copy of this tokenizer by that name, if it could not load it."""
    if name is None or not (name in SHIPPED or is_slow(Path(tokenizer.name_or_path))):
        return
    if not _lent:
        _look_here_first()
    _lent[name] = tokenizer


def _look_here_first() -> None:
    from transformers import AutoTokenizer

    load = AutoTokenizer.from_pretrained

    @wraps(load)
    def from_pretrained(name: Any, *arguments: Any, **options: Any) -> Any:
        if str(name) in _lent:
            return deepcopy(_lent[str(name)])
        return load(name, *arguments, **options)

    AutoTokenizer.from_pretrained = from_pretrained  # type: ignore[method-assign, assignment]  # for tasks
