"""The sudoku rules against a brute-force reading of them, and the claims about the two splits."""

from __future__ import annotations

import hashlib
import itertools
import random

import pytest

from llada_plugins.tasks.splits import split_of
from llada_plugins.tasks.sudoku import (
    DEFAULT_NUM_TEST,
    SudokuProblem,
    is_valid,
    problems,
    solutions,
)


def solved_by_cells(grid: str) -> bool:
    """Sudoku's rule cell by cell: no two cells that see each other hold the same digit."""
    for first, second in itertools.combinations(range(16), 2):
        row, column = divmod(first, 4)
        other_row, other_column = divmod(second, 4)
        same_box = (row // 2, column // 2) == (other_row // 2, other_column // 2)
        if (row == other_row or column == other_column or same_box) and grid[first] == grid[second]:
            return False
    return True


def test_there_are_288_grids_and_each_obeys_the_rule_cell_by_cell():
    assert len(set(solutions())) == len(solutions()) == 288
    assert all(solved_by_cells(grid) for grid in solutions())


def test_validity_agrees_with_the_rule_cell_by_cell_on_grids_with_one_cell_changed():
    stream = random.Random(0)
    for _ in range(500):
        cells = list(stream.choice(solutions()))
        cells[stream.randrange(16)] = stream.choice("1234")
        grid = "".join(cells)
        assert is_valid("." * 16 + "=", grid) == solved_by_cells(grid)


def test_every_completion_that_keeps_the_clues_counts_and_no_other_grid_does():
    for problem in problems("test", 20):
        kept = [
            grid
            for grid in solutions()
            if all(clue in ("." + digit) for clue, digit in zip(problem.puzzle, grid))
        ]
        assert problem.solution in kept
        assert [grid for grid in solutions() if is_valid(problem.puzzle, grid)] == kept


@pytest.mark.parametrize(
    "change",
    [
        lambda answer: "",
        lambda answer: answer[:15],
        lambda answer: answer + "1",
        lambda answer: answer[:15] + "5",
        lambda answer: answer[:15] + "x",
        lambda answer: answer[:8] + " " + answer[8:],
        lambda answer: answer[:15] + "\u0661",
        lambda answer: answer[1:] + answer[0],
    ],
)
def test_anything_but_16_fitting_digits_is_refused(change):
    puzzle, solution = "1234341221434321", "1234341221434321"
    assert is_valid(puzzle + "=", solution) and is_valid(puzzle + "=", f" {solution}\n")
    assert not is_valid(puzzle + "=", change(solution))


def test_puzzles_show_2_to_8_clues_of_their_solution():
    for puzzle, solution in problems("train", 500) + problems("test", 500):
        assert len(puzzle) == 17 and puzzle[16] == "="
        assert 2 <= 16 - puzzle.count(".") <= 8
        assert is_valid(puzzle, solution)


def test_the_test_set_is_the_same_on_every_machine():
    # golden: sha256 of the 500 puzzles and solutions, one a line; printed by this
    # test's own expression
    text = "\n".join(
        f"{puzzle}{solution}" for puzzle, solution in problems("test", DEFAULT_NUM_TEST)
    )
    assert (
        hashlib.sha256(text.encode()).hexdigest()
        == "ea66249830b65bc1597028475b56a77b997ad99b8d9da348333437f944f6b41d"
    )


def test_the_validation_set_is_the_same_on_every_machine():
    # golden: as above, of 500 puzzles for validation
    text = "\n".join(f"{puzzle}{solution}" for puzzle, solution in problems("validation", 500))
    assert (
        hashlib.sha256(text.encode()).hexdigest()
        == "83fc0db37eebf0e77cae7a67ed8d1bb16bec5b92a4a1bbbf1260ba2775521e02"
    )


def test_a_longer_list_starts_with_the_shorter_one_and_a_seed_changes_it():
    assert problems("test", 50)[:20] == problems("test", 20)
    assert problems("test", 20, seed=1) != problems("test", 20)
    assert isinstance(problems("train", 1)[0], SudokuProblem)


def test_no_puzzle_of_validation_or_test_is_ever_trained_on():
    found = {
        split: {problem.puzzle for problem in problems(split, num)}
        for split, num in (("train", 60_000), ("validation", 2000), ("test", 2000))
    }
    for split, puzzles in found.items():
        assert {split_of(puzzle) for puzzle in puzzles} == {split}
    assert len(set.union(*found.values())) == sum(map(len, found.values()))


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="split must be one of train, validation, test, got 'dev'"):
        problems("dev", 1)
