"""Talk to a model in the terminal and watch its answers come out of the masks.

    python -m llada_plugins.chat --pretrained DIR --gen_length 256 --block_length 32 --sampling_method semi_ar_padding
    python -m llada_plugins.chat --prompt "..1.4...........=" --chat false --gen_length 16        (the tiny model in the package)

A line is a turn; /reset begins a new conversation, /exit, Ctrl-D or Ctrl-C at the
prompt leave, Ctrl-C during an answer drops that turn. Every option of the model is a
flag of the same name: --model NAME --help lists them. Standard output has the answers
and nothing else.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from llada_plugins.diffusion.denoiser import Canvas, Denoiser, Prediction
from llada_plugins.engine.conversation import Conversation
from llada_plugins.engine.engine import Engine
from llada_plugins.engine.flags import read_flags
from llada_plugins.engine.terminal import Screen
from llada_plugins.methods.table import METHODS
from llada_plugins.models import text
from llada_plugins.options.fields import arg
from llada_plugins.sampling.config import SamplerConfig

USAGE = "python -m llada_plugins.chat [--prompt TEXT] [--model NAME] [--OPTION VALUE ...]"
MASK = "░"
INTERRUPTED = 130  # what shells report of a program that Ctrl-C ended


@dataclass(frozen=True, kw_only=True)
class ChatConfig:
    """What is asked, and how the answer is shown."""

    model: Literal[tuple(METHODS)] = arg("llada", f"one of {', '.join(METHODS)}")
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


def picture(engine: Engine, answer: Sequence[int]) -> str:
    """An answer in work as text, up to its first end token, MASK for each masked token."""
    kept = text.before_end(answer, engine.special.ends)
    runs = [
        (masked, list(run))
        for masked, run in groupby(kept, lambda token: token == engine.special.mask)
    ]
    string = "".join(
        MASK * len(run) if masked else text.decode(engine.tokenizer, run, ())
        for masked, run in runs
    )
    return text.without_special_tokens(engine.tokenizer, string)


def watched(denoise: Denoiser, show: Callable[[Sequence[int]], None]) -> Denoiser:
    """The same denoiser; `show` sees the first row's answer before every forward, under
    a process reward model the first candidate's.

    Not an on_step observer: those learn what a step changes, and a review's refills
    begin from states that no step made.
    """

    def denoise_watched(canvas: Canvas, window: slice) -> Prediction:
        show(canvas.tokens[0, int(canvas.answer_start[0]) :].tolist())
        return denoise(canvas, window)

    return denoise_watched


def answer(conversation: Conversation, line: str, screen: Screen) -> None:
    """Ask and print; what it cost goes to a terminal's standard error."""
    completion = conversation.ask(line)
    screen.clear()
    print(completion.text, flush=True)
    if sys.stderr.isatty():
        judged = f", {completion.num_prm_calls} PRM calls" if completion.num_prm_calls else ""
        print(
            f"[{completion.num_tokens} tokens, {completion.num_forwards} forwards{judged}, "
            f"{completion.seconds:.1f} s]",
            file=sys.stderr,
        )


def talk(conversation: Conversation, screen: Screen) -> int:
    """Turns from standard input until it ends. On a terminal a turn that fails or is
    interrupted leads back to the prompt.
    """
    interactive = sys.stdin.isatty()
    if isinstance(sys.stdin, io.TextIOWrapper):
        # as in a C locale: the engine refuses the line, not the stream
        sys.stdin.reconfigure(errors="surrogateescape")
    if interactive:
        with suppress(ImportError):  # absent on Windows; gives input() history and editing
            import readline  # noqa: F401
        print("/reset begins a new conversation, /exit leaves", file=sys.stderr)
    while True:
        try:
            line = input("> " if interactive and sys.stdout.isatty() else "")
        except EOFError:
            print(end="\n" if interactive else "", file=sys.stderr)
            return 0
        if line.strip() == "/exit":
            return 0
        if line.strip() == "/reset":
            conversation.reset()
        elif line.strip():
            try:
                answer(conversation, line, screen)
            except (ValueError, KeyboardInterrupt) as error:
                if not interactive:
                    raise
                screen.num_lines = 0  # what is drawn stays
                told = (
                    f"error: {error}; /reset begins anew"
                    if isinstance(error, ValueError)
                    else "interrupted, the turn is forgotten"
                )
                print(f"\n{told}", file=sys.stderr)


def run(config: ChatConfig, options: dict[str, str]) -> int:
    """Load the model and talk; returns the exit status."""
    engine = Engine(
        config.model, **{"gen_length": SamplerConfig.gen_length, "overlong": "error", **options}
    )
    chat = bool(engine.tokenizer.chat_template) if config.chat == "auto" else config.chat == "true"
    if not engine.tokenizer.chat_template and (config.chat == "true" or config.system is not None):
        raise ValueError(
            "chat and system need a chat template, and this tokenizer has none: leave them out, "
            "or pass tokenizer=FOLDER"
        )
    if not chat and config.chat == "auto":
        print(
            "this tokenizer has no chat template: every line is a prompt of its own",
            file=sys.stderr,
        )
    screen = Screen(sys.stdout)
    if config.stream and sys.stdout.isatty():
        engine.denoise = watched(engine.denoise, lambda ids: screen.draw(picture(engine, ids)))
    conversation = Conversation(engine, chat, config.system)
    if config.prompt is None:
        return talk(conversation, screen)
    answer(conversation, config.prompt, screen)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The user's mistakes end it with one line and status 1."""
    try:
        return run(*read_flags(ChatConfig, argv, usage=USAGE, description=__doc__))
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
