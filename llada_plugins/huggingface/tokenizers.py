"""The tokenizer class that Dream's checkpoints name, without their remote code."""

from __future__ import annotations

import os
from typing import Any

from transformers import PreTrainedTokenizerFast

from llada_plugins.models.folder import resolve
from llada_plugins.models.tokenizer import load_tokenizer

# of a loaded tokenizer, what a caller of from_pretrained may set
SETTINGS = ("padding_side", "truncation_side", "model_max_length", "chat_template")
HUB = ("cache_dir", "force_download", "local_files_only", "token")


class DreamTokenizer(PreTrainedTokenizerFast):
    """Qwen2's tokenizer with the tokens that a checkpoint's files add."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *_: Any,
        **arguments: Any,
    ) -> Any:
        """A PreTrainedTokenizerFast, as `load_tokenizer` makes it; what it saves loads anywhere."""
        download = {name: arguments[name] for name in HUB if name in arguments}
        path = os.fspath(pretrained_model_name_or_path)
        revision = None if os.path.isdir(path) else arguments.get("revision")
        tokenizer = load_tokenizer(resolve(path, revision, download=download))
        for name in SETTINGS:
            if arguments.get(name) is not None:
                setattr(tokenizer, name, arguments[name])
        return tokenizer
