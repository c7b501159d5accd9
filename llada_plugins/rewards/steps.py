"""Answers as solutions: steps of text in place of blocks of tokens.

Between a Review, which compares blocks of tokens, and a process reward model, which
reads the steps of a text. Steps are always scored in the context of the whole solution
so far, and text that follows an end token is no part of it.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from llada_plugins.models.text import before_end

from .block_review import Scorer, Scores
from .step_scorer import Heard, StepScorer, TooLong

StepSplit = Literal["block", "line", "blank_line"]
SEPARATORS = {"line": r"\n+", "blank_line": r"\n[^\S\n]*\n\s*"}


class ReasoningStep(NamedTuple):
    """A step of a solution."""

    text: str
    blocks: range  # the blocks its characters come from


class Span(NamedTuple):
    """Characters of a text."""

    start: int
    stop: int


def block_ends(
    answer: Sequence[int],
    block: int,
    ends: Sequence[int],
    decode: Callable[[Sequence[int]], str],
    tail: int = 0,
) -> tuple[str, list[int]]:
    """The text of the answer before its first end token, and where in it each block ends.

    tail: tokens of the first block that are the prompt's.
    """
    kept = before_end(answer, ends)
    whole = decode(kept)
    # a character whose bytes are spread over two blocks belongs to the later one
    edges = [
        _common(decode(kept[:stop]), whole) for stop in range(block - tail, len(answer), block)
    ]
    return whole, [*edges, len(whole)]


def split_steps(text: str, edges: Sequence[int], by: StepSplit) -> list[ReasoningStep]:
    """The steps of `text`, none of them blank; edges: where each block ends in it.

    block: a step a block. line, blank_line: a step lies between newlines or blank
    lines, and may touch several blocks.
    """
    blocks = [Span(start, stop) for start, stop in zip([0, *edges[:-1]], edges)]
    pieces = blocks if by == "block" else _between(text, SEPARATORS[by])
    steps = []
    for piece in pieces:
        start, stop = _stripped(text, piece)
        if start == stop:
            continue
        touched = [
            number
            for number, block in enumerate(blocks)
            if block.start < stop and block.stop > start
        ]
        steps.append(ReasoningStep(text[start:stop], range(touched[0], touched[-1] + 1)))
    return steps


def _between(text: str, separator: str) -> list[Span]:
    """The pieces of a text between matches of a regular expression."""
    cuts = [Span(*match.span()) for match in re.finditer(separator, text)]
    starts = [0, *(cut.stop for cut in cuts)]
    stops = [*(cut.start for cut in cuts), len(text)]
    return [Span(start, stop) for start, stop in zip(starts, stops)]


def _stripped(text: str, span: Span) -> Span:
    """The span without white space at its ends; an empty one where there is nothing else."""
    piece = text[span.start : span.stop]
    start = span.start + len(piece) - len(piece.lstrip())
    return Span(start, start + len(piece.strip()))


class Said(NamedTuple):
    """What was said of the steps of a row's answers, while these have so many blocks."""

    num_blocks: int
    scores: Heard


@dataclass(frozen=True, kw_only=True)
class StepJudge:
    """A process reward model for the answers to some questions.

    Answers are compared with others of as many blocks. Steps that read the same then have
    the same score, though each is scored in a batch of its own: else rounding would choose
    between answers whose tokens differ and whose text does not.
    """

    scorer: StepScorer
    questions: Sequence[str]
    # told the rows whose question loses its beginning; None: too long is an error
    shorten: Callable[[int], None] | None
    said: dict[int, Said] = field(default_factory=dict)  # by row

    def begin(self, row: int, num_blocks: int) -> None:
        """Forget what was said of the row's answers of other numbers of blocks."""
        if row not in self.said or self.said[row].num_blocks != num_blocks:
            self.said[row] = Said(num_blocks, {})

    def __call__(self, rows: Sequence[int], solutions: Sequence[list[str]]) -> Sequence[Scores]:
        """Scores of the steps of each solution, an answer to the question of its row."""
        asked = [self.questions[row] for row in rows]
        heard = [self.said[row].scores for row in rows]
        try:
            return self.scorer.score(list(zip(asked, solutions)), heard)
        except TooLong:
            if self.shorten is None:
                raise
        return self._score_shortened(rows, solutions, self.shorten)

    def _score_shortened(
        self, rows: Sequence[int], solutions: Sequence[list[str]], shorten: Callable[[int], None]
    ) -> Sequence[Scores]:
        fitting: list[tuple[str, list[str]]] = []
        places = []  # of the fitting ones
        scores: list[Scores] = [[None] * len(steps) for steps in solutions]
        for place, (row, steps) in enumerate(zip(rows, solutions)):
            question = self.scorer.shortened(self.questions[row], steps)
            if question != self.questions[row]:
                shorten(row)
            if question is not None:
                fitting.append((question, steps))
                places.append(place)
        if fitting:
            heard = [self.said[rows[place]].scores for place in places]
            for place, values in zip(places, self.scorer.score(fitting, heard)):
                scores[place] = values
        return scores


def block_scorer(
    scorer: StepScorer,
    questions: Sequence[str],
    *,
    block: int,
    ends: Sequence[int],
    decode: Callable[[Sequence[int]], str],
    by: StepSplit,
    shorten: Callable[[int], None] | None = None,
    tails: Sequence[int] | None = None,
) -> Scorer:
    """Scores of the blocks of answers to `questions`.

    The mean of the steps that touch a block (as in LLaDA-R3), None without any.
    shorten: told the rows whose question loses its beginning, since the scorer's
    context would not hold it; a solution that alone is too long has no scores. Without
    it, such a solution is a ValueError. tails: of each row, how many tokens of its answer's
    first block are the prompt's (default: none).
    """
    judge = StepJudge(scorer=scorer, questions=questions, shorten=shorten)

    def score(rows: Sequence[int], answers: Sequence[Sequence[int]]) -> list[Scores]:
        begun = [tails[row] if tails else 0 for row in rows]  # tokens of first blocks
        solutions = [
            split_steps(*block_ends(answer, block, ends, decode, tail), by)
            for answer, tail in zip(answers, begun)
        ]
        lengths = [math.ceil((tail + len(answer)) / block) for answer, tail in zip(answers, begun)]
        for row, num_blocks in zip(rows, lengths):
            judge.begin(row, num_blocks)
        judged = [number for number, steps in enumerate(solutions) if steps]
        values: dict[int, Scores] = {}
        if judged:
            texts = [[step.text for step in solutions[number]] for number in judged]
            values = dict(zip(judged, judge([rows[number] for number in judged], texts)))
        return [
            _of_blocks(steps, values.get(number, []), num_blocks)
            for number, (steps, num_blocks) in enumerate(zip(solutions, lengths))
        ]

    return score


def _of_blocks(steps: Sequence[ReasoningStep], values: Scores, num_blocks: int) -> Scores:
    """For each block, the mean value of the steps that touch it."""
    scores: list[float | None] = []
    for number in range(num_blocks):
        touching = [
            value
            for step, value in zip(steps, values)
            if number in step.blocks and value is not None
        ]
        scores.append(sum(touching) / len(touching) if touching else None)
    return scores


def _common(prefix: str, whole: str) -> int:
    """How many characters `prefix` shares with the beginning of `whole`.

    Not all: the last character of a torn byte sequence decodes to a replacement sign.
    """
    return len(os.path.commonprefix([prefix, whole]))
