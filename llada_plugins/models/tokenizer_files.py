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

PROPERTIES = {
    **dict.fromkeys(("lstrip", "rstrip", "normalized", "single_word", "special"), FLAG),
    "__type": TEXT,
}
TOKEN = record({"content": TEXT}, PROPERTIES, closed=True)
NAMED = nullable(either(TEXT, TOKEN))  # a special token, by its text or with its properties
ADDED = Kind(
    "an object of whole numbers and what their tokens are",
    lambda value: (
        isinstance(value, dict)
        and all(number.isdecimal() and int(number) < 2**24 for number in value)
    ),
    lambda value: table_of(TOKEN).parts(value),
)
VOCABULARY = Kind(
    "an object in which every token has a number of its own, or a list",
    lambda value: (
        isinstance(value, list)
        or (
            isinstance(value, dict)
            and all(type(number) is int and 0 <= number < 2**24 for number in value.values())
            and len(set(value.values())) == len(value)
        )
    ),
)
# The fields of a tokenizer's files that anything here depends on; the others are for
# `tokenizers` and transformers to judge.
TOKENIZER = record(
    {
        "model": record(optional={"vocab": VOCABULARY}),
        "added_tokens": list_of(
            record({"content": TEXT, "id": whole(0, 2**24 - 1)}, PROPERTIES, closed=True)
        ),
    }
)
SETTINGS = record(
    optional={
        **dict.fromkeys(
            (
                "bos_token",
                "eos_token",
                "pad_token",
                "unk_token",
                "cls_token",
                "sep_token",
                "mask_token",
            ),
            NAMED,
        ),
        **dict.fromkeys(
            ("add_bos_token", "add_eos_token", "add_prefix_space", "split_special_tokens"),
            nullable(FLAG),
        ),
        "added_tokens_decoder": ADDED,
        "chat_template": nullable(
            either(TEXT, either(list_of(record({"name": TEXT, "template": TEXT})), table_of(TEXT)))
        ),
        "model_max_length": nullable(number(1)),
        "fast_tokenizer_files": Kind(
            "nothing: only tokenizer.json is read", lambda value: value in (None, [])
        ),
    }
)


class TokenizerFiles(NamedTuple):
    """What a folder's JSON files say of its tokenizer."""

    tokenizer: dict[str, Any]  # tokenizer.json; empty where there is none
    # tokenizer_config.json, with the names of special_tokens_map.json where those are
    # read
    settings: dict[str, Any]
    added: dict[str, int]  # special tokens and others of their own id

    def id_of(self, name: str) -> int | None:
        """The id of bos_token or eos_token; None where it is not named or unknown."""
        token = self.settings.get(name)
        content = token["content"] if isinstance(token, dict) else token
        vocabulary = self.tokenizer.get("model", {}).get("vocab")
        return self.added.get(
            content, vocabulary.get(content) if isinstance(vocabulary, dict) else None
        )


def read_tokenizer_files(folder: Path) -> TokenizerFiles:
    """The JSON files of a folder's tokenizer, of which any may be absent; ValueError
    names the file and field that is wrong.
    """
    path, tokenizer, settings = folder / "tokenizer.json", {}, {}
    if is_there(path):
        tokenizer = read_json(path, TOKENIZER)
    if is_there(path := folder / "tokenizer_config.json"):
        settings = read_json(path, SETTINGS)
    # where it is superfluous transformers does not read it; a published one is no JSON
    # (LLaDA-8B-Base's)
    if "added_tokens_decoder" not in settings and is_there(
        path := folder / "special_tokens_map.json"
    ):
        settings = {**settings, **read_json(path, SETTINGS)}
    added = {token["content"]: token["id"] for token in tokenizer.get("added_tokens", [])}
    decoder = {
        token["content"]: int(number)
        for number, token in settings.get("added_tokens_decoder", {}).items()
    }
    if differing := [name for name, number in decoder.items() if added.get(name, number) != number]:
        raise ValueError(
            f"{folder}: tokenizer.json and tokenizer_config.json disagree on the id of "
            f"{short(differing[0])}: "
            f"{added[differing[0]]} and {decoder[differing[0]]}"
        )
    return TokenizerFiles(tokenizer, settings, {**decoder, **added})
