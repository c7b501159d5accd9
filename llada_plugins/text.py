"""Where text begins and ends: tokenizers, chat templates, stop strings, special tokens."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .startup_noise import silenced

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@silenced()
def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint folder, never through remote code."""
    if not (folder / "tokenizer.json").is_file():
        raise FileNotFoundError(f"{folder} has no tokenizer.json: pass tokenizer=FOLDER of the model's tokenizer")
    from transformers import PreTrainedTokenizerFast

    # AutoTokenizer would look the model_type up, which transformers does not know, and warn of it
    return PreTrainedTokenizerFast.from_pretrained(folder)


def check_unicode(string: str) -> None:
    r"""Raise ValueError on what no tokenizer takes: a lone surrogate, which JSON can spell (\ud800) and bytes that are not UTF-8 turn into."""
    try:
        string.encode()
    except UnicodeEncodeError as error:
        before, found = string[max(0, error.start - 16):error.start], string[error.start]
        raise ValueError(f"text is not Unicode: behind {before!r} stands {found!r}, half a character or a byte that is not UTF-8: give UTF-8 "
                         "text") from None


def encode(tokenizer: PreTrainedTokenizerBase, string: str) -> list[int]:
    """Token ids; special tokens are added only where the string does not already begin with BOS, as a rendered chat does."""
    check_unicode(string)
    return tokenizer.encode(string, add_special_tokens=_adds_special_tokens(tokenizer, string))


def _adds_special_tokens(tokenizer: PreTrainedTokenizerBase, string: str) -> bool:
    bos = tokenizer.bos_token
    return not (bos and string.startswith(bos))


def encode_pair(tokenizer: PreTrainedTokenizerBase, context: str, context_ids: Sequence[int],
                continuation: str) -> list[int]:
    """Ids of what follows a context: the tokens of the whole string behind the context's, as in lm-eval.

    Where a token of the whole string spans the join, it is the continuation's own text that is
    tokenised; lm-eval would give the tokens behind as many as the context has, so another text or none.
    context_ids: `encode` of the context, which must not end in white space.
    """
    whole = context + continuation
    check_unicode(whole)
    encoded = tokenizer(whole, add_special_tokens=_adds_special_tokens(tokenizer, whole),
                        return_offsets_mapping=True)
    ids = encoded["input_ids"]
    spans = any(start < len(context) < stop for start, stop in encoded["offset_mapping"])
    if ids[:len(context_ids)] == context_ids and not spans:
        return ids[len(context_ids):]
    return _following(tokenizer, context_ids, continuation)


def _following(tokenizer: PreTrainedTokenizerBase, before: Sequence[int], string: str) -> list[int]:
    """Ids of a string such that `before` and they decode to its text behind that of `before`.

    A tokenizer that puts a space before every text does so behind an anchor instead, which is then left
    out. Where no ids decode so, as after a tokenizer that changes letters, those of the string alone.
    """
    def plain(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    expected = decode(tokenizer, before, ()) + string
    for anchor in ("", "\n", "0", "a"):
        lead, ids = plain(anchor) if anchor else [], plain(anchor + string)
        own = ids[len(lead):]
        if ids[:len(lead)] == lead and decode(tokenizer, [*before, *own], ()) == expected:
            return own
    return plain(string)


def encode_with_spans(tokenizer: PreTrainedTokenizerBase, string: str) -> tuple[list[int], list[tuple[int, int]]]:
    """The ids of `encode` and the characters (begin, end) that each stands for; begin = end for an added special token."""
    check_unicode(string)
    bos = tokenizer.bos_token
    found = tokenizer(string, add_special_tokens=not (bos and string.startswith(bos)), return_offsets_mapping=True)
    return found["input_ids"], found["offset_mapping"]


def before_end(ids: Sequence[int], ends: Sequence[int]) -> list[int]:
    """The ids before the first EOS or EoT."""
    for position, token in enumerate(ids):
        if token in ends:
            return list(ids[:position])
    return list(ids)


def decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], ends: Sequence[int]) -> str:
    """Text before the first end token, special tokens spelt out: stop strings such as <|eot_id|> must be found before they go."""
    return tokenizer.decode(before_end(ids, ends), skip_special_tokens=False, clean_up_tokenization_spaces=False)


def find_stop(string: str, until: Sequence[str]) -> int | None:
    """Where the earliest of the stop strings begins; None if there is none. Empty stop strings are ignored."""
    found = [place for stop in until if stop and (place := string.find(stop)) >= 0]
    return min(found, default=None)


def without_special_tokens(tokenizer: PreTrainedTokenizerBase, string: str) -> str:
    """The text less the spelling of special tokens; re-tokenising it, as upstream does, would change white space."""
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    for token in sorted(special, key=len, reverse=True):
        string = string.replace(token, "")
    return string


def render_chat(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]], prefill: bool = False) -> str:
    """A chat as the prompt string, ending with the assistant's header; prefill: with the text of the last message, unclosed.

    LLaDA's template appends the header whatever add_generation_prompt says, others only when asked; the rendered string is the
    same. Raises ValueError where the tokenizer has no template.
    """
    if not tokenizer.chat_template:
        raise ValueError("this tokenizer has no chat template: evaluate without one, or pass the tokenizer of an instruct model")
    turns = [dict(message) for message in messages]
    if not prefill:
        return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    # cuts the rendering right behind the last message's text, so a header that the template appends unasked goes as well
    return tokenizer.apply_chat_template(turns, tokenize=False, continue_final_message=True)
