"""Tokenizers that were published without tokenizer.json, as vocabulary and merges.

Those of Dream and its kin are Qwen2's byte-level BPE with tokens of their own. Their class
is remote code, which never runs here: the files hold all that it does.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llada_plugins.files.json_files import is_there, read_json, short

from .tokenizer_files import VOCABULARY, TokenizerFiles

VOCAB, MERGES = "vocab.json", "merges.txt"
# classes whose arithmetic is Qwen2's
QWEN2 = ("Qwen2Tokenizer", "Qwen2TokenizerFast", "DreamTokenizer")
# how Qwen2 cuts text into words: contractions, letters with one sign before them, single
# digits, signs, line ends, spaces
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def is_slow(folder: Path) -> bool:
    """Has the folder a vocabulary and merges, and no tokenizer.json?"""
    fast = is_there(folder / "tokenizer.json")
    return not fast and is_there(folder / VOCAB) and is_there(folder / MERGES)


def half_of_slow(folder: Path) -> str:
    """What a message says of a folder with one of the two files; "" where it has neither."""
    present, absent = sorted((VOCAB, MERGES), key=lambda name: not is_there(folder / name))
    return f", and of {present} and {absent} only the first" if is_there(folder / present) else ""


def read_slow_tokenizer(folder: Path, files: TokenizerFiles) -> dict[str, Any]:
    """The tokenizer.json that the folder's files amount to.

    Raises ValueError, also where the tokenizer is of another kind than Qwen2's.
    """
    name = files.settings.get("tokenizer_class")
    if name not in QWEN2:
        raise ValueError(
            f"{folder} has no tokenizer.json, and tokenizer_class is {short(name)}: from "
            f"{VOCAB} and {MERGES} only {', '.join(QWEN2)} are made: pass tokenizer=FOLDER of "
            "one with tokenizer.json"
        )
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
    from tokenizers.models import BPE

    read_json(folder / VOCAB, VOCABULARY)
    try:
        tokenizer = Tokenizer(BPE.from_file(str(folder / VOCAB), str(folder / MERGES)))
    except Exception as error:  # the only class that tokenizers raises
        raise ValueError(
            f"{folder}: {VOCAB} and {MERGES} do not belong together: {error}"
        ) from None
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    properties = {
        token["content"]: {name: value for name, value in token.items() if name != "__type"}
        for token in files.settings.get("added_tokens_decoder", {}).values()
    }
    for content in sorted(files.added, key=files.added.__getitem__):
        of_token = properties.get(content, {"content": content, "special": True})
        tokenizer.add_tokens([AddedToken(**of_token)])
    found: dict[str, Any] = json.loads(tokenizer.to_str())
    return found
