"""Nim: positions with an exact solver, on which routers are trained and measured.

Players take from one heap in turn; who takes the last object wins. A position is lost
exactly if the xor of its heaps is 0, and a move wins exactly if it leaves such a
position (Bouton, 1901): any winning move counts. Five splits: "train", "validation" and
"test" have 2-4 heaps of 1-7, and a hash of the position decides to which of the three
it belongs; settings are chosen on "validation". "ood_heaps" has 5-6 heaps of 1-7,
"ood_sizes" 2-4 heaps of 1-15 with one above 7 at least. All positions of a split are
equally likely; only "train" repeats them. The random streams come from `random.Random`,
so they are the same on every platform.

In text a heap is a hexadecimal digit. Six places for heaps, '.' where there is none,
then '=':

    position  "351...="      heaps of 3, 5 and 1
    answer    "367...B2"     their running xor in six places, then the move: heap B is left
                             with 2; "##" where no move wins

The model in the package was first trained on answers with any of the winning moves,
then on the first winning heap's. With the former alone it combines the heap of one
winning move with the size of another; what the latter alone and a lower weight decay
cost is in docs/tiny-models.md.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import operator
import random
from collections.abc import Sequence
from typing import NamedTuple

DEFAULT_NUM_TEST = 1000
ANSWER_LENGTH = 8
PLACES = 6
HEAP_NAMES = "ABCDEF"  # capitals, apart from the hexadecimal digits
LOST = "##"
# of 256: 1,000 distinct test positions are needed, of 2,793 positions in distribution
TEST_SHARE = 96
VALIDATION_SHARE = 48  # of 256 of the positions that are not for tests


class NimProblem(NamedTuple):
    """A position and one right answer."""

    position: str  # as the model's prompt, e.g. "351...="
    answer: str  # running xors and the first winning heap's move, or '##'


class Split(NamedTuple):
    """Which positions a split has."""

    num_heaps: range
    largest: range  # sizes that its largest heap may have


SPLITS = {
    "train": Split(range(2, 5), range(1, 8)),
    "validation": Split(range(2, 5), range(1, 8)),
    "test": Split(range(2, 5), range(1, 8)),
    "ood_heaps": Split(range(5, 7), range(1, 8)),
    "ood_sizes": Split(range(2, 5), range(8, 16)),
}
IN_DISTRIBUTION = ("train", "validation", "test")


def problems(split: str, num: int, seed: int = 0, *, any_move: bool = False) -> list[NimProblem]:
    """`num` problems drawn independently. A longer list starts with the shorter one.

    split: a name in SPLITS. any_move: each answer shows a move drawn among all winning
    ones, in place of the first. Raises ValueError where a split that does not repeat
    positions has fewer.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if split != "train" and num > num_positions(split):
        raise ValueError(f"split {split!r} has {num_positions(split)} positions, got num={num}")
    stream = random.Random(f"nim {split} {seed}")
    drawn: dict[int | str, NimProblem] = {}
    while len(drawn) < num:
        heaps = _draw(SPLITS[split], stream)
        position = _text(heaps)
        if split in IN_DISTRIBUTION and split_of(position) != split:
            continue
        key = len(drawn) if split == "train" else position  # only "train" repeats positions
        problem = NimProblem(position, _answer(heaps, stream if any_move else None))
        drawn.setdefault(key, problem)
    return list(drawn.values())


@functools.cache
def num_positions(split: str) -> int:
    """How many positions a split has."""
    num_heaps, largest = SPLITS[split]
    if split in IN_DISTRIBUTION:
        every = itertools.chain.from_iterable(
            itertools.product(largest, repeat=count) for count in num_heaps
        )
        return sum(split_of(_text(heaps)) == split for heaps in every)
    return sum(largest[-1] ** count - (largest[0] - 1) ** count for count in num_heaps)


def split_of(position: str) -> str:
    """The split in IN_DISTRIBUTION of a position of 2-4 heaps of 1-7, from its hash."""
    first, second = hashlib.sha256(position.encode()).digest()[:2]
    if first < TEST_SHARE:
        return "test"
    return "validation" if second < VALIDATION_SHARE else "train"


def is_winning(position: str, answer: str) -> bool:
    """Whether `answer`, stripped, is 8 characters that end in a winning move.

    '##' where there is none; its xors do not count.
    """
    heaps = [int(size, 16) for size in position.removesuffix("=").rstrip(".")]
    answer = answer.strip()
    return len(answer) == ANSWER_LENGTH and answer[-2:] in (winning_moves(heaps) or [LOST])


def winning_moves(heaps: Sequence[int]) -> list[str]:
    """Every winning move, e.g. "B2": the moves after which the xor of all heaps is 0.
    Empty where the position is lost.
    """
    total = functools.reduce(operator.xor, heaps, 0)
    return [
        f"{name}{size ^ total:x}" for name, size in zip(HEAP_NAMES, heaps) if size ^ total < size
    ]


def _draw(split: Split, stream: random.Random) -> list[int]:
    """Heaps of a position, each position of the split equally likely."""
    top = split.largest[-1]
    while True:
        (count,) = stream.choices(
            split.num_heaps, weights=[top**count for count in split.num_heaps]
        )
        heaps = [stream.randint(1, top) for _ in range(count)]
        if max(heaps) in split.largest:
            return heaps


def _text(heaps: Sequence[int]) -> str:
    return "".join(f"{size:x}" for size in heaps).ljust(PLACES, ".") + "="


def _answer(heaps: Sequence[int], stream: random.Random | None) -> str:
    xors = "".join(f"{total:x}" for total in itertools.accumulate(heaps, operator.xor)).ljust(
        PLACES, "."
    )
    moves = winning_moves(heaps) or [LOST]
    return xors + (moves[0] if stream is None or moves == [LOST] else stream.choice(moves))
