"""A confidence source of your own: a function, and a row of CONFIDENCE. The decode loop
stays as it is.

    python examples/custom_confidence_source.py

A confidence source says which proposals a step trusts. `collision` is the probability
that two draws from the model's distribution agree, the sum of p^2: near 1 where the
model is sure, small where it hesitates among many tokens.

At one token a step the order decides: with sure places first every puzzle below is
solved, in a random order .87 of them. At two tokens a step (steps=8) no source sees that
the two of a step may contradict each other. There `collision` solves every puzzle that
has one solution, a random order .92 of them; of those with several it solves .66, a
random order .73 (1000 puzzles).
"""

from torch import Tensor

from llada_plugins import Engine
from llada_plugins.engine import Request
from llada_plugins.sampling.confidence import CONFIDENCE, Candidates
from llada_plugins.tasks import sudoku

NUM_PUZZLES = 100


def collision(candidates: Candidates) -> Tensor:
    """(B, M) from logits (B, M, V); higher means: keep."""
    return candidates.logits.softmax(-1).square().sum(-1)


CONFIDENCE["collision"] = collision


def accuracy(source: str) -> float:
    """Of the tiny model on 4x4 sudoku, one token a step."""
    engine = Engine(
        "llada", gen_length=16, steps=16, batch_size=NUM_PUZZLES, confidence_source=source
    )
    puzzles = [problem.puzzle for problem in sudoku.problems("test", NUM_PUZZLES)]
    requests = [Request(puzzle, engine.sampler) for puzzle in puzzles]
    answers = dict(engine.generate(requests))
    right = [sudoku.is_valid(puzzle, answers[n].text) for n, puzzle in enumerate(puzzles)]
    return sum(right) / len(right)


def main() -> None:
    """Compare it with two that are built in."""
    for source in ("tps_prob", "random", "collision"):
        print(f"{source:<10} {accuracy(source):.2f}")


if __name__ == "__main__":
    main()
