"""Text to token ids and back: chats, continuations, end tokens, stop strings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from llada_plugins.files.json_files import first_line, short
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
    """Token ids; special tokens are added unless the string begins with BOS, as a chat may."""
    check_text(string)
    return _ids(tokenizer, string, add_special_tokens=_adds_special_tokens(tokenizer, string))


def _ids(tokenizer: PreTrainedTokenizerBase, string: str, *, add_special_tokens: bool) -> list[int]:
    # engine and training judge lengths themselves: verbose=False, or transformers would warn
    ids: list[int] = tokenizer.encode(string, add_special_tokens=add_special_tokens, verbose=False)
    return ids


def _adds_special_tokens(tokenizer: PreTrainedTokenizerBase, string: str) -> bool:
    bos = tokenizer.bos_token
    return not (bos and string.startswith(bos))


def encode_pair(
    tokenizer: PreTrainedTokenizerBase, context: str, context_ids: Sequence[int], continuation: str
) -> list[int]:
    """Ids of what follows a context: the tokens of the whole string after the context's.

    So does lm-eval. Where a token of the whole string spans the join, the continuation's
    own text is tokenised; lm-eval would give the tokens after as many as the context has,
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
    ids: list[int] = encoded["input_ids"]
    spans = any(start < len(context) < stop for start, stop in encoded["offset_mapping"])
    if ids[: len(context_ids)] == context_ids and not spans:
        return ids[len(context_ids) :]
    return _following(tokenizer, context_ids, continuation)


def _following(tokenizer: PreTrainedTokenizerBase, before: Sequence[int], string: str) -> list[int]:
    """Ids of a string such that `before` and they decode to its text after that of `before`.

    A tokenizer that puts a space before every text puts it before an anchor instead,
    which is then left out. Where no ids decode so, as with a tokenizer that changes
    letters, those of the string alone.
    """
    expected = decode(tokenizer, before, ()) + string
    for anchor in ("", "\n", "0", "a"):
        lead = _ids(tokenizer, anchor, add_special_tokens=False) if anchor else []
        ids = _ids(tokenizer, anchor + string, add_special_tokens=False)
        own = ids[len(lead) :]
        if ids[: len(lead)] == lead and decode(tokenizer, [*before, *own], ()) == expected:
            return own
    return _ids(tokenizer, string, add_special_tokens=False)


def encode_part(
    tokenizer: PreTrainedTokenizerBase, before: Sequence[int], string: str
) -> list[int]:
    """Ids of a string within a text, after these tokens: no special tokens are added."""
    check_text(string)
    return _following(tokenizer, before, string)


def encode_with_spans(
    tokenizer: PreTrainedTokenizerBase, string: str
) -> tuple[list[int], list[tuple[int, int]]]:
    """The ids of `encode`, and the characters (begin, end) that each stands for.

    An added special token stands for none: begin = end.
    """
    check_text(string)
    found = tokenizer(
        string,
        add_special_tokens=_adds_special_tokens(tokenizer, string),
        return_offsets_mapping=True,
    )
    return found["input_ids"], found["offset_mapping"]


def before_end(ids: Sequence[int], ends: Sequence[int]) -> list[int]:
    """The ids before the first EOS or EoT."""
    for position, token in enumerate(ids):
        if token in ends:
            return list(ids[:position])
    return list(ids)


def decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], ends: Sequence[int]) -> str:
    """Text before the first end token, with special tokens spelt out.

    Stop strings such as <|eot_id|> must be found before they go.
    """
    text = tokenizer.decode(
        before_end(ids, ends), skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    assert isinstance(text, str)  # of a batch it would be a list
    return text


def piece(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """The text that a token adds within an answer; the sign for unknown where it is half a letter.

    Some tokenizers leave out the space before a text's first token, so the second of two
    tells.
    """
    one, two = (decode(tokenizer, [token] * number, ()) for number in (1, 2))
    return two[len(one) :] if two.startswith(one) else one


def find_stop(string: str, until: Sequence[str]) -> int | None:
    """Where the earliest of the stop strings begins, or None; empty ones are ignored."""
    found = [place for stop in until if stop and (place := string.find(stop)) >= 0]
    return min(found, default=None)


def without_special_tokens(tokenizer: PreTrainedTokenizerBase, string: str) -> str:
    """The text less the spelling of special tokens.

    Tokenising it again without them, as upstream does, would change white space.
    """
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    for token in sorted(special, key=len, reverse=True):
        string = string.replace(token, "")
    return string


def render_chat(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]], prefill: bool = False
) -> str:
    """A chat as the prompt string, which ends with the assistant's header.

    prefill: it ends with the text of the last message instead, which stays open. LLaDA's
    template appends the header whatever add_generation_prompt says, others only when
    asked; the rendered string is the same. Of several templates the one called "default"
    is rendered. Raises ValueError where the tokenizer has none, or it fails, and on what are
    no messages of text: a template would write out a list as Python does.
    """
    _check_messages(messages)
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
    try:
        rendered = tokenizer.apply_chat_template(
            turns,
            tokenize=False,
            add_generation_prompt=not prefill,
            # cuts right after the last message's text: a header appended unasked goes too
            continue_final_message=prefill,
        )
    except Exception as error:  # jinja's own kinds, and whatever the template's expressions raise
        raise ValueError(
            f"the chat template of {tokenizer.name_or_path} cannot render the chat: "
            f"{first_line(error)}"
        ) from None
    assert isinstance(rendered, str)  # of a batch it would be a list
    return rendered


def _check_messages(messages: object) -> None:
    if isinstance(messages, str) or not isinstance(messages, Sequence):
        raise ValueError(
            f'a chat must be a list of {{"role": …, "content": …}}, got {short(messages)}'
        )
    for number, message in enumerate(messages):
        parts = isinstance(message, Mapping) and [message.get("role"), message.get("content")]
        if not parts or not all(isinstance(part, str) for part in parts):
            raise ValueError(
                f"message {number} of a chat must have a role and a content, both strings, got "
                f"{short(message)}"
            )
