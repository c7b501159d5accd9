"""An answer step by step, as lines of text; with colours where there is a terminal and rich."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

from llada_plugins.engine.visible import visible
from llada_plugins.engine.watching import MASK
from llada_plugins.sampling.frames import UNKNOWN, Frame

from .recorded import Recorded, walk
from .trajectory import Change

if TYPE_CHECKING:
    from rich.console import Console

PROMPT = 400  # characters of its end that are shown
VERDICTS = {True: "right", False: "wrong", None: "not graded"}
# as rich names them
KEPT, TAKEN = "bold green", "bold red"


class Piece(NamedTuple):
    """A token of a state, as it is shown."""

    text: str
    style: str  # "" where it stood before


class State(NamedTuple):
    """An answer after a step."""

    number: int
    pieces: list[Piece]
    note: str


def states(answer: Recorded) -> Iterator[State]:
    """What is shown of each frame of an answer."""
    pieces = answer.line["pieces"]

    def word(token: int) -> str:
        return MASK if token == UNKNOWN else visible(pieces.get(str(token), f"[{token}]"))

    before: Frame | None = None
    for number, (frame, gone) in enumerate(walk(answer)):
        taken = {change.position for change in gone}
        shown = []
        for place, token in enumerate(frame.tokens.tolist()):
            new = before is not None and token != UNKNOWN and token != before.tokens[place]
            style = TAKEN if place in taken else KEPT if new else ""
            shown.append(Piece(word(token), style))
        yield State(number, shown, _note(gone, frame, word))
        before = frame


def _note(gone: Sequence[Change], frame: Frame, word: Callable[[int], str]) -> str:
    """What became of the tokens that are gone in a frame."""
    back, replaced = [], []
    for change in gone:
        then = int(frame.tokens[change.position])
        later = "" if then == change.final else f", finally {word(change.final)!r}"
        told = f"{word(change.first)!r} at {change.position}"
        if then == UNKNOWN:
            back.append(told + later)
        else:
            replaced.append(f"{told} by {word(then)!r}{later}")
    notes = {"masked again": back, "replaced": replaced}
    return "; ".join(f"{what}: {'; '.join(each)}" for what, each in notes.items() if each)


def heading(answer: Recorded, name: str) -> str:
    """Lines above the states."""
    line = answer.line
    question = " ".join(str(each) for each in (line["task"], line["doc_id"]) if each is not None)
    forwards = max(1, line["num_forwards"])
    return "\n".join(
        [
            f"{visible(name)}: {visible(question)}, {VERDICTS[answer.verdict]}",
            f"{line['num_tokens']} tokens, {line['num_forwards']} forwards, "
            f"{line['num_tokens'] / forwards:.2f} tokens a forward, {line['seconds']:.2f} s",
            f"prompt: {visible(line['prompt'][-PROMPT:])}",
        ]
    )


def show(answer: Recorded, name: str, out: TextIO) -> None:
    """Write an answer's states, one after another."""
    console = _console(out)
    out.write(heading(answer, name) + "\n")
    for state in states(answer):
        step = f"  after step {state.number:>3}  "
        note = f"    {state.note}" if state.note else ""
        if console is None:
            out.write(f"{step}{''.join(piece.text for piece in state.pieces)}{note}\n")
        else:
            console.print(_coloured(step, state, note), soft_wrap=True)
    out.write("\n")


def _console(out: TextIO) -> Console | None:
    """rich's console for a terminal; None where the output is none, or rich is not installed."""
    if not out.isatty():
        return None
    try:
        from rich.console import Console
    except ImportError:
        return None
    return Console(file=out, highlight=False)


def _coloured(step: str, state: State, note: str) -> Any:
    from rich.text import Text

    # Text takes no markup from what it is given
    return Text.assemble(step, *((piece.text, piece.style) for piece in state.pieces), note)
