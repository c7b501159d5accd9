"""Running totals by a rule that worked examples show: a long prompt that is mostly examples.

A row of digits from 0 to 4 is answered by a running value under one of three rules: the sum
modulo 5, the largest and the smallest so far. The prompt does not name the rule, so
the examples are needed, but for no more than that: every digit of the answer follows from
the rule, the last question and the digit before it. Long few-shot prompts of other tasks
are like that, and caches that keep the prompt were published for them. In text each of 8
examples is a question, "=", its answer and ";":

    prompt  "311024=340021;…;213402="   119 characters
    answer  "231002"                    its running sum

Train, validation and test never meet: a hash of the last question decides to which
split a problem belongs. The random streams come from `random.Random`, so they are the same on every
platform.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import NamedTuple

from .splits import Split, check_split, split_of

DEFAULT_NUM_TEST = 500
ANSWER_LENGTH = 6
NUM_EXAMPLES = 8
BASE = 5
# the value so far, the next digit -> the next value
RULES: dict[str, Callable[[int, int], int]] = {
    "sum": lambda value, digit: (value + digit) % BASE,
    "largest": max,
    "smallest": min,
}


class FewShotProblem(NamedTuple):
    """Examples with a question, and its one answer."""

    prompt: str
    answer: str  # ANSWER_LENGTH digits


def problems(
    split: Split, num: int, seed: int = 0, num_examples: int = NUM_EXAMPLES
) -> list[FewShotProblem]:
    """`num` problems drawn independently. A longer list starts with the shorter one."""
    check_split(split)
    stream = random.Random(f"few_shot {split} {seed}")
    drawn: list[FewShotProblem] = []
    while len(drawn) < num:
        rule = stream.choice(list(RULES))
        *examples, question = (_question(stream) for _ in range(num_examples + 1))
        if split_of(question) == split:
            shown = "".join(f"{each}={solve(rule, each)};" for each in examples)
            drawn.append(FewShotProblem(f"{shown}{question}=", solve(rule, question)))
    return drawn


def _question(stream: random.Random) -> str:
    return "".join(str(stream.randrange(BASE)) for _ in range(ANSWER_LENGTH))


def solve(rule: str, question: str) -> str:
    """The running values of the question's digits under this rule."""
    return "".join(map(str, accumulate(map(int, question), RULES[rule])))


def rules_of(examples: Sequence[str]) -> list[str]:
    """Which rules explain all of these examples, each "question=answer"."""
    pairs = [example.split("=") for example in examples]
    return [
        rule for rule in RULES if all(solve(rule, question) == answer for question, answer in pairs)
    ]


def is_right(prompt: str, answer: str) -> bool:
    """Whether `answer`, stripped, is the last question's under a rule that fits all examples."""
    *examples, question = prompt.removesuffix("=").split(";")
    return answer.strip() in [solve(rule, question) for rule in rules_of(examples)]
