"""Watch an answer come out of its masks, step by step.

python examples/watch_steps.py
"""

import argparse
from collections.abc import Sequence

from llada_plugins import Engine, Step, generate

PUZZLE = "12.3.3.23..1..3.="  # a 4x4 sudoku, row by row


def watch(puzzle: str, steps: int) -> list[list[str]]:
    """The answer's 16 cells before the first step and after each; "" where a cell is masked."""
    engine = Engine("llada", gen_length=16, steps=steps)
    cells = [""] * 16
    boards = [list(cells)]

    def note(step: Step) -> None:
        for place, token in enumerate(step.proposal[0].tolist()):
            if step.kept[0, place]:
                cells[place] = engine.tokenizer.decode([token])
        boards.append(list(cells))

    generate(engine.model, [engine.encode(puzzle)], engine.sampler, on_step=note)
    return boards


def as_text(boards: Sequence[Sequence[str]]) -> str:
    """One line a step."""
    return "\n".join(
        f"step {number}   {''.join(cell or '░' for cell in board)}"
        for number, board in enumerate(boards)
    )


def main() -> None:
    """Print the steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=8)
    options = parser.parse_args()
    print(as_text(watch(PUZZLE, options.steps)))


if __name__ == "__main__":
    main()
