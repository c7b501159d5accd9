"""Where text begins and ends: tokenizers, chat templates, stop strings, special tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from llada_plugins.files.json_files import (
    first_line,
)
from llada_plugins.files.utf8 import check_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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
