"""What the page shows while a question is answered: after each step, and when all is done."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from llada_plugins.diffusion.batch_limit import OutOfMemory
from llada_plugins.engine.record_options import SUFFIX
from llada_plugins.files.atomic import write_whole
from llada_plugins.reports.recorded import read_runs
from llada_plugins.reports.viewer import viewer
from llada_plugins.rewards.step_scorer import ScoreError

from . import drawing
from .asking import NAMES, Models, Question, Setting
from .job import Done, Job, State

PAGE = "view.html"
INTERVAL = 0.05  # seconds between two pictures of an answer, at least
# what is told in one line; anything else is a fault of the program
MISTAKES = (ValueError, OSError, ImportError, ScoreError, OutOfMemory)
Turns = list[dict[str, str]]


class Files(NamedTuple):
    """What can be saved of an answer."""

    trajectory: Path  # the viewer's file
    page: Path  # the viewer's page of it


class Shown(NamedTuple):
    """What stands on the page."""

    status: str
    answers: tuple[str, ...] = ("",) * len(NAMES)  # of each setting, HTML
    steps: str = ""  # the viewer within the page, HTML
    files: Files | None = None
    turns: Turns | None = None  # of the conversation; None: as they were


def answered(
    models: Models,
    question: Question,
    settings: Sequence[Setting],
    folder: Path,
    pause: float = 0.0,
) -> Iterator[Shown]:
    """The page after each step, at most every INTERVAL, and with everything in the end.

    folder: for the files, which are there while the last is shown. Closing the iterator
    stops the work. Raises MISTAKES.
    """
    files = Files(folder / SUFFIX, folder / PAGE)
    job = Job(lambda show: models.answer(question, settings, files.trajectory, show), pause)
    shown = Shown(drawing.status("decoding"))
    yield shown
    done: list[Done] = []
    before: tuple[int, ...] = ()
    last = 0.0
    for state in job:
        if isinstance(state, Done):
            done.append(state)
            drawn = drawing.done(state.completion)
        else:
            drawn = drawing.in_work(models.first, before, state.tokens)
            before = state.tokens
        answers = [*shown.answers]
        answers[state.setting] = drawn
        shown = shown._replace(answers=tuple(answers))
        if isinstance(state, State) and time.perf_counter() - last >= INTERVAL:
            last = time.perf_counter()
            yield shown
    write_whole(files.page, viewer(read_runs([files.trajectory])))
    if question.chat:  # the conversation ends with the first answer
        shown = shown._replace(answers=("", *shown.answers[1:]))
    yield shown._replace(
        status=drawing.status("\n".join(_told(each, len(settings)) for each in done)),
        steps=drawing.framed(files.page.read_text(encoding="utf-8")),
        files=files,
        turns=_continued(question, done) if question.chat else None,
    )


def _told(done: Done, num_settings: int) -> str:
    """What an answer cost, and what decoded it."""
    which = f"{NAMES[done.setting]} setting: " if num_settings > 1 else ""
    return f"{which}{drawing.costs(done.completion)}\n{done.decoded_with}"


def _continued(question: Question, done: Sequence[Done]) -> Turns:
    """The conversation with the answer of the first setting."""
    asked = {"role": "user", "content": question.prompt}
    answer = {"role": "assistant", "content": done[0].completion.text}
    return [*map(dict, question.earlier), asked, answer]
