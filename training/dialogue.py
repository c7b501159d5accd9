"""Dialogues of several turns: the forms in which public files hold them, as messages {"role", "content"} that a chat template renders."""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

Message = dict[str, str]

ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant",
         "bard": "assistant", "bing": "assistant", "model": "assistant"}


def from_messages(turns: Any) -> list[Message]:
    """OpenAI's form: [{"role", "content"}]. Raises ValueError on what no answer can be learned from."""
    return _dialogue(turns, "role", "content")


def from_conversations(turns: Any) -> list[Message]:
    """ShareGPT's form: [{"from", "value"}], with the speakers' many names. Raises ValueError as above."""
    return _dialogue(turns, "from", "value")


FORMS: dict[str, Callable[[Any], list[Message]]] = {"messages": from_messages, "conversations": from_conversations}


def pairs(messages: Sequence[Message], render: Callable[[Sequence[Message]], str]) -> Iterator[tuple[str, str]]:
    """(prompt, answer) of each assistant turn, the prompt with all turns before it and the assistant's header (LLaDA, appendix B.1).

    The paper trains on one of them drawn at random; here each is an example.
    """
    for place, message in enumerate(messages):
        if message["role"] == "assistant":
            yield render(messages[:place]), message["content"]


def _dialogue(turns: Any, speaker: str, text: str) -> list[Message]:
    if not isinstance(turns, list) or not turns:
        raise ValueError(f"expected a list of turns {{{speaker!r}, {text!r}}}, found {'none' if turns == [] else type(turns).__name__}")
    messages = [_message(turn, number, speaker, text) for number, turn in enumerate(turns, 1)]
    roles = [message["role"] for message in messages]
    if "assistant" not in roles:
        raise ValueError(f"no turn is the assistant's, only {', '.join(dict.fromkeys(roles))}: there is no answer to learn")
    if "user" not in roles[:roles.index("assistant")]:
        raise ValueError(f"turn {roles.index('assistant') + 1} is the assistant's and answers nobody: no turn of the user before it")
    return messages


def _message(turn: Any, number: int, speaker: str, text: str) -> Message:
    if not isinstance(turn, dict) or not all(isinstance(turn.get(field), str) for field in (speaker, text)):
        found = f"keys {', '.join(map(str, turn))}" if isinstance(turn, dict) else type(turn).__name__
        raise ValueError(f"turn {number} must have {speaker!r} and {text!r} as text, found {found}")
    if turn[speaker] not in ROLES:
        raise ValueError(f"turn {number}: {speaker!r} must be one of {', '.join(ROLES)}, got {turn[speaker]!r}")
    if not turn[text].strip():
        raise ValueError(f"turn {number} is empty")
    return {"role": ROLES[turn[speaker]], "content": turn[text]}
