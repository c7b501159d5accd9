"""Nim's rule against a search of the game, the claims about the splits, and the model
in the package on both harnesses' terms.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
from pathlib import Path

import pytest

from llada_plugins.engine.engine import Engine, Request
from llada_plugins.models.folder import TINY, resolve
from llada_plugins.tasks import nim
from llada_plugins.tasks.nim import NimProblem, is_winning, num_positions, problems, split_of

pytestmark = pytest.mark.floats

EVALUATED = ("test", "ood_heaps", "ood_sizes")
HELD_OUT = ("validation", *EVALUATED)
TASKS = Path(__file__).parents[1] / "configs" / "lmeval"


@functools.cache
def wins(heaps: tuple[int, ...]) -> bool:
    """By the game's rules alone: does the player to move win? Not if no move is left,
    else if any move leaves a lost position.
    """
    return any(not wins(after) for after in moves(heaps).values())


def moves(heaps: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Every legal move's text -> the position it leaves."""
    return {
        f"{'ABCDEF'[place]}{left:x}": (*heaps[:place], left, *heaps[place + 1 :])
        for place, size in enumerate(heaps)
        for left in range(size)
    }


def text(heaps: tuple[int, ...]) -> str:
    return "".join(f"{size:x}" for size in heaps).ljust(6, ".") + "="


@pytest.mark.parametrize("num_heaps, largest", [(1, 15), (2, 9), (3, 5), (4, 3)])
def test_exactly_the_moves_that_win_by_search_count(num_heaps, largest):
    every_move = [f"{name}{left:x}" for name in "ABCDEFG" for left in range(16)] + ["##"]
    for heaps in itertools.product(range(1, largest + 1), repeat=num_heaps):
        winning = {move for move, after in moves(heaps).items() if not wins(after)} or {"##"}
        assert {move for move in every_move if is_winning(text(heaps), "......" + move)} == winning


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "B2",
        "367..B2",
        "367....B2",
        "367...b2",
        "367...2B",
        "367...B2B2",
        "367...##",
        "367...B 2",
        "367...B\u0662",
    ],
)
def test_anything_but_eight_characters_with_a_winning_move_is_refused(answer):
    assert is_winning("351...=", "367...B2") and is_winning("351...=", " 367...B2\n")
    assert not is_winning("351...=", answer)


def test_the_running_xors_are_not_judged():
    assert is_winning("351...=", "......B2")


def test_every_answer_shows_the_running_xors_and_the_first_winning_move():
    for split in nim.SPLITS:
        for position, answer in problems(split, 250):
            heaps = [int(size, 16) for size in position.rstrip("=").rstrip(".")]
            assert len(position) == 7
            assert len(answer) == nim.ANSWER_LENGTH
            assert is_winning(position, answer)
            assert answer[:6].rstrip(".") == "".join(
                f"{functools.reduce(int.__xor__, heaps[: n + 1]):x}" for n in range(len(heaps))
            )
            assert answer[6:] == (nim.winning_moves(heaps) or ["##"])[0]


def test_on_request_answers_show_any_of_the_winning_moves():
    drawn: dict[str, set[str]] = {}
    for position, answer in problems("train", 60_000, any_move=True):
        assert is_winning(position, answer)
        drawn.setdefault(position, set()).add(answer[6:])
    assert drawn["222...="] == {"A0", "B0", "C0"} and drawn["123...="] == {"##"}


@pytest.mark.parametrize(
    "split, num_heaps, largest",
    [
        ("train", {2, 3, 4}, range(1, 8)),
        ("validation", {2, 3, 4}, range(1, 8)),
        ("test", {2, 3, 4}, range(1, 8)),
        ("ood_heaps", {5, 6}, range(1, 8)),
        ("ood_sizes", {2, 3, 4}, range(8, 16)),
    ],
)
def test_each_split_has_its_numbers_and_sizes_of_heaps(split, num_heaps, largest):
    positions = [position.rstrip("=").rstrip(".") for position, _ in problems(split, 250)]
    assert {len(heaps) for heaps in positions} <= num_heaps
    assert {int(max(heaps), 16) for heaps in positions} <= set(largest)
    assert all("0" not in heaps for heaps in positions)


def test_positions_that_are_evaluated_do_not_repeat_and_asking_for_too_many_is_an_error():
    parts = [num_positions(split) for split in nim.IN_DISTRIBUTION]
    assert sum(parts) == 7**2 + 7**3 + 7**4 and parts[1:] == [299, 1036]
    assert num_positions("ood_sizes") == sum(15**count - 7**count for count in (2, 3, 4))
    for split in HELD_OUT:
        num = min(1000, num_positions(split))
        assert len({problem.position for problem in problems(split, num)}) == num
    assert len(problems("test", num_positions("test"))) == num_positions("test")
    for split, number in (("test", 1036), ("validation", 299)):
        with pytest.raises(ValueError, match=f"split '{split}' has {number} positions, got num="):
            problems(split, number + 1)


def test_the_evaluated_splits_are_the_same_on_every_machine():
    # golden: sha256 of 500 positions and answers of each split, one a line; printed by
    # this test's own expression
    text = "\n".join(
        f"{position}{answer}" for split in EVALUATED for position, answer in problems(split, 500)
    )
    assert (
        hashlib.sha256(text.encode()).hexdigest()
        == "4203cee6336e23abc83e88a4041058943f64ccf402eaf24687475e3d256af284"
    )


def test_the_validation_split_is_the_same_on_every_machine():
    # golden: sha256 of all of its positions, sorted, one a line
    text = "\n".join(sorted(position for position, _ in problems("validation", 299)))
    assert (
        hashlib.sha256(text.encode()).hexdigest()
        == "aa7062088fcf2d69014de713168e66e92be0eaf834338a26426a904155721040"
    )


def test_a_longer_list_starts_with_the_shorter_one_and_a_seed_changes_it():
    for split in nim.SPLITS:
        assert problems(split, 50)[:20] == problems(split, 20)
        assert problems(split, 20, seed=1) != problems(split, 20)
    assert isinstance(problems("train", 1)[0], NimProblem)


def test_no_evaluated_position_is_ever_trained_on():
    trained = {position for position, _ in problems("train", 60_000)}
    assert {split_of(position) for position in trained} == {"train"}
    assert len(trained) == num_positions("train")
    seen = trained
    for split in HELD_OUT:
        num = min(1000, num_positions(split))
        found = {position for position, _ in problems(split, num, seed=3)}
        assert not seen & found
        seen |= found


def test_an_unknown_split_is_refused_by_name():
    with pytest.raises(
        ValueError,
        match="split must be one of train, validation, test, ood_heaps, ood_sizes, got 'dev'",
    ):
        problems("dev", 1)


def test_shipped_models_have_names_and_an_unknown_one_is_told_them():
    assert resolve(None) == resolve("tiny") == resolve("sudoku4") == TINY
    assert resolve("nim").name == "nim"
    with pytest.raises(
        FileNotFoundError, match="or a model shipped in the package: tiny, sudoku4, nim"
    ):
        resolve("nimm")


# --- the model in the package, and both harnesses -------------------------------------


def answers(engine: Engine, split: str, num: int) -> list[tuple[str, str]]:
    positions = [position for position, _ in problems(split, num)]
    sampler = engine.sampler_for({}, nim.ANSWER_LENGTH)
    found = dict(engine.generate([Request(position, sampler) for position in positions]))
    return [(position, found[number].text) for number, position in enumerate(positions)]


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(pretrained="nim", device="cpu", batch_size=100)


def test_the_model_in_the_package_wins_from_held_out_positions(engine):
    # measured .997 at n = 1000, one character a forward; by chance five errors have .0004
    assert sum(is_winning(*each) for each in answers(engine, "test", 200)) / 200 >= 0.98


@pytest.mark.slow
def test_the_model_in_the_package_has_the_score_that_its_preset_states(engine):
    stated, num = 0.997, num_positions("test")
    right = sum(is_winning(*each) for each in answers(engine, "test", num)) / num
    assert abs(right - stated) < 3 * (stated * (1 - stated) / num) ** 0.5


def test_the_model_in_the_package_is_small():
    assert sum(path.stat().st_size for path in resolve("nim").rglob("*")) < 5e6


@pytest.mark.slow
def test_lm_eval_scores_both_tasks_by_the_rule(engine):
    pytest.importorskip("lm_eval")
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    from llada_plugins.lmeval_models import LLaDA

    found = simple_evaluate(
        LLaDA(pretrained="nim", device="cpu", batch_size=12),
        tasks=["nim", "nim_ood"],
        bootstrap_iters=0,
        task_manager=TaskManager(
            include_path=str(TASKS), include_defaults=False, metadata={"num": 12}
        ),
    )["results"]
    correct = {
        split: [is_winning(*each) for each in answers(engine, split, 12)] for split in EVALUATED
    }
    for task, split in zip(("nim", "nim_ood_heaps", "nim_ood_sizes"), EVALUATED):
        assert found[task]["acc,none"] == pytest.approx(sum(correct[split]) / 12)
    assert found["nim_ood"]["acc,none"] == pytest.approx(
        sum(correct["ood_heaps"] + correct["ood_sizes"]) / 24
    )


@pytest.mark.parametrize("split", EVALUATED)
def test_the_opencompass_data_set_holds_a_split_and_any_winning_move_counts(split):
    pytest.importorskip("opencompass")
    from llada_plugins.tasks.opencompass import NimDataset, NimEvaluator

    data = NimDataset(
        reader_cfg=dict(input_columns=["position"], output_column="answer"),
        abbr="nim",
        num=20,
        split=split,
    )
    assert [(row["position"], row["answer"]) for row in data.test] == problems(split, 20)
    other = [
        answer[:6]
        + (
            nim.winning_moves([int(size, 16) for size in position.rstrip("=").rstrip(".")])
            or ["##"]
        )[-1]
        for position, answer in problems(split, 20)
    ]
    assert NimEvaluator().score(other, data.test["answer"], data.test)["accuracy"] == 100
    wrong = NimEvaluator().score(["......A9", *other[1:]], data.test["answer"], data.test)
    assert wrong["accuracy"] == 95
    assert wrong["details"][0] == {
        "position": data.test[0]["position"],
        "pred": "......A9",
        "answer": data.test[0]["answer"],
        "correct": False,
    }
