"""--batches_by_length: each row once an epoch, less padding, the same losses, exact resuming."""

from __future__ import annotations

import json
import math
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from llada_plugins.models.llada import LLaDA
from tests.small_training import examples, flags, short_run, small_model
from tests.tolerance import largest, measured
from training import sft
from training.data.steps import StepExample, collate_steps
from training.loop.length_batches import POOL, RowsByLength, lengths_of
from training.loop.objectives import IGNORED

pytestmark = pytest.mark.floats


def lengths(num: int, seed: int = 0) -> list[int]:
    return torch.randint(1, 500, (num,), generator=torch.Generator().manual_seed(seed)).tolist()


def an_order(found: list[int], update: int, seed: int = 0, done: int = 0) -> list[int]:
    """The order of rows of these lengths after so many updates."""
    sampler = RowsByLength(found, update, math.ceil(len(found) / update), seed)
    sampler.num_done = lambda: done
    return list(sampler)


def padding(order: list[int], found: list[int], batch: int) -> int:
    """Columns of padding in all batches of an order."""
    batches = [
        [found[row] for row in order[first : first + batch]]
        for first in range(0, len(order), batch)
    ]
    return sum(max(each) * len(each) - sum(each) for each in batches)


@pytest.mark.parametrize("num, update", [(0, 4), (3, 4), (4, 4), (1000, 8), (1003, 8), (97, 1)])
def test_every_row_comes_once_an_epoch(num: int, update: int) -> None:
    assert sorted(an_order(lengths(num), update)) == list(range(num))


def test_the_order_is_of_seed_and_epoch_alone() -> None:
    found, seeds = lengths(300), (0, 1)
    assert an_order(found, 4, done=75) == an_order(found, 4, done=149)
    orders = {tuple(an_order(found, 4, seed, done)) for seed in seeds for done in (0, 75)}
    assert len(orders) == 4


def test_rows_of_an_update_differ_no_more_than_sorting_their_pool_lets_them() -> None:
    """Of sorted rows the spreads of all updates sum to the range of the pool, or less."""
    update, found = 8, lengths(POOL * 8)
    order = an_order(found, update)
    updates = [
        [found[row] for row in order[first : first + update]]
        for first in range(0, len(order), update)
    ]
    spread = sum(max(each) - min(each) for each in updates)
    assert spread <= max(found) - min(found)
    assert padding(order, found, update) <= update * spread
    assert padding(order, found, update) < padding(list(range(len(found))), found, update)
    # updates are not sorted
    assert [max(each) for each in updates] != sorted(max(each) for each in updates)


def test_rows_that_fill_no_update_come_last_and_are_not_the_longest() -> None:
    found = lengths(POOL * 4 + 3)
    rest = [set(an_order(found, 4, seed)[-3:]) for seed in range(20)]
    assert len(set(map(frozenset, rest))) > 1
    longest = set(sorted(range(len(found)), key=found.__getitem__)[-3:])
    assert not all(each == longest for each in rest)


def test_a_step_rows_losses_are_those_it_has_alone() -> None:
    """Padding is hidden from attention: it does not matter what a row is batched with."""
    rows = [
        StepExample(each.input_ids, [IGNORED] * (len(each.input_ids) - 1) + [1])
        for each in examples(64)
    ]
    order = an_order(lengths_of(rows), 4)

    def losses(model: LLaDA, size: int) -> Tensor:
        found: list[Tensor] = [torch.empty(0)] * len(rows)
        for first in range(0, len(order), size):
            numbers = order[first : first + size]
            batch = collate_steps(0)([rows[number] for number in numbers])
            logits = model(batch["input_ids"], batch["attention_mask"].bool())
            for number, row, labels in zip(numbers, logits, batch["labels"]):
                found[number] = -row[labels != IGNORED].log_softmax(-1)[0]
        return torch.cat(found)  # (rows x V,)

    model = small_model().requires_grad_(False)
    bound = max(measured(partial(losses, size=size), model) for size in (1, 4))
    assert largest(losses(model, 4) - losses(model, 1)) <= bound


def run(folder: Path, out: str, *more: str) -> dict[str, Tensor]:
    """The weights that two epochs leave; 13 rows, 4 an update."""
    words = flags(model=folder / "model", data=folder / "data.jsonl", output_dir=folder / out)
    fixed = short_run(
        max_steps=7, save_strategy="steps", save_steps=1, learning_rate=1e-3, append_eos="false"
    )
    sft.main([*words, *fixed, *more])
    return load_file(folder / out / "model.safetensors")


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.fixture
def folder(tmp_path: Path, tiny_checkpoint: Path) -> Path:
    (tmp_path / "model").symlink_to(tiny_checkpoint)
    rows = [
        {"input_ids": [1 + number] * (2 + 3 * number), "prompt_length": 1} for number in range(13)
    ]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@pytest.mark.slow
def test_a_resumed_run_ends_with_the_weights_of_one_that_nothing_stopped(folder: Path) -> None:
    """From the middle of the second epoch, and from between the two."""
    whole = run(folder, "out", "--batches_by_length")
    assert not equal(whole, run(folder, "random"))
    for last in (6, 4):
        for step in range(last + 1, 8):
            shutil.rmtree(folder / "out" / f"checkpoint-{step}")
        assert equal(whole, run(folder, "out", "--batches_by_length", "--resume"))


def test_it_cannot_change_in_a_resumed_run(folder: Path, capsys) -> None:
    run(folder, "out")
    with pytest.raises(SystemExit, match="batches_by_length"):
        run(folder, "out", "--batches_by_length", "--resume")


def test_rows_of_one_length_are_refused() -> None:
    with pytest.raises(ValueError, match="rows of pre-training all have one length"):
        lengths_of([[1, 2], [3, 4]])
