"""What becomes of requests that do not fit a context.

They are cut from the left, skipped or refused, and told. The default is lm-eval's rule:
of the prompt, the last tokens that leave room for the answer.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from llada_plugins.likelihood.estimate import Mark

if TYPE_CHECKING:
    from llada_plugins.rewards.step_scorer import StepScorer

    from .request import Request

logger = logging.getLogger(__name__)

MARKS: dict[str, Mark] = {"truncate": "truncated", "skip": "skipped"}
OVERLONG = (*MARKS, "error")  # values of the option
PRM_REMEDY = "give a smaller gen_length, or raise prm_max_length if it is below the PRM's context"
DONE = {"truncated": "cut from the left", "skipped": "skipped"}


class Overlong:
    """An engine's requests that did not fit: what is done with them, how many there were."""

    def __init__(
        self, rule: str, max_length: int, *, shown_after: int = 0, needed_before: int = 0
    ) -> None:
        """The rule for a context of max_length tokens.

        shown_after: tokens that a likelihood shows after its answer. needed_before: those that
        an answer needs before it to be scored.
        """
        self.rule, self.max_length = rule, max_length
        self.scored_length = max_length - shown_after  # of context and answer
        self.longest_answer = self.scored_length - needed_before
        self.counts: Counter[Mark] = Counter()

    def counted(self, mark: Mark | None) -> Mark | None:
        """The mark of a request that is done; a prompt and its question count once."""
        if mark is not None:
            self.counts[mark] += 1
        return mark

    def marks(
        self, fits: Sequence[bool], describe: Callable[[int], str], remedy: str
    ) -> list[Mark | None]:
        """What is done with each request of a call, None where it fits; one warning tells how many.

        describe: what is too long of the request of that number. Raises ValueError for
        all of them under "error".
        """
        numbers = [number for number, fit in enumerate(fits) if not fit]
        if not numbers:
            return [None] * len(fits)
        told = describe(numbers[0])
        if self.rule == "error":
            more = f" ({len(numbers)} of {len(fits)} requests do not fit)" if len(fits) > 1 else ""
            raise ValueError(f"{told}{more}: {remedy}, or set overlong=truncate or skip")
        mark = MARKS[self.rule]
        logger.warning(
            "%d of %d requests do not fit and are %s (overlong=%s); the first, number %d: %s",
            len(numbers),
            len(fits),
            DONE[mark],
            self.rule,
            numbers[0] + 1,
            told,
        )
        return [None if fit else mark for fit in fits]

    def prompts(
        self, requests: Sequence[Request], prompts: Sequence[list[int]], after: Sequence[int]
    ) -> tuple[list[list[int]], list[Mark | None]]:
        """The tokens of every prompt that are read, the last ones, and what is done with it.

        after: tokens that stand after each answer, where spans of a text are filled in.
        """
        if not all(prompt or request.rest for prompt, request in zip(prompts, requests)):
            raise ValueError("a prompt is empty: give at least one token of text")
        rooms = [
            request.sampler.blocks.room(self.max_length) - number
            for request, number in zip(requests, after)
        ]
        limit = f"the context of {self.max_length} tokens"
        for request, prompt, room in zip(requests, prompts, rooms):
            if room < min(1, len(prompt)):
                raise ValueError(_no_room(request, limit))

        def describe(number: int) -> str:
            answer = requests[number].sampler.answer_in_words
            if after[number]:
                answer = f"{answer} and {after[number]} tokens after it"
            return (
                f"a prompt of {len(prompts[number])} tokens and {answer} exceed {limit} "
                f"(prompt {ends_of(requests[number].prompt)})"
            )

        fits = [len(prompt) <= room for prompt, room in zip(prompts, rooms)]
        marks = self.marks(fits, describe, "use fewer shots or a smaller gen_length")
        return [prompt[-room:] if room else [] for prompt, room in zip(prompts, rooms)], marks

    def questions(
        self,
        requests: Sequence[Request],
        questions: Sequence[str],
        marks: Sequence[Mark | None],
        scorer: StepScorer,
    ) -> tuple[list[str], list[Mark | None]]:
        """What a process reward model is told was asked, and what is done with the request.

        A question loses its beginning where an answer of full length would not fit beside it.
        marks: of the prompts.
        """
        limit = f"the PRM's context of {scorer.max_length} tokens"
        short: list[str] = []
        for request, question in zip(requests, questions):
            # a step of one token stands for the answer, whose tokens in the PRM's
            # vocabulary are not known before it is there
            end = scorer.shortened(question, ["."], request.sampler.decoded_length - 1)
            if end is None:
                raise ValueError(
                    f"a question and {request.sampler.answer_in_words} exceed {limit}, "
                    f"however short the question: {PRM_REMEDY}"
                )
            short.append(end)

        def describe(number: int) -> str:
            answer = requests[number].sampler.answer_in_words
            question = ends_of(questions[number])
            return f"a question and {answer} exceed {limit} (question {question})"

        # what is skipped already is not told and counted twice
        fits = [
            end == question or mark == "skipped"
            for end, question, mark in zip(short, questions, marks)
        ]
        more = self.marks(fits, describe, PRM_REMEDY)
        return short, [mark or other for mark, other in zip(marks, more)]

    def pairs(
        self,
        pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
        decode: Callable[[Sequence[int]], str],
    ) -> tuple[list[tuple[list[int], list[int]]], list[Mark | None]]:
        """Context and answer as they are scored, the last tokens, and what is done with them."""
        sizes = [(len(context), len(answer)) for context, answer in pairs]

        def describe(number: int) -> str:
            context, answer = sizes[number]
            which = "context" if context > answer else "answer"
            whole = decode(max(pairs[number], key=len))
            return (
                f"a context of {context} and an answer of {answer} tokens exceed the model's "
                f"context of {self.scored_length} tokens ({which} {ends_of(whole)})"
            )

        fits = [sum(size) <= self.scored_length for size in sizes]
        marks = self.marks(fits, describe, "use fewer shots")
        cut = [[*context, *answer][-self.scored_length :] for context, answer in pairs]
        at = [len(whole) - self.num_scored(answer) for whole, (_, answer) in zip(cut, sizes)]
        return [(whole[:start], whole[start:]) for whole, start in zip(cut, at)], marks

    def num_scored(self, num_tokens: int) -> int:
        """Of how many tokens of an answer a likelihood is: of all, unless it does not fit."""
        return min(num_tokens, self.longest_answer)


def _no_room(request: Request, limit: str) -> str:
    """What is told of a request that fits no context, whatever its prompt."""
    if request.rest:
        return (
            f"a text from its first span on exceeds {limit}, however short what is before it: "
            "shorten the spans, or what comes after"
        )
    return (
        f"a prompt and {request.sampler.answer_in_words} exceed {limit}, "
        "however short the prompt: give a smaller gen_length"
    )


def ends_of(string: str) -> str:
    """Both ends of a text, by which its document is found: few-shot prompts all begin alike."""
    return f"begins {string[:40]!r}, ends {string[-40:]!r}"
