"""Dialogues of several turns, in the forms in which public files hold them.

They are read as messages {"role", "content"} that a chat template renders.

An answer that is read but not learned keeps "weight": 0, as in OpenAI's form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from .row_keys import TURN_MARKS, check_turn, learned, silent

Message = dict[str, Any]  # role and content, texts; weight, 0, of an answer that is not learned

ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "bing": "assistant",
    "model": "assistant",
}
# OpenAI's form, and ShareGPT's
KEYS = {"messages": ("role", "content"), "conversations": ("from", "value")}
TEXT_PARTS = ("text", "input_text", "output_text")  # types of parts that hold text


def read(form: str, turns: Any) -> list[Message]:
    """The turns of a row's key `form`, one of KEYS.

    Raises ValueError on what no answer can be learned from.
    """
    speaker, text = KEYS[form]
    if not isinstance(turns, list) or not turns:
        raise ValueError(
            f"expected a list of turns {{{speaker!r}, {text!r}}}, found "
            f"{'none' if turns == [] else type(turns).__name__}"
        )
    messages = [_message(turn, number, speaker, text) for number, turn in enumerate(turns, 1)]
    roles = [message["role"] for message in messages]
    if "assistant" not in roles:
        raise ValueError(
            f"no turn is the assistant's, only {', '.join(dict.fromkeys(roles))}: there is no "
            "answer to learn"
        )
    answers = [place for place, message in enumerate(messages) if _is_learned(message)]
    if not answers:
        raise ValueError("every answer is marked not to be learned: leave the row out")
    if "user" not in roles[: answers[0]]:
        raise ValueError(
            f"turn {answers[0] + 1} is the assistant's and answers nobody: no turn of the user "
            "before it"
        )
    return messages


def read_row(form: str, row: Mapping[str, Any]) -> list[Message]:
    """`read`, with what else of the row belongs to the dialogue.

    That is its `system` text before the turns, and the `chosen` answer of a preference
    pair after them.
    """
    turns, (speaker, text) = row.get(form), KEYS[form]
    if not isinstance(turns, list):
        return read(form, turns)
    before, after = row.get("system"), row.get("chosen")
    if not silent(before):
        if turns and isinstance(turns[0], dict) and turns[0].get(speaker) == "system":
            raise ValueError("'system' stands beside a turn of the system: leave one of them out")
        turns = [{speaker: "system", text: before}, *turns]
    return read(form, turns if silent(after) else [*turns, after])


def pairs(
    messages: Sequence[Message], render: Callable[[Sequence[Message]], str]
) -> Iterator[tuple[str, str]]:
    """(prompt, answer) of each answer that is learned.

    The prompt has all turns before it and the assistant's header.

    The paper trains on one of them drawn at random (LLaDA, appendix B.1); here each is
    an example.
    """
    turns = [{"role": message["role"], "content": message["content"]} for message in messages]
    for place, message in enumerate(messages):
        if _is_learned(message):
            yield render(turns[:place]), message["content"]


def _is_learned(message: Message) -> bool:
    return message["role"] == "assistant" and "weight" not in message


def _message(turn: Any, number: int, speaker: str, text: str) -> Message:
    place = f"turn {number}"
    if not isinstance(turn, dict) or not {speaker, text} <= turn.keys():
        found = (
            f"keys {', '.join(map(str, turn))}" if isinstance(turn, dict) else type(turn).__name__
        )
        raise ValueError(f"{place} must have {speaker!r} and {text!r} as text, found {found}")
    check_turn(turn, (speaker, text), place)
    content = _text(turn[text], place)
    if not isinstance(turn[speaker], str) or not isinstance(content, str):
        found = f"{type(turn[speaker]).__name__} and {type(content).__name__}"
        raise ValueError(f"{place} must have {speaker!r} and {text!r} as text, found {found}")
    if turn[speaker] not in ROLES:
        raise ValueError(
            f"{place}: {speaker!r} must be one of {', '.join(ROLES)}, got {turn[speaker]!r}"
        )
    if not content.strip():
        raise ValueError(f"{place} is empty")
    role, marked = ROLES[turn[speaker]], learned(turn, TURN_MARKS, place)
    if marked and role != "assistant":
        raise ValueError(
            f"{place} is marked to be learned and is the {role}'s: only answers of the "
            "assistant are learned; leave the mark out"
        )
    unlearned = {"weight": 0} if role == "assistant" and marked is False else {}
    return {"role": role, "content": content, **unlearned}


def _text(content: Any, place: str) -> Any:
    """Content as text: of a list of parts their texts, joined as chat templates join them.

    That is one directly after the other.
    """
    if not isinstance(content, list):
        return content
    texts = []
    for number, part in enumerate(content, 1):
        where = f"{place}, part {number}"
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        if kind not in TEXT_PARTS or not isinstance(part.get("text"), str):
            raise ValueError(
                f'{where}: only parts {{"type": "text", "text": text}} are read, found '
                f"{kind!r}: give the content as text, or leave the row out"
            )
        check_turn(part, ("type", "text", "cache_control"), where)
        texts.append(part["text"])
    return "".join(texts)
