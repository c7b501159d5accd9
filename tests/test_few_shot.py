"""The few-shot task: its rules, its splits, and that the examples are needed."""

from __future__ import annotations

import pytest

from benchmarks import frontier
from llada_plugins.tasks.few_shot import (
    ANSWER_LENGTH,
    NUM_EXAMPLES,
    RULES,
    is_right,
    problems,
    rules_of,
    solve,
)
from llada_plugins.tasks.registry import FEW_SHOT
from llada_plugins.tasks.splits import split_of
from training.runs.presets import PRESETS


def naive(rule: str, digits: list[int]) -> list[int]:
    """Every value from all digits up to its place, not from the one before."""
    whole = {"sum": lambda part: sum(part) % 5, "largest": max, "smallest": min}[rule]
    return [whole(digits[: place + 1]) for place in range(len(digits))]


@pytest.mark.parametrize("rule", RULES)
def test_an_answer_is_the_running_value_of_all_digits_so_far(rule):
    for prompt, _ in problems("train", 40):
        question = prompt.removesuffix("=").split(";")[-1]
        digits = [int(digit) for digit in question]
        assert solve(rule, question) == "".join(map(str, naive(rule, digits)))


def test_the_answer_is_the_only_one_that_is_right():
    for prompt, answer in problems("test", 60):
        assert is_right(prompt, answer) and is_right(prompt, f" {answer}\n")
        assert len(answer) == ANSWER_LENGTH and not is_right(prompt, answer[:-1])
        examples = prompt.split(";")[:-1]
        assert len(examples) == NUM_EXAMPLES
        assert [solve(rule, prompt.split(";")[-1][:-1]) for rule in rules_of(examples)] == [answer]
        wrong = str((int(answer[-1]) + 1) % 5)
        assert not is_right(prompt, answer[:-1] + wrong)


def test_the_question_alone_does_not_say_the_rule():
    found = problems("test", 100)
    questions = [prompt.split(";")[-1][:-1] for prompt, _ in found]
    several = [len({solve(rule, question) for rule in RULES}) for question in questions]
    assert sum(number == len(RULES) for number in several) > 80


def test_splits_never_meet_and_a_longer_list_begins_with_the_shorter():
    for split in ("train", "validation", "test"):
        found = problems(split, 50)
        assert {split_of(prompt.split(";")[-1][:-1]) for prompt, _ in found} == {split}
        assert problems(split, 20) == found[:20] != problems(split, 20, seed=1)
    with pytest.raises(ValueError, match="split must be one of train, validation, test, got 'dev'"):
        problems("dev", 1)


def test_presets_train_on_two_examples_and_then_on_all():
    short, whole = PRESETS["few_shot_short"], PRESETS["few_shot"]
    assert whole.model == "./outputs/few_shot_short"
    for preset, number in ((short, 2), (whole, NUM_EXAMPLES)):
        assert preset.pairs.keywords.get("num_examples", NUM_EXAMPLES) == number


def test_the_frontier_measures_its_caches_in_three_blocks():
    cached = [each for each in frontier.settings(FEW_SHOT, False) if each.curve.startswith("cache")]
    assert len(cached) == 2 * len(frontier.CACHES)
    assert {each.options["block_length"] for each in cached} == {2}
