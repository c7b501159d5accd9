"""What the JSON files of a folder say of its tokenizer, read strictly."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from llada_plugins.files.json_files import (
    FLAG,
    TEXT,
    Kind,
    either,
    is_there,
    list_of,
    nullable,
    number,
    read_json,
    record,
    short,
    table_of,
    whole,
)

NUM_TOKENS = 2**24  # far above any vocabulary
PROPERTIES = {
    **dict.fromkeys(("lstrip", "rstrip", "normalized", "single_word", "special"), FLAG),
    "__type": TEXT,
}
TOKEN = record({"content": TEXT}, PROPERTIES, closed=True)
NAMED = nullable(either(TEXT, TOKEN))  # a special token, by its text or with its properties


def _numbers_tokens(value: Any) -> bool:
    return isinstance(value, dict) and all(
        token.isdecimal() and int(token) < NUM_TOKENS for token in value
    )


def _is_vocabulary(value: Any) -> bool:
    if not isinstance(value, dict):
        return isinstance(value, list)
    ids = list(value.values())
    in_range = all(type(token) is int and 0 <= token < NUM_TOKENS for token in ids)
    return in_range and len(set(ids)) == len(ids)


ADDED = Kind(
    "an object of whole numbers and what their tokens are",
    _numbers_tokens,
    table_of(TOKEN).parts,
)
VOCABULARY = Kind(
    "an object in which every token has a number of its own, or a list", _is_vocabulary
)
# The fields of a tokenizer's files that anything here depends on. `tokenizers` and
# transformers judge the others.
TOKENIZER = record(
    {
        "model": record(optional={"vocab": VOCABULARY}),
        "added_tokens": list_of(
            record({"content": TEXT, "id": whole(0, NUM_TOKENS - 1)}, PROPERTIES, closed=True)
        ),
    }
)
IDS = table_of(whole(0, NUM_TOKENS - 1))  # added_tokens.json, of tokenizers without tokenizer.json
NAMES = (
    "bos_token",
    "eos_token",
    "pad_token",
    "unk_token",
    "cls_token",
    "sep_token",
    "mask_token",
)
FLAGS = ("add_bos_token", "add_eos_token", "add_prefix_space", "split_special_tokens")
TEMPLATES = either(list_of(record({"name": TEXT, "template": TEXT})), table_of(TEXT))
SETTINGS = record(
    optional={
        **dict.fromkeys(NAMES, NAMED),
        **dict.fromkeys(FLAGS, nullable(FLAG)),
        "added_tokens_decoder": ADDED,
        "chat_template": nullable(either(TEXT, TEMPLATES)),
        "model_max_length": nullable(number(1)),
        "fast_tokenizer_files": Kind(
            "nothing: only tokenizer.json is read", lambda value: value in (None, [])
        ),
    }
)


class TokenizerFiles(NamedTuple):
    """What a folder's JSON files say of its tokenizer."""

    tokenizer: dict[str, Any]  # tokenizer.json; empty where there is none
    # tokenizer_config.json, with the names of special_tokens_map.json where those are read
    settings: dict[str, Any]
    added: dict[str, int]  # special tokens and others of their own id

    def id_of(self, name: str) -> int | None:
        """The id of bos_token or eos_token; None where it is not named or unknown."""
        token = self.settings.get(name)
        content = token["content"] if isinstance(token, dict) else token
        if content is None:
            return None
        if content in self.added:
            return self.added[content]
        vocabulary = self.tokenizer.get("model", {}).get("vocab")
        return vocabulary.get(content) if isinstance(vocabulary, dict) else None


def read_tokenizer_files(folder: Path) -> TokenizerFiles:
    """The JSON files of a folder's tokenizer, of which any may be absent.

    Raises ValueError that names the file and the field that is wrong.
    """
    tokenizer = _read_if_there(folder / "tokenizer.json", TOKENIZER)
    settings = _read_if_there(folder / "tokenizer_config.json", SETTINGS)
    # transformers does not read special_tokens_map.json where it is superfluous, and a
    # published one (LLaDA-8B-Base's) is no JSON
    if "added_tokens_decoder" not in settings:
        settings |= _read_if_there(folder / "special_tokens_map.json", SETTINGS)
    added = {token["content"]: token["id"] for token in tokenizer.get("added_tokens", [])}
    decoder = {
        token["content"]: int(number)
        for number, token in settings.get("added_tokens_decoder", {}).items()
    }
    other = "tokenizer.json"
    if not tokenizer:
        other = "added_tokens.json"
        added = dict(_read_if_there(folder / other, IDS))
    for content, token in decoder.items():
        if added.get(content, token) != token:
            raise ValueError(
                f"{folder}: {other} and tokenizer_config.json disagree on the id of "
                f"{short(content)}: {added[content]} and {token}"
            )
    return TokenizerFiles(tokenizer, settings, {**decoder, **added})


def _read_if_there(path: Path, kind: Kind) -> dict[str, Any]:
    return read_json(path, kind) if is_there(path) else {}
