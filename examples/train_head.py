"""Train a remasking head on a frozen model, then decode with it.

    python examples/train_head.py                    a few updates on the tiny model: seconds
    python examples/train_head.py --updates 500      the head that the package ships: a minute

The head reads the model's hidden states and says how sure it is of each visible token.
With it, `llada_ups` masks doubtful tokens again.
"""

import argparse
import tempfile
from pathlib import Path

from llada_plugins import Engine
from llada_plugins.engine import Request
from llada_plugins.tasks import sudoku
from training import remask_sft

NUM_PUZZLES = 50


def accuracy(method: str, **options: str | bool) -> float:
    """On held-out puzzles, two tokens a step."""
    engine = Engine(method, gen_length=16, steps=8, batch_size=NUM_PUZZLES, **options)
    puzzles = [problem.puzzle for problem in sudoku.problems("test", NUM_PUZZLES)]
    answers = dict(engine.generate([Request(puzzle, engine.sampler) for puzzle in puzzles]))
    return (
        sum(sudoku.is_valid(puzzle, answers[n].text) for n, puzzle in enumerate(puzzles))
        / NUM_PUZZLES
    )


def main() -> None:
    """Train, then compare decoding without and with the head."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--updates", type=int, default=5)
    updates = parser.parse_args().updates
    with tempfile.TemporaryDirectory() as folder:
        head = Path(folder) / "head"
        # the same flags as python -m training.remask_sft
        remask_sft.main(
            [
                "--preset",
                "sudoku4_ups",
                "--output_dir",
                str(head),
                "--max_steps",
                str(updates),
                "--use_cpu",
                "--eval_strategy",
                "no",
            ]
        )
        print(f"plain decoding      {accuracy('llada'):.2f}")
        print(f"with the new head   {accuracy('llada_ups', ups=str(head)):.2f}")


if __name__ == "__main__":
    main()
