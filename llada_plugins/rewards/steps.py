"""Answers as solutions: which steps an answer in work consists of, and which of its
blocks each step belongs to.

Between a Review, which compares blocks of tokens, and a process reward model, which
reads the steps of a text. Steps are always scored in the context of the whole solution
so far, and text that follows an end token is no part of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from llada_plugins.models.text import before_end

from .block_review import Scorer, Scores
from .process_reward_model import StepScorer, TooLong

StepSplit = Literal["block", "line", "blank_line"]
SEPARATORS = {"line": r"\n+", "blank_line": r"\n[^\S\n]*\n\s*"}


class Step(NamedTuple):
    """A step of a solution."""

    text: str
    blocks: range  # the blocks its characters come from


def block_ends(
    answer: Sequence[int], block: int, ends: Sequence[int], decode: Callable[[Sequence[int]], str]
) -> tuple[str, list[int]]:
    """The text of the answer before its first end token, and where in it each block ends."""
    kept = before_end(answer, ends)
    whole = decode(kept)
    # a character whose bytes are spread over two blocks belongs to the later one
    edges = [len(_common(decode(kept[:stop]), whole)) for stop in range(block, len(answer), block)]
    return whole, [*edges, len(whole)]


def split_steps(text: str, edges: Sequence[int], by: StepSplit) -> list[Step]:
    """The steps of `text`, none of them blank; edges: where each block ends in it.

    block: a step a block. line, blank_line: a step lies between newlines or blank
    lines, and may touch several blocks.
    """
    starts = [0, *edges[:-1]]
    if by == "block":
        spans = list(zip(starts, edges))
    else:
        cuts = [match.span() for match in re.finditer(SEPARATORS[by], text)]
        spans = list(
            zip([0, *(stop for _, stop in cuts)], [*(start for start, _ in cuts), len(text)])
        )
    steps = []
    for start, stop in spans:
        piece = text[start:stop]
        start, stop = (
            start + len(piece) - len(piece.lstrip()),
            stop - len(piece) + len(piece.rstrip()),
        )
        if start < stop:
            touched = [
                number
                for number, (first, last) in enumerate(zip(starts, edges))
                if first < stop and last > start
            ]
            steps.append(Step(text[start:stop], range(touched[0], touched[-1] + 1)))
    return steps


def block_scorer(
    scorer: StepScorer,
    questions: Sequence[str],
    *,
    block: int,
    ends: Sequence[int],
    decode: Callable[[Sequence[int]], str],
    by: StepSplit,
    shorten: Callable[[int], None] | None = None,
) -> Scorer:
    """Scores of the blocks of answers to `questions`: the mean of the steps that touch
    a block (as in LLaDA-R3), None without any.

    shorten: told the rows whose question loses its beginning, since the scorer's
    context would not hold it; a solution that alone is too long has no scores. Without
    it, such a solution is a ValueError.
    """

    def judge(rows: Sequence[int], steps: Sequence[list[str]]) -> list[Scores]:
        try:
            return scorer.score([(questions[row], each) for row, each in zip(rows, steps)])
        except TooLong:
            if shorten is None:
                raise
        asked = [scorer.shortened(questions[row], each) for row, each in zip(rows, steps)]
        for row, question in zip(rows, asked):
            if question != questions[row]:
                shorten(row)
        fitting = [(question, each) for question, each in zip(asked, steps) if question is not None]
        values = iter(scorer.score(fitting) if fitting else [])
        return [
            [None] * len(each) if question is None else next(values)
            for question, each in zip(asked, steps)
        ]

    def score(rows: Sequence[int], answers: Sequence[Sequence[int]]) -> list[Scores]:
        steps = [split_steps(*block_ends(answer, block, ends, decode), by) for answer in answers]
        judged = [number for number, each in enumerate(steps) if each]
        texts = [[step.text for step in steps[number]] for number in judged]
        values = judge([rows[number] for number in judged], texts) if judged else []
        result: list[Scores] = [[None] * -(-len(answer) // block) for answer in answers]
        for number, scores in zip(judged, values):
            for index in range(len(result[number])):
                touching = [
                    value
                    for step, value in zip(steps[number], scores)
                    if index in step.blocks and value is not None
                ]
                result[number][index] = sum(touching) / len(touching) if touching else None
        return result

    return score


def _common(prefix: str, whole: str) -> str:
    """What `prefix` shares with the beginning of `whole`: the last character of a torn
    byte sequence decodes to a replacement sign.
    """
    length = 0
    while length < min(len(prefix), len(whole)) and prefix[length] == whole[length]:
        length += 1
    return prefix[:length]
