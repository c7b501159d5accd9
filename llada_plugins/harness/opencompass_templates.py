"""How OpenCompass' prompt templates become the text that a model reads. Not for tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from opencompass.models.base import LMTemplateParser
from opencompass.utils.prompt import PromptList

from llada_plugins.models import text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROLES = {"HUMAN": "user", "BOT": "assistant", "SYSTEM": "system"}  # OpenCompass role -> chat role


class TemplateParser:
    """Renders templates through the tokenizer's chat template, or as OpenCompass' own parser.

    A tokenizer without a chat template is refused at once where `chat` asks for it.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        chat: bool,
        meta_template: Mapping[str, Any] | None = None,
    ) -> None:
        self.tokenizer, self.chat, self.meta_template = tokenizer, chat, meta_template
        self._stock = LMTemplateParser(meta_template)
        if chat:
            self._render_chat([{"role": "user", "content": "?"}])

    def parse_template(self, prompt_template: Any, mode: str) -> str | list[str]:
        """The exact text that the model reads; of a list or tuple of templates a list.

        mode "gen": up to where the answer begins; "ppl": the answer included. A chat
        drops the text that a template puts at the start of the answer, as OpenCompass
        does for chat models. A plain string is a user's turn in gen mode and taken as
        it is in ppl mode.
        """
        if isinstance(prompt_template, str):
            if self.chat and mode == "gen":
                return self._chat(PromptList([prompt_template]), mode)
            return prompt_template
        if messages := _is_messages(prompt_template):
            prompt_template = PromptList(_turn(message) for message in prompt_template)
        if not isinstance(prompt_template, PromptList):
            return [self._rendered(template, mode) for template in prompt_template]
        if self.chat:
            return self._chat(prompt_template, mode)
        if messages and self.meta_template:
            return self._wrapped(prompt_template, mode)
        return self._stock.parse_template(prompt_template, mode)

    def split(self, template: Any) -> tuple[str, str] | None:
        """Context and answer texts, where the template ends with the model's turn."""
        if isinstance(template, str):
            return None
        whole = self._rendered(template, "ppl")
        wraps = self.chat or self.meta_template  # then gen mode itself ends where the answer begins
        context = self._rendered(template if wraps else _without_reply(template), "gen")
        if not context or not whole.startswith(context) or len(context) == len(whole):
            return None
        return context, whole[len(context) :]

    def _rendered(self, template: Any, mode: str) -> str:
        """The text of one template."""
        string = self.parse_template(template, mode)
        assert isinstance(string, str)
        return string

    def _wrapped(self, turns: PromptList, mode: str) -> str:
        """Messages, each between its role's marks of meta_template, as ChatInferencer wraps them.

        A role that meta_template does not list is taken bare. The parser of prompt
        templates would not do: it makes whole rounds, so it adds an empty answer
        between two questions in a row, and refuses a system message.
        """
        if mode == "gen":
            turns = _without_reply(turns)
        meta_template = self.meta_template or {}
        string = meta_template.get("begin", "")
        for turn in turns:
            marks = self._stock.roles.get(turn["role"], {})
            string += (marks.get("begin") or "") + turn["prompt"] + (marks.get("end") or "")
        if mode == "gen":
            return string + (self._stock.roles.get("BOT", {}).get("begin") or "")
        return string + meta_template.get("end", "")

    def _chat(self, template: PromptList, mode: str) -> str:
        messages = _merged(template)
        replied = bool(messages) and messages[-1]["role"] == "assistant"
        if not messages:  # the in-context examples of a zero-shot task
            return ""
        if replied and mode == "ppl":
            return self._render_chat(messages, prefill=True)
        return self._render_chat(messages[:-1] if replied else messages)

    def _render_chat(self, messages: Sequence[Mapping[str, str]], prefill: bool = False) -> str:
        return text.render_chat(self.tokenizer, messages, prefill)


def _is_messages(template: Any) -> bool:
    """Is it a chat, a list of {role, content}?

    The *_rawprompt_* configs hand over such lists, and ChatInferencer for every turn.
    OpenCompass' own prompt templates are lists too, but mark their sections.
    """
    if not isinstance(template, list) or not template:
        return False
    return all(isinstance(item, dict) and "role" in item for item in template)


def _turn(message: Mapping[str, Any]) -> dict[str, str]:
    """A message of a chat in OpenCompass' own form; an earlier answer may hold its statistics."""
    role_of = {chat_role: role for role, chat_role in ROLES.items()}
    content = message.get("content", message.get("prompt")) or ""
    if isinstance(content, Mapping):
        content = content.get("prediction")
    if not isinstance(content, str):
        raise ValueError(
            f"the content of a message must be text, got {type(content).__name__}: this model "
            "reads no pictures or parts"
        )
    return {**message, "role": role_of.get(message["role"], message["role"]), "prompt": content}


def _is_turn(item: str | Mapping[str, Any]) -> bool:
    return isinstance(item, str) or "section" not in item


def _merged(template: PromptList) -> list[dict[str, str]]:
    """Chat messages without section marks and empty turns; loose text is the user's.

    Neighbours of one role are joined by a newline.
    """
    messages: list[dict[str, str]] = []
    for item in filter(_is_turn, template):
        if isinstance(item, str):
            item = {"role": "HUMAN", "prompt": item}
        role, content = item["role"], item.get("prompt", "")
        if role not in ROLES:
            role = item.get("fallback_role", role)
        if role not in ROLES:
            raise ValueError(
                f"a chat template has no role {role!r}: give the turn a fallback_role, one of "
                f"{', '.join(ROLES)}"
            )
        if content and messages and messages[-1]["role"] == ROLES[role]:
            messages[-1]["content"] += "\n" + content
        elif content:
            messages.append({"role": ROLES[role], "content": content})
    return messages


def _without_reply(template: Any) -> PromptList:
    """The template without its last turn, if that is the model's."""
    if _is_messages(template):
        template = PromptList(_turn(message) for message in template)
    turns = [number for number, item in enumerate(template) if _is_turn(item) and item]
    if not turns or isinstance(template[turns[-1]], str) or template[turns[-1]]["role"] != "BOT":
        return template
    return PromptList(template[: turns[-1]] + template[turns[-1] + 1 :])
