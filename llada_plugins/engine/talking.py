"""Turns from standard input, answers to standard output. For chat.py."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from llada_plugins.methods.table import METHODS
from llada_plugins.options.fields import arg
from llada_plugins.sampling.config import SamplerConfig

from .conversation import Conversation
from .engine import Engine
from .request import Completion
from .terminal import Screen, redraws
from .visible import on_terminal
from .watching import MASK, picture

RESET, EXIT = "/reset", "/exit"
INFILL = "/infill "  # what follows it is a text with marked spans


@dataclass(frozen=True, kw_only=True)
class ChatConfig:
    """What is asked, and how the answer is shown."""

    model: Literal[tuple(METHODS)] = arg(  # type: ignore[valid-type]  # names of a table
        "llada", f"one of {', '.join(METHODS)}"
    )
    prompt: str | None = arg(
        None,
        "answer this and leave (default: a conversation, from the terminal or from piped lines)",
    )
    system: str | None = arg(None, "system message at the beginning of every conversation")
    chat: Literal["auto", "true", "false"] = arg(
        "auto",
        "render the tokenizer's chat template (auto: where it has one); without it every "
        "line is a prompt of its own",
    )
    stream: bool = arg(
        True, f"redraw the answer at every step, {MASK} for a masked token; on a terminal only"
    )

    def __post_init__(self) -> None:
        if self.prompt is not None and not self.prompt.strip():
            raise ValueError(
                "prompt is empty: give some text, or leave --prompt out for a conversation"
            )
        if self.system is not None and self.chat == "false":
            raise ValueError("system has no effect with chat=false: leave one of them out")


def run(config: ChatConfig, options: dict[str, str]) -> None:
    """Load the model and talk, until there is nothing left to answer."""
    defaults = {"gen_length": SamplerConfig.gen_length, "overlong": "error"}
    engine = Engine(config.model, **{**defaults, **options})
    screen = Screen(sys.stdout)
    conversation = Conversation(engine, _as_chat(config, engine), config.system)
    if config.stream and redraws(sys.stdout):

        def draw(answer: Sequence[int]) -> None:
            screen.draw(picture(engine, answer))

        engine.watch(draw)
    if config.prompt is None:
        talk(conversation, screen)
    else:
        answer(conversation, config.prompt, screen)


def _as_chat(config: ChatConfig, engine: Engine) -> bool:
    """Whether lines are rendered through the tokenizer's chat template; says so where not."""
    has_template = bool(engine.tokenizer.chat_template)
    if not has_template and (config.chat == "true" or config.system is not None):
        raise ValueError(
            "chat and system need a chat template, and this tokenizer has none: leave them out, "
            "or pass tokenizer=FOLDER"
        )
    if config.chat != "auto":
        return config.chat == "true"
    if not has_template:
        print(
            "this tokenizer has no chat template: every line is a prompt of its own",
            file=sys.stderr,
        )
    return has_template


def talk(conversation: Conversation, screen: Screen) -> None:
    """Turns from standard input until it ends, or says so."""
    interactive = sys.stdin.isatty()
    if isinstance(sys.stdin, io.TextIOWrapper):
        # as in a C locale: the engine refuses the line, not the stream
        sys.stdin.reconfigure(errors="surrogateescape")
    if interactive:
        with suppress(ImportError):  # absent on Windows; gives input() history and editing
            import readline  # noqa: F401
        print(
            f"{RESET} begins a new conversation, {INFILL}TEXT<|infill:8|>TEXT fills in a span, "
            f"{EXIT} leaves",
            file=sys.stderr,
        )
    while (line := _read_line(interactive)) is not None:
        if line.strip() == EXIT:
            return
        if line.strip() == RESET:
            conversation.reset()
        elif line.strip() and interactive:
            _answer_or_tell(conversation, line, screen)
        elif line.strip():
            answer(conversation, line, screen)


def _read_line(interactive: bool) -> str | None:
    """The next line of standard input, None at its end."""
    try:
        return input("> " if interactive and sys.stdout.isatty() else "")
    except EOFError:
        if interactive:
            print(file=sys.stderr)
        return None


def _answer_or_tell(conversation: Conversation, line: str, screen: Screen) -> None:
    """Answer a line; a turn that fails or is interrupted leads back to the prompt."""
    try:
        answer(conversation, line, screen)
        return
    except ValueError as error:
        told = f"error: {error}; {RESET} begins anew"
    except KeyboardInterrupt:
        told = "interrupted, the turn is forgotten"
    screen.num_lines = 0  # what is drawn stays
    print(f"\n{told}", file=sys.stderr)


def answer(conversation: Conversation, line: str, screen: Screen) -> None:
    """Ask, or fill in, and print; what it cost goes to a terminal's standard error."""
    if line.startswith(INFILL):
        whole, _, completion = conversation.fill_in(line.removeprefix(INFILL))
    else:
        completion = conversation.ask(line)
        whole = completion.text
    screen.clear()
    tell(whole)
    tell_cost(completion)


def tell(whole: str) -> None:
    """Print a text of a model's: as it is, unless to a terminal, on which none of it may act."""
    print(on_terminal(whole) if sys.stdout.isatty() else whole, flush=True)


def tell_cost(completion: Completion) -> None:
    """What an answer cost, to standard error where that is a terminal."""
    if sys.stderr.isatty():
        judged = f", {completion.num_prm_calls} PRM calls" if completion.num_prm_calls else ""
        print(
            f"[{completion.num_tokens} tokens, {completion.num_forwards} forwards{judged}, "
            f"{completion.seconds:.1f} s]",
            file=sys.stderr,
        )
