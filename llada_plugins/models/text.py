"""Where text begins and ends: tokenizers, chat templates, stop strings, special tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from llada_plugins.files.json_files import (
    FLAG,
    TEXT,
    Kind,
    either,
    first_line,
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
from llada_plugins.files.utf8 import check_text
from llada_plugins.options.startup_messages import silenced

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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


@silenced()
def load_tokenizer(folder: Path, chat_template: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint folder, never through remote code; chat_template:
    see `choose_template`.

    Raises FileNotFoundError, or ValueError that names the file: `tokenizers` and
    transformers end in any kind of exception.
    """
    if not is_there(folder / "tokenizer.json"):
        raise FileNotFoundError(
            f"{folder} has no tokenizer.json: pass tokenizer=FOLDER of the model's tokenizer"
        )
    files = read_tokenizer_files(folder)
    from transformers import PreTrainedTokenizerFast

    try:
        # AutoTokenizer would look the model_type up, which transformers does not know,
        # and warn of it
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        trial = tokenizer.encode("a")
        tokenizer.decode(trial)
    except BaseException as error:
        # which Rust raises, beside Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ValueError(
            f"{folder / 'tokenizer.json'}, with the tokenizer's other files there, cannot be "
            "loaded: "
            f"{first_line(error)}"
        ) from None
    _check_loaded(folder, files, tokenizer, trial)
    if chat_template is not None:
        choose_template(tokenizer, chat_template)
    return tokenizer


def _check_loaded(
    folder: Path, files: TokenizerFiles, tokenizer: PreTrainedTokenizerBase, trial: list[int]
) -> None:
    """Raise ValueError where the loaded tokenizer does not do what its files say:
    transformers adds, renumbers and ignores unasked.
    """
    found = tokenizer.get_vocab()
    for content, token in files.added.items():
        if found.get(content) != token:
            raise ValueError(
                f"{folder}: its tokenizer's files give {short(content)} the id {token}, but it "
                f"becomes {found.get(content)}"
            )
    for name in ("bos_token", "eos_token"):
        if (
            files.settings.get(name)
            and files.id_of(name) is None
            and isinstance(files.tokenizer["model"].get("vocab"), dict)
        ):
            raise ValueError(
                f"{folder}: {name} is {short(files.settings[name])}, which is no token of "
                "tokenizer.json"
            )
    for name, stands in (
        ("bos", trial[:1] == [tokenizer.bos_token_id]),
        ("eos", trial[-1:] == [tokenizer.eos_token_id]),
    ):
        stated = files.settings.get(f"add_{name}_token")
        if stated is not None and stated != stands:
            raise ValueError(
                f"{folder}: tokenizer_config.json says add_{name}_token={str(stated).lower()}, "
                "but tokenizer.json "
                f"{'adds' if stands else 'does not add'} {name}_token, and it decides: make the "
                "two agree"
            )
    stated, spaces = (
        files.settings.get("add_prefix_space"),
        files.tokenizer.get("pre_tokenizer") or {},
    )
    if (
        stated is not None
        and spaces.get("type") == "ByteLevel"
        and spaces.get("add_prefix_space") != stated
    ):
        raise ValueError(
            f"{folder}: add_prefix_space is {stated} in tokenizer_config.json and "
            f"{spaces.get('add_prefix_space')} in "
            "tokenizer.json, which decides: make the two agree"
        )


def choose_template(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Make the chat template of that name the tokenizer's only one; ValueError where it
    has none of that name.
    """
    templates = tokenizer.chat_template
    if not isinstance(templates, dict):
        has = (
            "one chat template, which has no name: leave it out"
            if templates
            else "no chat template"
        )
        raise ValueError(f"chat_template={name!r}: this tokenizer has {has}")
    if name not in templates:
        raise ValueError(
            f"chat_template={name!r}: this tokenizer's chat templates are "
            f"{', '.join(sorted(templates))}"
        )
    tokenizer.chat_template = templates[name]


def check_vocabulary(ids: Sequence[int], vocabulary: int, source: str) -> None:
    """Raise ValueError on an id that a model of so many tokens does not know."""
    if max(ids, default=0) >= vocabulary:
        raise ValueError(
            f"{source}: its tokenizer makes token {max(ids)}, its model's vocabulary ends at "
            f"{vocabulary - 1}: they do not "
            "belong together"
        )


def encode(tokenizer: PreTrainedTokenizerBase, string: str) -> list[int]:
    """Token ids; special tokens are added only where the string does not already begin
    with BOS, as a rendered chat does.
    """
    check_text(string)
    return tokenizer.encode(string, add_special_tokens=_adds_special_tokens(tokenizer, string))


def _adds_special_tokens(tokenizer: PreTrainedTokenizerBase, string: str) -> bool:
    bos = tokenizer.bos_token
    return not (bos and string.startswith(bos))


def encode_pair(
    tokenizer: PreTrainedTokenizerBase, context: str, context_ids: Sequence[int], continuation: str
) -> list[int]:
    """Ids of what follows a context: the tokens of the whole string behind the
    context's, as in lm-eval.

    Where a token of the whole string spans the join, it is the continuation's own text
    that is tokenised; lm-eval would give the tokens behind as many as the context has,
    so another text or none. context_ids: `encode` of the context, which must not end in
    white space.
    """
    whole = context + continuation
    check_text(whole)
    encoded = tokenizer(
        whole,
        add_special_tokens=_adds_special_tokens(tokenizer, whole),
        return_offsets_mapping=True,
    )
    ids = encoded["input_ids"]
    spans = any(start < len(context) < stop for start, stop in encoded["offset_mapping"])
    if ids[: len(context_ids)] == context_ids and not spans:
        return ids[len(context_ids) :]
    return _following(tokenizer, context_ids, continuation)


def _following(tokenizer: PreTrainedTokenizerBase, before: Sequence[int], string: str) -> list[int]:
    """Ids of a string such that `before` and they decode to its text behind that of `before`.

    A tokenizer that puts a space before every text does so behind an anchor instead,
    which is then left out. Where no ids decode so, as after a tokenizer that changes
    letters, those of the string alone.
    """

    def plain(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    expected = decode(tokenizer, before, ()) + string
    for anchor in ("", "\n", "0", "a"):
        lead, ids = plain(anchor) if anchor else [], plain(anchor + string)
        own = ids[len(lead) :]
        if ids[: len(lead)] == lead and decode(tokenizer, [*before, *own], ()) == expected:
            return own
    return plain(string)


def encode_with_spans(
    tokenizer: PreTrainedTokenizerBase, string: str
) -> tuple[list[int], list[tuple[int, int]]]:
    """The ids of `encode` and the characters (begin, end) that each stands for; begin =
    end for an added special token.
    """
    check_text(string)
    bos = tokenizer.bos_token
    found = tokenizer(
        string, add_special_tokens=not (bos and string.startswith(bos)), return_offsets_mapping=True
    )
    return found["input_ids"], found["offset_mapping"]


def before_end(ids: Sequence[int], ends: Sequence[int]) -> list[int]:
    """The ids before the first EOS or EoT."""
    for position, token in enumerate(ids):
        if token in ends:
            return list(ids[:position])
    return list(ids)


def decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], ends: Sequence[int]) -> str:
    """Text before the first end token, special tokens spelt out: stop strings such as
    <|eot_id|> must be found before they go.
    """
    return tokenizer.decode(
        before_end(ids, ends), skip_special_tokens=False, clean_up_tokenization_spaces=False
    )


def find_stop(string: str, until: Sequence[str]) -> int | None:
    """Where the earliest of the stop strings begins; None if there is none. Empty stop
    strings are ignored.
    """
    found = [place for stop in until if stop and (place := string.find(stop)) >= 0]
    return min(found, default=None)


def without_special_tokens(tokenizer: PreTrainedTokenizerBase, string: str) -> str:
    """The text less the spelling of special tokens; re-tokenising it, as upstream does,
    would change white space.
    """
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    for token in sorted(special, key=len, reverse=True):
        string = string.replace(token, "")
    return string


def render_chat(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]], prefill: bool = False
) -> str:
    """A chat as the prompt string, ending with the assistant's header; prefill: with
    the text of the last message, unclosed.

    LLaDA's template appends the header whatever add_generation_prompt says, others only
    when asked; the rendered string is the same. Of several templates the one called
    "default" is rendered. Raises ValueError where the tokenizer has none, or it fails.
    """
    templates = tokenizer.chat_template
    if not templates:
        raise ValueError(
            f"{tokenizer.name_or_path}: this tokenizer has no chat template: evaluate without one, "
            "or pass the tokenizer of an instruct model"
        )
    if isinstance(templates, dict) and "default" not in templates:
        raise ValueError(
            f"{tokenizer.name_or_path}: it has the chat templates {', '.join(sorted(templates))} "
            "and none is the default: pass chat_template=NAME"
        )
    turns = [dict(message) for message in messages]
    # the second cuts the rendering right behind the last message's text, so a header
    # that the template appends unasked goes as well
    ending = {"continue_final_message": True} if prefill else {"add_generation_prompt": True}
    try:
        return tokenizer.apply_chat_template(turns, tokenize=False, **ending)
    except Exception as error:  # jinja's own kinds, and whatever the template's expressions raise
        raise ValueError(
            f"the chat template of {tokenizer.name_or_path} cannot render the chat: "
            f"{first_line(error)}"
        ) from None
